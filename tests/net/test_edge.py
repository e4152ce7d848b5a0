"""Browsers' way in: real sockets on loopback, py-libp2p's dialers on the other side."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from libp2p.identity.identify.pb.identify_pb2 import Identify

from swarm.config import EdgeConfig
from swarm.errors import (
    EdgeFailed,
    FrameTooLarge,
    InvalidInput,
    MalformedFrame,
    PeerUnreachable,
    ProtocolError,
    StreamClosed,
)
from swarm.net.base import Stream, StreamHandler
from swarm.net.edge import host as edge_host
from swarm.net.edge import stream as edge_stream
from swarm.net.edge import webrtc
from swarm.net.edge.host import Edge
from swarm.net.identity import Identity
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from tests.net.browsers import Browser, Sink

WS, WEBRTC, WEBTRANSPORT = (
    "/ip4/127.0.0.1/tcp/0/ws",
    "/ip4/127.0.0.1/udp/0/webrtc-direct",
    "/ip4/127.0.0.1/udp/0/quic-v1/webtransport",
)
ALL = EdgeConfig(host_maddrs=(WS, WEBRTC, WEBTRANSPORT), linger=1.0)
LIMIT = 4 << 20
ECHO = "/swarm/test/echo"
TEST = "/swarm/test/it"

Scenario = Callable[[Edge, Browser], Awaitable[None]]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


every_kind = pytest.mark.parametrize("address", [WS, WEBRTC, WEBTRANSPORT], ids=["ws", "webrtc", "webtransport"])


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(LIMIT))


@pytest.fixture
def browser() -> Iterator[Browser]:
    visitor = Browser()
    yield visitor
    visitor.close()


def run(browser: Browser, scenario: Scenario, config: EdgeConfig = ALL, address: str | None = None) -> None:
    """With an edge that listens at one address, or at those of `config`."""
    if address is not None:
        config = replace(config, host_maddrs=(address,))

    async def main() -> None:
        edge = await Edge.start(Identity.generate(), config)
        await edge.serve(ECHO, echo)
        try:
            async with asyncio.timeout(60):
                await scenario(edge, browser)
        finally:
            await edge.close()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("swarm-edge")]

    asyncio.run(main())


async def opened(edge: Edge, browser: Browser, handler: StreamHandler) -> Sink:
    """A stream to the edge's first address, which it serves with `handler`."""
    await edge.serve(TEST, handler)
    return await browser.open(await browser.dial(edge.addresses[0]), TEST)


async def wait_for_end(stream: Stream) -> None:
    with pytest.raises(StreamClosed):
        while True:
            await stream.receive(LIMIT)


@every_kind
def test_frames_go_both_ways(browser: Browser, address: str) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        (there,) = edge.addresses
        assert there.endswith(f"/p2p/{edge.peer_id}")
        stream = await browser.open(await browser.dial(there), ECHO)
        frames = [b"", b"a", bytes(127), bytes(128), bytes(16_384), bytes(range(256)) * 4096]
        for frame in frames:
            await stream.send(frame)
            assert await stream.receive() == frame

    run(browser, scenario, address=address)


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


@every_kind
def test_each_side_knows_the_other(browser: Browser, address: str) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        seen = asyncio.get_running_loop().create_future()

        async def handler(stream: Stream) -> None:
            seen.set_result(stream.peer_id)

        await opened(edge, browser, handler)
        assert await seen == browser.identity.peer_id

    run(browser, scenario, address=address)


@every_kind
def test_what_was_sent_before_the_end_arrives_though_the_sender_has_not_read_everything(
    browser: Browser, address: str
) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        async def handler(stream: Stream) -> None:
            for frame in (b"first", bytes(400_000), b"last"):
                await stream.send(frame)

        sink = await opened(edge, browser, handler)
        await sink.send(b"never read")
        assert [await sink.receive() for _ in range(4)] == [b"first", bytes(400_000), b"last", None]

    run(browser, scenario, address=address)


@every_kind
def test_a_peer_that_has_said_everything_still_hears(browser: Browser, address: str) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        async def handler(stream: Stream) -> None:
            await wait_for_end(stream)
            await stream.send(b"goodbye")

        sink = await opened(edge, browser, handler)
        await sink.send(b"all")
        await sink.close_write()
        assert await sink.receive() == b"goodbye"

    run(browser, scenario, address=address)


