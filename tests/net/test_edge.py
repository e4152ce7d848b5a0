"""Browsers' way in: real sockets on loopback, py-libp2p's dialers on the other side."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from swarm.config import EdgeConfig
from swarm.errors import EdgeFailed, InvalidInput
from swarm.net.base import Stream
from swarm.net.edge import Edge
from swarm.net.identity import Identity
from tests.net.browsers import Browser

WS, WEBRTC, WEBTRANSPORT = (
    "/ip4/127.0.0.1/tcp/0/ws",
    "/ip4/127.0.0.1/udp/0/webrtc-direct",
    "/ip4/127.0.0.1/udp/0/quic-v1/webtransport",
)
ALL = EdgeConfig(host_maddrs=(WS, WEBRTC, WEBTRANSPORT), linger=1.0)
LIMIT = 4 << 20
ECHO = "/swarm/test/echo"

Scenario = Callable[[Edge, Browser], Awaitable[None]]


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(LIMIT))


@pytest.fixture
def browser() -> Iterator[Browser]:
    visitor = Browser()
    yield visitor
    visitor.close()


def run(browser: Browser, scenario: Scenario, config: EdgeConfig = ALL) -> None:
    async def main() -> None:
        edge = await Edge.start(Identity.generate(), config)
        await edge.serve(ECHO, echo)
        try:
            async with asyncio.timeout(60):
                await scenario(edge, browser)
        finally:
            await edge.close()
        assert "swarm-edge" not in {
            thread.name.rpartition("-rtc")[0] or thread.name for thread in threading.enumerate()
        }

    asyncio.run(main())


@pytest.mark.parametrize("address", [WS, WEBRTC, WEBTRANSPORT])
def test_frames_go_both_ways(browser: Browser, address: str) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        (there,) = edge.addresses
        assert there.endswith(f"/p2p/{edge.peer_id}")
        stream = await browser.open(await browser.dial(there), ECHO)
        frames = [b"", b"a", bytes(127), bytes(128), bytes(16_384), bytes(range(256)) * 4096]
        for frame in frames:
            await stream.send(frame)
            assert await stream.receive() == frame

    run(browser, scenario, replace(ALL, host_maddrs=(address,)))


def test_an_address_that_is_taken_is_a_typed_error(browser: Browser) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        for address in edge.addresses:
            bare = address.partition("/certhash/")[0].partition("/p2p/")[0]
            with pytest.raises(EdgeFailed, match=bare):
                await Edge.start(Identity.generate(), replace(ALL, host_maddrs=(bare,)))

    run(browser, scenario)


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    async def main() -> None:
        with pytest.raises(InvalidInput, match=address):
            await Edge.start(Identity.generate(), replace(ALL, host_maddrs=(address,)))
        with pytest.raises(InvalidInput, match=address):
            await Edge.start(Identity.generate(), replace(ALL, announce_maddrs=(address,)))

    asyncio.run(main())


def test_a_restart_keeps_the_addresses(tmp_path: Path) -> None:
    identity = Identity.generate()

    async def main() -> None:
        config = replace(ALL, identity_path=str(tmp_path / "key"))
        edge = await Edge.start(identity, config)
        before = edge.addresses
        await edge.close()
        ports = tuple(address.partition("/certhash/")[0].partition("/p2p/")[0] for address in before)
        edge = await Edge.start(identity, replace(config, host_maddrs=ports))
        assert edge.addresses == before
        await edge.close()

    asyncio.run(main())
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in tmp_path.iterdir())
