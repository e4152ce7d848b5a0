"""Long lines: when exactly frames arrive, on the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from swarm.errors import StreamClosed
from swarm.net.base import Stream
from swarm.testing import DelayedHost, LinkConditions, SimulatedNetwork, run
from swarm.testing.wan import WINDOW

LIMIT = 1 << 22
Arrivals = list[tuple[float, int]]


def play(link: LinkConditions, scenario: Callable[[DelayedHost, Arrivals], Awaitable[None]]) -> list[int]:
    """Run a scenario with a client's host; returns when each frame came at the server, in whole milliseconds."""
    arrivals: Arrivals = []

    async def note(stream: Stream) -> None:
        while True:
            frame = await stream.receive(LIMIT)
            arrivals.append((asyncio.get_running_loop().time(), len(frame)))
            await stream.send(frame[:1])

    async def main() -> None:
        network = SimulatedNetwork(conditions=LinkConditions(delay=0))
        client, server = (DelayedHost(network.host(name), link, early=0.0) for name in ("client", "server"))
        await server.serve("/t", note)
        await scenario(client, arrivals)
        await client.close()
        await server.close()

    run(main())
    return [round(at * 1000) for at, _ in arrivals]


def test_a_frame_takes_the_delay_and_a_connection_three_round_trips() -> None:
    async def scenario(host: DelayedHost, arrivals: Arrivals) -> None:
        stream = await host.open_stream("server", "/t")
        assert asyncio.get_running_loop().time() == pytest.approx(0.3)
        await stream.send(b"x")
        await stream.receive(LIMIT)
        assert asyncio.get_running_loop().time() == pytest.approx(0.4)
        await host.open_stream("server", "/t")
        assert asyncio.get_running_loop().time() == pytest.approx(0.4)

    assert play(LinkConditions(delay=0.05), scenario) == [350]


def test_all_streams_to_a_peer_share_the_rate() -> None:
    async def scenario(host: DelayedHost, arrivals: Arrivals) -> None:
        one, two = await host.open_stream("server", "/t"), await host.open_stream("server", "/t")
        for stream in (one, two, one):
            await stream.send(bytes(100_000))
        await asyncio.sleep(1.0)

    assert play(LinkConditions(delay=0.0, rate=1e6), scenario) == [100, 200, 300]


def test_a_lost_packet_comes_later_and_jitter_keeps_the_order() -> None:
    async def scenario(host: DelayedHost, arrivals: Arrivals) -> None:
        stream = await host.open_stream("server", "/t")
        for size in range(1, 60):
            await stream.send(bytes(size))
        await asyncio.sleep(9.0)
        assert [size for _, size in arrivals] == list(range(1, 60))

    times = play(LinkConditions(delay=0.01, jitter=0.02, loss=0.1, retransmit=0.2), scenario)
    assert 70 <= times[0] <= 90 or times[0] >= 270
    assert times[-1] >= 270, "one of sixty was lost, and all behind it waited"


def test_send_waits_while_too_much_is_under_way() -> None:
    async def scenario(host: DelayedHost, arrivals: Arrivals) -> None:
        stream = await host.open_stream("server", "/t")
        loop = asyncio.get_running_loop()
        await stream.send(bytes(WINDOW))
        assert loop.time() == 0.0
        await stream.send(bytes(1))
        assert loop.time() == pytest.approx(WINDOW / 1e6)

    play(LinkConditions(delay=0.0, rate=1e6), scenario)


def test_what_was_sent_before_the_end_arrives_and_the_end_after_it() -> None:
    async def scenario(host: DelayedHost, arrivals: Arrivals) -> None:
        stream = await host.open_stream("server", "/t")
        await stream.send(b"last words")
        stream.close()
        with pytest.raises(StreamClosed):
            await stream.send(b"more")
        with pytest.raises(StreamClosed):
            await stream.receive(LIMIT)
        await asyncio.sleep(1.0)
        assert [size for _, size in arrivals] == [10]

    assert play(LinkConditions(delay=0.05), scenario) == [350]