@every_kind
@pytest.mark.parametrize("wrong", [b"\xe9\x07", bytes([128, 0]), bytes([255] * 6)], ids=["large", "long", "endless"])
def test_a_frame_above_the_limit_or_without_a_length_resets_the_stream_alone(
    browser: Browser, address: str, wrong: bytes
) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        result: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

        async def handler(stream: Stream) -> None:
            assert len(await stream.receive(1000)) == 1000
            try:
                await stream.receive(1000)
            except ProtocolError as error:
                result.set_result(error)
                with pytest.raises(StreamClosed):
                    await stream.receive(1000)
                raise

        await edge.serve(TEST, handler)
        connection = await browser.dial(edge.addresses[0])
        good, bad = await browser.open(connection, ECHO), await browser.open(connection, TEST)
        await bad.send(bytes(1000))
        await bad.write(wrong)
        assert isinstance(await result, FrameTooLarge if wrong == b"\xe9\x07" else MalformedFrame)
        assert await bad.receive() is None
        with contextlib.suppress(Exception):
            for _ in range(20):
                await bad.write(bytes(1000))
        await good.send(b"still here")
        assert await good.receive() == b"still here"

    run(browser, scenario, address=address)


@pytest.mark.parametrize("half", [b"\x80", b"\x05ab"], ids=["length", "body"])
def test_who_sends_a_part_of_a_frame_and_no_more_is_left(browser: Browser, half: bytes) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        ended = asyncio.Event()

        async def handler(stream: Stream) -> None:
            await wait_for_end(stream)
            ended.set()

        sink = await opened(edge, browser, handler)
        await sink.send(b"whole")
        await asyncio.sleep(0.6)  # between frames one may be silent
        assert not ended.is_set()
        await sink.write(half)
        await ended.wait()

    run(browser, scenario, replace(ALL, frame_timeout=0.3))


@every_kind
def test_a_peer_that_vanishes_ends_its_streams(browser: Browser, address: str) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def handler(stream: Stream) -> None:
            begun.set()
            with pytest.raises(StreamClosed):
                while True:
                    await stream.send(bytes(1000))
                    await asyncio.sleep(0.02)
            await wait_for_end(stream)
            ended.set()

        connection = await browser.dial(edge.addresses[0])
        await edge.serve(TEST, handler)
        await browser.open(connection, TEST)
        await begun.wait()
        await browser.call(connection.close)
        await ended.wait()
        assert await browser.open(await browser.dial(edge.addresses[0]), ECHO)

    run(browser, scenario, address=address)


def test_a_webrtc_peer_that_says_nothing_any_more_has_gone(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "SILENCE", 1.0)

    async def scenario(edge: Edge, browser: Browser) -> None:
        ended = asyncio.Event()

        async def handler(stream: Stream) -> None:
            await wait_for_end(stream)
            ended.set()

        connection = await browser.dial(edge.addresses[0])
        await edge.serve(TEST, handler)
        await browser.hold(await browser.open(connection, TEST))
        await ended.wait()

    run(browser, scenario, address=WEBRTC)


