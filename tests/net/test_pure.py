"""A host without p2pd: what the contract of all hosts does not say."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

import swarm.net
from swarm.config import ForwardConfig, NetworkConfig
from swarm.errors import DaemonFailed, InvalidInput, PeerUnreachable, StreamClosed
from swarm.net import network, pulse
from swarm.net.base import Stream
from swarm.net.hivemind.host import create_host
from swarm.net.identity import Identity
from swarm.net.pure.host import PureHost, create_pure_host
from swarm.tasks import ended
from swarm.wire import messages

pytestmark = pytest.mark.processes

CONFIG = NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",), dial_timeout=5.0)
PROTOCOL = "/swarm/test/pure"


class Hosts(AsyncExitStack):
    async def pure(self, **fields: Any) -> PureHost:
        host = await create_pure_host(replace(CONFIG, **fields))
        self.push_async_callback(host.close)
        return host


def scenario(main: Callable[[Hosts], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), Hosts() as hosts:
            await main(hosts)

    asyncio.run(run())


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(1 << 22))


def test_it_reaches_through_a_forwarder_who_cannot_be_dialled() -> None:
    async def main(hosts: Hosts) -> None:
        forwarder = await create_host(replace(CONFIG, public=True, forward=ForwardConfig()))
        hosts.push_async_callback(forwarder.close)
        hidden = await hosts.pure(initial_peers=tuple(forwarder.addresses))
        caller = await hosts.pure(initial_peers=tuple(forwarder.addresses))
        circuit = f"{forwarder.addresses[0]}/p2p-circuit/p2p/{hidden.peer_id}"
        with pytest.raises(PeerUnreachable, match="CONNECTION_FAILED"):
            await caller.open_stream(hidden.peer_id, PROTOCOL, [circuit])  # that one takes no circuits
        behind = await create_host(replace(CONFIG, initial_peers=tuple(forwarder.addresses)))
        hosts.push_async_callback(behind.close)
        await behind.serve(PROTOCOL, echo)
        circuit = f"{forwarder.addresses[0]}/p2p-circuit/p2p/{behind.peer_id}"
        stream = await caller.open_stream(behind.peer_id, PROTOCOL, [circuit])
        for _ in range(5):
            await stream.send(bytes(100_000))
            assert await stream.receive(1 << 20) == bytes(100_000), "more than go-libp2p's relay lets through"
        assert behind.peer_id not in caller._switch.connected()
        stream.close()

    scenario(main)


def test_who_is_not_who_was_dialled_is_refused() -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.pure(), await hosts.pure()
        other = Identity.generate().peer_id
        address = one.addresses[0].partition("/p2p/")[0]
        with pytest.raises(PeerUnreachable):
            await two.open_stream(other, PROTOCOL, [address])
        with pytest.raises(InvalidInput):
            await two.open_stream("0OIl", PROTOCOL, [address])

    scenario(main)


def test_what_it_cannot_dial_is_said() -> None:
    async def main(hosts: Hosts) -> None:
        one = await hosts.pure()
        other = Identity.generate().peer_id
        with pytest.raises(PeerUnreachable, match="without p2pd"):
            await one.open_stream(other, PROTOCOL, ["/ip4/127.0.0.1/udp/1/quic-v1"])
        with pytest.raises(PeerUnreachable, match="over TCP"):
            await hosts.pure(initial_peers=(f"/ip4/127.0.0.1/udp/1/quic-v1/p2p/{other}",))
        with pytest.raises(DaemonFailed, match="listen"):
            port = one.addresses[0].split("/")[4]
            await hosts.pure(host_maddrs=(f"/ip4/127.0.0.1/tcp/{port}",))

    scenario(main)


def test_a_peer_that_restarts_is_dialled_anew() -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.pure(), await hosts.pure()
        await one.serve(PROTOCOL, echo)
        stream = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
        address = one.addresses[0].partition("/p2p/")[0]
        await one.close()
        again = PureHost(replace(CONFIG, host_maddrs=(address,)), one.identity)
        hosts.push_async_callback(again.close)
        await again.begin()
        await again.serve(PROTOCOL, echo)
        other = await two.open_stream(one.peer_id, PROTOCOL, again.addresses)
        await other.send(b"x")
        assert await other.receive(10) == b"x"
        for each in (stream, other):
            each.close()
        assert two.statistics().streams == 0

    scenario(main)


def test_a_connection_over_which_nothing_comes_any_more_is_dropped_and_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, seconds in (("QUIET", 0.2), ("LOOK_EVERY", 0.1), ("PATIENCE", 0.5)):
        monkeypatch.setattr(pulse, name, seconds)

    async def main(hosts: Hosts) -> None:
        boot, one = await hosts.pure(), await hosts.pure()
        two = await hosts.pure(initial_peers=tuple(boot.addresses))
        await one.serve(PROTOCOL, echo)
        frozen = asyncio.Event()
        port = int(one.addresses[0].split("/")[4])
        carriers: set[asyncio.Task[None]] = set()

        def begin(*ends: Any) -> None:
            carriers.add(asyncio.ensure_future(carry(port, frozen, *ends)))

        router = await asyncio.start_server(begin, "127.0.0.1", 0)
        through = f"/ip4/127.0.0.1/tcp/{router.sockets[0].getsockname()[1]}"
        stream = await two.open_stream(one.peer_id, PROTOCOL, [through])
        await stream.send(b"x")
        assert await stream.receive(10) == b"x"
        frozen.set()
        await stream.send(b"x")
        with pytest.raises(StreamClosed):
            async with asyncio.timeout(10):
                await stream.receive(10)
        again = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
        await again.send(b"y")
        assert await again.receive(10) == b"y"
        router.close()
        await ended(*carriers)

    scenario(main)


async def carry(port: int, frozen: asyncio.Event, reader: StreamReader, writer: StreamWriter) -> None:
    """Between two ends, until it forgets them and tells nobody."""
    there = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: StreamReader, target: StreamWriter) -> None:
        while data := await source.read(1 << 16):
            if not frozen.is_set():
                target.write(data)

    try:
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)
    finally:
        for end in (writer, there[1]):
            end.transport.abort()


def test_the_network_falls_back_to_it_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find = importlib.util.find_spec

    async def main(hosts: Hosts) -> None:
        boot = await swarm.net.open(replace(CONFIG, public=True))
        hosts.push_async_callback(boot.close)
        config = replace(CONFIG, initial_peers=tuple(boot.host.addresses))
        with monkeypatch.context() as patch:
            patch.setattr(network.importlib.util, "find_spec", lambda name: None if name == "hivemind" else find(name))
            assert network.without_p2pd()
            with caplog.at_level(logging.WARNING):
                joined = await swarm.net.open(config)
            hosts.push_async_callback(joined.close)
            with pytest.raises(InvalidInput, match="without p2pd"):
                await swarm.net.open(CONFIG)
            patch.setattr(network.importlib.util, "find_spec", lambda name: None)
            with pytest.raises(DaemonFailed, match=r"swarm-llm\[pure\]"):
                await swarm.net.open(config)
        assert "going without p2pd: hivemind, which brings it, is not installed" in caplog.text
        assert await joined.directory.models() == []
        stream = await joined.host.open_stream(boot.host.peer_id, messages.DIRECTORY_PROTOCOL)
        stream.close()

    scenario(main)
    assert network.without_p2pd() is None
