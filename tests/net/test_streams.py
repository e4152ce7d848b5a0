"""Streams over p2pd: many at once, none kept longer than it is open."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from swarm.config import NetworkConfig
from swarm.net.base import Stream
from swarm.net.hivemind.host import HivemindHost, create_host
from swarm.net.identity import Identity

CONFIG = NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",), dial_timeout=5.0)
PROTOCOL = "/swarm/test/1"


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(100_000))


def pair(scenario: Callable[[HivemindHost, HivemindHost], Awaitable[None]], *peers: str) -> None:
    async def main() -> None:
        one = await create_host(CONFIG)
        two = await create_host(replace(CONFIG, initial_peers=(*peers, *one.addresses)))
        await one.serve(PROTOCOL, echo)
        async with asyncio.timeout(30):
            await scenario(one, two)
        await two.close()
        await one.close()

    asyncio.run(main())


def test_a_crowd_that_comes_while_the_loop_is_busy_is_served() -> None:
    async def scenario(one: HivemindHost, two: HivemindHost) -> None:
        async def visit(number: int) -> bytes:
            stream = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
            await stream.send(b"%d" % number)
            answer = await stream.receive(100)
            stream.close()
            return answer

        visits = [asyncio.create_task(visit(number)) for number in range(400)]
        await asyncio.sleep(0.01)
        time.sleep(0.3)  # noqa: ASYNC251  (as a loop is that has other things to do)
        assert await asyncio.gather(*visits) == [b"%d" % number for number in range(400)]

    pair(scenario)


def test_streams_at_once_do_not_mix() -> None:
    async def scenario(one: HivemindHost, two: HivemindHost) -> None:
        async def talk(number: int) -> None:
            stream = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
            for turn in range(5):
                frame = bytes([number, turn]) * (1 + 997 * number)
                await stream.send(frame)
                assert await stream.receive(100_000) == frame
            stream.close()

        await asyncio.gather(*(talk(number) for number in range(50)))

    pair(scenario)


def test_a_host_forgets_streams_that_are_closed() -> None:
    async def scenario(one: HivemindHost, two: HivemindHost) -> None:
        streams = [await two.open_stream(one.peer_id, PROTOCOL, one.addresses) for _ in range(5)]
        for stream in streams:
            await stream.send(b"x")
            await stream.receive(10)
        assert (len(one._streams), len(two._streams)) == (5, 5)
        for stream in streams:
            stream.close()
        while one._streams:
            await asyncio.sleep(0.01)
        assert not two._streams

    pair(scenario)


@pytest.mark.parametrize("transport", ["udp/0/quic-v1", "tcp/0"])
def test_last_words_arrive_over_every_transport(transport: str) -> None:
    async def main() -> None:
        config = replace(CONFIG, host_maddrs=(f"/ip4/127.0.0.1/{transport}",))
        one, two = await create_host(config), await create_host(config)
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def hear(stream: Stream) -> None:
            heard.put_nowait(await stream.receive(10))
            await stream.send(b"farewell")

        await one.serve(PROTOCOL, hear)
        async with asyncio.timeout(30):
            for _ in range(20):
                stream = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
                await stream.send(b"bye")
                stream.close()
            assert [await heard.get() for _ in range(20)] == [b"bye"] * 20
            for _ in range(20):
                stream = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
                await stream.send(b"hello")
                assert await stream.receive(10) == b"farewell"
                stream.close()
            stream = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
            await stream.send(b"leaving")
            await two.close()
            assert [await heard.get() for _ in range(21)] == [b"hello"] * 20 + [b"leaving"]
        await one.close()

    asyncio.run(main())


def test_initial_peers_that_do_not_answer_beside_one_that_does_are_named(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(one: HivemindHost, two: HivemindHost) -> None:
        pass

    dead = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}"
    with caplog.at_level(logging.WARNING, "swarm"):
        pair(scenario, dead)
    (said,) = (record.getMessage() for record in caplog.records if record.name.startswith("swarm"))
    assert dead in said
    assert "did not answer" in said


def test_a_program_that_is_interrupted_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """What `asyncio.run` does on Ctrl-C: every task is cancelled, nobody closed anything."""

    async def main() -> None:
        host = await create_host(CONFIG)
        other = await create_host(replace(CONFIG, initial_peers=tuple(host.addresses)))
        await host.serve(PROTOCOL, echo)
        stream = await other.open_stream(host.peer_id, PROTOCOL, host.addresses)
        await stream.send(b"x")
        await stream.receive(10)
        try:
            await asyncio.sleep(0)
            raise KeyboardInterrupt
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if task.get_name() == "stream":
                    task.cancel()
            await asyncio.sleep(0.05)
            await other.close()
            await host.close()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