def test_an_error_in_a_handler_ends_only_its_stream(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        async def handler(stream: Stream) -> None:
            await stream.receive(LIMIT)
            raise ZeroDivisionError("on purpose")

        await edge.serve(TEST, handler)
        connection = await browser.dial(edge.addresses[0])
        good, bad = await browser.open(connection, ECHO), await browser.open(connection, TEST)
        await bad.send(b"fail")
        assert await bad.receive() is None
        await good.send(b"still here")
        assert await good.receive() == b"still here"

    run(browser, scenario)
    assert "on purpose" in caplog.text


@every_kind
def test_a_handler_waits_for_a_peer_that_does_not_read(browser: Browser, address: str) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        sent = 0
        read = asyncio.Event()

        async def handler(stream: Stream) -> None:
            nonlocal sent
            await read.wait()
            for _ in range(200):
                await stream.send(bytes(100_000))
                sent += 1

        sink = await opened(edge, browser, handler)
        await browser.hold(sink)
        read.set()
        await asyncio.sleep(1.0)
        assert sent < 150
        if address == WS:  # py-libp2p's others drop what was not read
            assert [await sink.receive() for _ in range(201)] == [bytes(100_000)] * 200 + [None]

    run(browser, scenario, address=address)


def test_a_peer_waits_for_a_handler_that_does_not_read(browser: Browser) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        read = asyncio.Event()
        frames = sent = 0

        async def handler(stream: Stream) -> None:
            nonlocal frames
            await read.wait()
            while True:
                await stream.receive(LIMIT)
                frames += 1

        async def send() -> None:
            nonlocal sent
            for _ in range(50):
                await sink.send(bytes(100_000))
                sent += 1

        sink = await opened(edge, browser, handler)
        sending = asyncio.ensure_future(send())
        await asyncio.sleep(1.0)
        assert sent < 20
        read.set()
        await sending
        await sink.close_write()
        assert await sink.receive() is None
        assert frames == 50

    run(browser, scenario, address=WS)


@pytest.mark.parametrize("address", [WEBRTC, WEBTRANSPORT], ids=["webrtc", "webtransport"])
def test_a_peer_that_cannot_be_made_to_wait_loses_its_stream_instead(
    browser: Browser, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_stream, "TOO_MUCH", 300_000)

    async def scenario(edge: Edge, browser: Browser) -> None:
        read, ended = asyncio.Event(), asyncio.Event()

        async def handler(stream: Stream) -> None:
            await read.wait()
            await wait_for_end(stream)
            ended.set()

        sink = await opened(edge, browser, handler)
        sending = asyncio.ensure_future(sink.send(bytes(600_000)))
        assert await sink.receive() is None
        read.set()
        await ended.wait()
        await asyncio.gather(sending, return_exceptions=True)

    run(browser, scenario, address=address)


def test_a_stream_too_many_is_refused_in_the_words_of_its_protocol(browser: Browser) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        await edge.serve(messages.QUERY_PROTOCOL, echo)
        connection = await browser.dial(edge.addresses[0])
        kept = [await browser.open(connection, ECHO) for _ in range(3)]
        refused = await browser.open(connection, messages.QUERY_PROTOCOL)
        reply = pb.QueryReply.FromString(await refused.receive() or b"")
        assert (reply.failure.code, reply.failure.retry_after > 0) == (pb.Failure.BUSY, True)
        assert await (await browser.open(connection, ECHO)).receive() is None
        await kept[0].close()
        await kept[0].reset()
        await until_served(browser, connection)

    run(browser, scenario, replace(ALL, max_streams_per_peer=3))


async def until_served(browser: Browser, connection: Any) -> None:
    while True:
        sink = await browser.open(connection, ECHO)
        await sink.send(b"?")
        if await sink.receive() == b"?":
            return


def test_all_peers_together_have_so_many_streams(browser: Browser) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        other = Browser()
        try:
            connection = await browser.dial(edge.addresses[0])
            kept = [await browser.open(connection, ECHO) for _ in range(3)]
            late = await other.dial(edge.addresses[0])
            assert await (await other.open(late, ECHO)).receive() is None
            await browser.call(connection.close)
            await until_served(other, late)
            assert kept
        finally:
            await asyncio.to_thread(other.close)

    run(browser, scenario, replace(ALL, max_streams=3))


@every_kind
def test_a_connection_too_many_is_closed(browser: Browser, address: str) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        first = await browser.dial(edge.addresses[0])
        assert await browser.open(first, ECHO)
        browser.patience = 1.0
        with pytest.raises(Exception):  # noqa: B017  libp2p raises many kinds
            await browser.open(await browser.dial(edge.addresses[0]), ECHO)
        sink = await browser.open(first, ECHO)
        await sink.send(b"still here")
        assert await sink.receive() == b"still here"

    run(browser, scenario, replace(ALL, max_connections_per_peer=1), address)


@every_kind
def test_noise_from_strangers_disturbs_nobody(browser: Browser, address: str) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        sink = await browser.open(await browser.dial(edge.addresses[0]), ECHO)
        _, _, ip, kind, port = edge.addresses[0].split("/")[:5]
        stream = kind == "tcp"
        noises = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            bytes(1200),
            b"\xff" * 1200,
            b"\x00\x01\x00\x00" * 300,
            b"\xc0" + bytes(1300),
        ]
        for noise in (*noises, *(random.Random(0).randbytes(1250) for _ in range(50))):
            with socket.socket(type=socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as stranger:
                stranger.connect((ip, int(port)))
                stranger.send(noise)
        await sink.send(b"still here")
        assert await sink.receive() == b"still here"
        assert await browser.open(await browser.dial(edge.addresses[0]), ECHO)

    run(browser, scenario, address=address)


def test_closing_ends_handlers_that_do_not_listen(browser: Browser) -> None:
    ended = []

    async def scenario(edge: Edge, browser: Browser) -> None:
        async def handler(stream: Stream) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                ended.append(stream.peer_id)

        sink = await opened(edge, browser, handler)
        await edge.close()
        assert await sink.receive() is None
        await edge.close()

    run(browser, scenario)
    assert ended == [browser.identity.peer_id]


def test_an_edge_that_was_left_open_ends_with_its_loop(browser: Browser) -> None:
    async def main() -> None:
        edge = await Edge.start(Identity.generate(), ALL)
        await edge.serve(ECHO, echo)
        await browser.dial(edge.addresses[0])

    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name.startswith("swarm-edge"):
            thread.join(10)
            assert not thread.is_alive()


def test_a_thread_that_fails_is_replaced_at_the_same_addresses(
    browser: Browser, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_host, "_AGAIN", 0.05)

    async def scenario(edge: Edge, browser: Browser) -> None:
        def fail() -> None:
            raise ZeroDivisionError("on purpose")

        before = edge.addresses
        edge._switch._call(fail)
        while not caplog.records or not edge.addresses:
            await asyncio.sleep(0.02)
        assert edge.addresses == before
        await until_served(browser, await browser.dial(before[0]))

    run(browser, scenario)
    assert "on purpose" in caplog.text


def test_webtransport_keeps_nothing_of_streams_that_have_ended(browser: Browser) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        connection = await browser.dial(edge.addresses[0])
        for _ in range(5):
            sink = await browser.open(connection, ECHO)
            await sink.send(b"x")
            assert await sink.receive() == b"x"
            await sink.close_write()
            assert await sink.receive() is None
        await until_served(browser, connection)
        (there,) = set(edge._switch._listeners[0]._connections.values())  # type: ignore[attr-defined]
        while len(there._streams) > 2:  # the handshake's and the last one
            await asyncio.sleep(0.02)

    run(browser, scenario, address=WEBTRANSPORT)


def test_it_tells_who_it_is_and_answers_pings(browser: Browser) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        connection = await browser.dial(edge.addresses[0])
        about = Identify.FromString(await (await browser.open(connection, "/ipfs/id/1.0.0")).receive() or b"")
        assert about.public_key == edge.identity.public_bytes
        assert ECHO in about.protocols
        ping = await browser.open(connection, "/ipfs/ping/1.0.0")
        await ping.send(bytes(31))
        assert await ping.receive() == bytes(31)

    run(browser, scenario)


def test_it_dials_nobody(browser: Browser) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        with pytest.raises(PeerUnreachable):
            await edge.open_stream(browser.identity.peer_id, ECHO)

    run(browser, scenario)


def test_announced_addresses_take_the_place_of_its_own(browser: Browser) -> None:
    announced = (
        "/ip4/203.0.113.5/udp/1/webrtc-direct",
        "/ip4/203.0.113.5/udp/2/quic-v1/webtransport",
        "/dns4/example.org/tcp/443/tls/ws",
    )

    async def scenario(edge: Edge, browser: Browser) -> None:
        assert [a.partition("/certhash/")[0].partition("/p2p/")[0] for a in edge.addresses] == list(announced)
        assert [a.count("/certhash/") for a in edge.addresses] == [1, 2, 0]

    run(browser, scenario, replace(ALL, announce_maddrs=announced))


def test_an_ip_that_means_all_is_announced_as_those_of_this_machine(browser: Browser) -> None:
    async def scenario(edge: Edge, browser: Browser) -> None:
        found = [address.split("/")[1:5] for address in edge.addresses]
        assert {version for version, *_ in found} == {"ip4"}
        assert "127.0.0.1" in {ip for _, ip, *_ in found}
        assert "0.0.0.0" not in {ip for _, ip, *_ in found}
        assert len({port for *_, port in found}) == 1

    run(browser, scenario, address="/ip4/0.0.0.0/udp/0/quic-v1/webtransport")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_listens_on_ipv6(browser: Browser) -> None:
    """py-libp2p's dialers do not get there; browsers do."""

    async def scenario(edge: Edge, browser: Browser) -> None:
        assert all(address.startswith("/ip6/::1/") for address in edge.addresses)

    run(browser, scenario, replace(ALL, host_maddrs=tuple(a.replace("ip4/127.0.0.1", "ip6/::1") for a in (WS, WEBRTC))))
    run(browser, scenario, address=WEBTRANSPORT.replace("ip4/127.0.0.1", "ip6/::1"))
