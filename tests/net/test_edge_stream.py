"""Frames out of pieces, and what is still to be read or sent, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import MalformedFrame, ProtocolError, StreamClosed
from swarm.net.edge.negotiation import LONGEST, MULTISTREAM, negotiate
from swarm.net.edge.stream import UNSENT, EdgeStream
from swarm.testing import run
from swarm.wire.framing import encode_length

LIMIT = 1000
frames = st.lists(st.binary(max_size=400), max_size=8)
cuts = st.lists(st.integers(1, 50), max_size=40)


class Ledger:
    """Stands for the trio side: remembers what it is told."""

    def __init__(self) -> None:
        self.sent = b""
        self.credit = 0
        self.ends: list[str] = []

    def put(self, data: bytes) -> None:
        self.sent += data

    def took(self, count: int) -> None:
        self.credit += count

    def finish(self) -> None:
        self.ends.append("finish")

    def reset(self) -> None:
        self.ends.append("reset")


def stream(ledger: Ledger) -> EdgeStream:
    return EdgeStream(ledger, "peer", lambda function, *arguments: function(*arguments), 30.0)  # type: ignore[arg-type]


def pieces(data: bytes, lengths: list[int]) -> list[bytes]:
    found = []
    for length in lengths:
        found.append(data[:length])
        data = data[length:]
    return [piece for piece in (*found, data) if piece]


def simulate(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    run(main())


@given(frames, cuts)
def test_frames_come_out_of_pieces_of_any_size(expected: list[bytes], lengths: list[int]) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        incoming = stream(ledger)
        data = b"".join(encode_length(len(frame)) + frame for frame in expected)

        async def feed() -> None:
            for piece in pieces(data, lengths):
                incoming.feed(piece)
                await asyncio.sleep(0.001)
            incoming.end()

        feeding = asyncio.ensure_future(feed())
        assert [await incoming.receive(LIMIT) for _ in expected] == expected
        with pytest.raises(StreamClosed):
            await incoming.receive(LIMIT)
        await feeding
        assert ledger.credit == len(data)

    simulate(scenario)


@given(st.binary(max_size=60))
def test_any_bytes_are_frames_or_a_typed_error(data: bytes) -> None:
    async def scenario() -> None:
        ledger = Ledger()
        incoming = stream(ledger)
        incoming.feed(data)
        incoming.end()
        try:
            while True:
                assert len(await incoming.receive(LIMIT)) <= LIMIT
        except StreamClosed:
            assert ledger.ends == []
        except ProtocolError:
            assert ledger.ends == ["reset"]

    simulate(scenario)


def test_send_waits_while_too_much_has_not_left() -> None:
    async def scenario() -> None:
        ledger = Ledger()
        outgoing = stream(ledger)
        await outgoing.send(bytes(UNSENT))
        waiting = asyncio.ensure_future(outgoing.send(b"more"))
        await asyncio.sleep(1)
        assert not waiting.done()
        outgoing.written(1000)
        await waiting
        assert ledger.sent.endswith(b"\x04more")

    simulate(scenario)


@pytest.mark.parametrize("end", ["close", "lose"])
def test_the_end_wakes_who_waits(end: str) -> None:
    async def scenario() -> None:
        both = stream(Ledger())
        await both.send(bytes(UNSENT))
        waiting = [asyncio.ensure_future(work) for work in (both.send(b"more"), both.receive(LIMIT))]
        await asyncio.sleep(0.1)
        getattr(both, end)()
        for work in waiting:
            with pytest.raises(StreamClosed):
                await work

    simulate(scenario)


def test_what_came_before_the_connection_was_lost_can_be_received() -> None:
    async def scenario() -> None:
        incoming = stream(Ledger())
        incoming.feed(b"\x04last\x05ha")
        incoming.lose()
        assert await incoming.receive(LIMIT) == b"last"
        with pytest.raises(StreamClosed):
            await incoming.receive(LIMIT)

    simulate(scenario)


class Peer:
    """A libp2p stream on which everything has come already."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.written = b""

    async def read(self, n: int) -> bytes:
        data, self.data = self.data[:n], self.data[n:]
        return data

    async def write(self, data: bytes) -> None:
        self.written += data


def line(text: str) -> bytes:
    return encode_length(len(text) + 1) + text.encode() + b"\n"


def negotiated(peer: Peer) -> Any:
    return trio.run(negotiate, peer, ("/a", "/b"))


def test_the_first_protocol_that_is_served_is_agreed_on() -> None:
    peer = Peer(line(MULTISTREAM) + line("/c" * 100) + line("ls") + line("/b") + b"rest")
    assert negotiated(peer) == "/b"
    assert peer.written == line(MULTISTREAM) + line("na") + line("na") + line("/b")
    assert peer.data == b"rest"


@pytest.mark.parametrize(
    "said",
    [
        line("/multistream/2.0.0"),
        line(MULTISTREAM) + line("/c") * 100,
        line(MULTISTREAM) + encode_length(LONGEST + 1),
        line(MULTISTREAM) + b"\x00",
        line(MULTISTREAM) + b"\x02/a",
    ],
)
def test_who_speaks_something_else_is_refused(said: bytes) -> None:
    with pytest.raises(MalformedFrame):
        negotiated(Peer(said))


@given(st.binary(max_size=100))
def test_any_bytes_end_a_negotiation_with_a_typed_error(said: bytes) -> None:
    for before in (b"", line(MULTISTREAM)):
        with pytest.raises((MalformedFrame, StreamClosed)):
            negotiated(Peer(before + said.replace(b"/a", b"")))
