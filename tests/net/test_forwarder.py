"""A forwarder: what it understands, whom it carries for, and that nobody can hold it up or fill its memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio import StreamReader
from collections.abc import Awaitable, Callable

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.config import ForwardConfig
from swarm.errors import MalformedFrame, PeerUnreachable
from swarm.net.forwarding import circuits, splice
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.net.forwarding.circuits import FRAME_LIMIT, Connect, Reserve, Status
from swarm.net.forwarding.forwarder import ASKING, Forwarder
from swarm.net.forwarding.quota import refusal
from swarm.net.forwarding.splice import Ends
from swarm.net.identity import Identity
from swarm.net.quota import Bucket
from swarm.wire.framing import read_frame, write_frame

ALICE, BOB, CAROL = (Identity.generate().peer_id for _ in range(3))
RAW = {peer: base58.b58decode(peer) for peer in (ALICE, BOB, CAROL)}
LIMITS = ForwardConfig(circuits=3, per_caller=2, per_target=2, idle=5.0, handshake=0.5)


def ask(kind: int, target: bytes | None = None) -> bytes:
    peer = None if target is None else pb.CircuitPeer(id=target)
    return pb.HopMessage(type=kind, peer=peer).SerializeToString()  # type: ignore[arg-type]


# ---- frames -----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=FRAME_LIMIT + 10))
def test_whatever_bytes_come_they_are_understood_or_refused_by_type(frame: bytes) -> None:
    for read in (circuits.read_hop, circuits.read_stop):
        with contextlib.suppress(MalformedFrame):
            read(frame)


@given(st.integers(-5, 5), st.none() | st.binary(max_size=80), st.integers(0, 1000))
def test_a_circuit_is_asked_for_with_a_peer_id_or_refused(kind: int, target: bytes | None, code: int) -> None:
    message = pb.HopMessage(type=kind, status=code)  # type: ignore[arg-type]
    if target is not None:
        message.peer.id = target
    try:
        request = circuits.read_hop(message.SerializeToString())
    except MalformedFrame:
        assert kind not in (0, 1) or (kind == 1 and not circuits.is_peer_id(target or b""))
    else:
        assert request == (Reserve() if kind == 0 else Connect(target or b""))


def test_what_is_said_reads_as_the_specification_says() -> None:
    answer = pb.HopMessage.FromString(circuits.reserved(99.5, [b"where"]))
    assert (answer.type, answer.status, answer.reservation.expire) == (2, 100, 99)
    assert answer.reservation.addrs == [b"where"]
    assert circuits.status(Status.PERMISSION_DENIED) == bytes((8, 2, 0x28, 202, 1))
    assert circuits.incoming(b"me") == bytes((8, 0, 0x12, 4, 10, 2)) + b"me"
    assert circuits.read_stop(bytes((8, 1, 0x20, 100))) == Status.OK


def test_an_answer_in_place_of_a_question_is_told_apart() -> None:
    with pytest.raises(circuits.Unexpected):
        circuits.read_hop(circuits.status(Status.OK))
    with pytest.raises(circuits.Unexpected):
        circuits.read_stop(circuits.incoming(RAW[BOB]))


# ---- quotas -----------------------------------------------------------------------------------------------------

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=12)


@given(PAIRS, st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.frozensets(st.sampled_from("abc")))
def test_no_order_of_requests_exceeds_a_limit(
    asked: list[tuple[str, str]], most: int, callers: int, targets: int, blocked: frozenset[str]
) -> None:
    limits, opened = ForwardConfig(circuits=most, per_caller=callers, per_target=targets), list[tuple[str, str]]()
    for pair in asked:
        if refusal(pair, opened, limits, blocked) is None:
            opened.append(pair)
    assert len(opened) <= most
    assert all(sum(one == peer for one, _ in opened) <= callers for peer in "abc")
    assert all(sum(other == peer for _, other in opened) <= targets for peer in "abc")
    assert not any(set(pair) & blocked for pair in opened)
    assert not any(one == other for one, other in opened)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 0.5)), min_size=1, max_size=50))
def test_a_pace_is_kept_by_all_together(taken: list[tuple[int, float]]) -> None:
    pace, now, total = Bucket(1000.0), 0.0, 0
    for count, later in taken:
        now += pace.take(count, now)
        total += count
        assert total <= 1000.0 * (now + 1.0) + 0.1
        now += later
    assert Bucket(0.0).take(10**12, 0.0) == 0.0


# ---- circuits ---------------------------------------------------------------------------------------------------


async def pipe() -> tuple[Ends, Ends]:
    """Two ends of a stream, as p2pd gives them: sockets."""
    one, other = socket.socketpair()
    return await asyncio.open_unix_connection(sock=one), await asyncio.open_unix_connection(sock=other)


class Target:
    """A peer that forwarders are connected to, and what it does with circuits."""

    def __init__(self) -> None:
        self.connected = {RAW[BOB]}
        self.accepts = True
        self.opened: list[Ends] = []

    async def is_connected(self, peer: bytes) -> bool:
        return peer in self.connected

    async def open(self, peer: bytes, protocol: str) -> Ends:
        assert protocol == circuits.STOP_PROTOCOL
        if peer != RAW[BOB]:
            raise PeerUnreachable("not there")
        ours, theirs = await pipe()
        self.opened.append(theirs)
        if self.accepts:
            code = pb.OK
            write_frame(theirs[1], pb.StopMessage(type=pb.StopMessage.STATUS, status=code).SerializeToString())
        return ours


class Asker:
    """Peers that ask a forwarder for things."""

    def __init__(self, limits: ForwardConfig = LIMITS) -> None:
        self.target = Target()
        self.forwarder = Forwarder(self.target, limits, lambda: [b"here"])
        self.tasks: list[asyncio.Task[None]] = []
        self.ends: list[Ends] = []

    async def ask(self, frame: bytes, caller: str = ALICE) -> Ends:
        ours, theirs = await pipe()
        self.ends.append(ours)
        self.tasks.append(asyncio.create_task(self.forwarder.serve(caller, *theirs)))
        write_frame(ours[1], frame)
        return ours

    async def told(self, frame: bytes, caller: str = ALICE) -> tuple[pb.HopMessage, Ends]:
        ends = await self.ask(frame, caller)
        return pb.HopMessage.FromString(await read_frame(ends[0], FRAME_LIMIT)), ends

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for _, writer in (*self.ends, *self.target.opened):
            writer.transport.abort()


def scenario(main: Callable[[Asker], Awaitable[None]], limits: ForwardConfig = LIMITS) -> None:
    async def run() -> None:
        asker = Asker(limits)
        async with asyncio.timeout(20):
            try:
                await main(asker)
            finally:
                await asker.close()
        assert asker.forwarder.circuits == 0
        assert not asker.forwarder._asking.held

    asyncio.run(run())


async def ended(reader: StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass


def test_bytes_go_both_ways_and_an_end_goes_on_alone() -> None:
    async def main(asker: Asker) -> None:
        answer, (reader, writer) = await asker.told(ask(1, RAW[BOB]))
        assert answer.status == pb.OK
        there, back = asker.target.opened[0]
        hello = pb.StopMessage.FromString(await read_frame(there, FRAME_LIMIT))
        assert hello.type == pb.StopMessage.CONNECT
        assert hello.peer.id == RAW[ALICE], "the callee hears who calls from the forwarder, which knows it"
        writer.write(bytes(3_000_000))
        assert len(await there.readexactly(3_000_000)) == 3_000_000
        back.write(b"answer")
        assert await reader.readexactly(6) == b"answer"
        writer.write_eof()
        assert await there.read() == b""
        back.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        back.close()
        assert await reader.read() == b""
        await asyncio.gather(*asker.tasks)
        assert asker.forwarder.carried == 3_000_016

    scenario(main)


def test_a_side_that_is_lost_ends_the_circuit_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(asker: Asker) -> None:
        _, (_, writer) = await asker.told(ask(1, RAW[BOB]))
        writer.transport.abort()
        await asyncio.gather(*asker.tasks)
        await ended(asker.target.opened[0][0])

    monkeypatch.setattr(splice, "HALF_OPEN", 0.05)
    scenario(main, ForwardConfig())


def test_who_does_not_read_is_not_read_for() -> None:
    async def main(asker: Asker) -> None:
        _, (_, writer) = await asker.told(ask(1, RAW[BOB]))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                for _ in range(200):
                    writer.write(bytes(1 << 20))
                    await writer.drain()
        unsent = writer.transport.get_write_buffer_size()
        assert unsent > 0, "the sender waits, instead of the forwarder holding all of it"

    scenario(main)


def test_a_reservation_needs_nothing_and_stays_until_the_other_side_closes() -> None:
    async def main(asker: Asker) -> None:
        answer, (reader, writer) = await asker.told(ask(0))
        assert answer.status == pb.OK
        assert list(answer.reservation.addrs) == [b"here"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read(1)
        writer.close()
        await asyncio.gather(*asker.tasks)

    scenario(main)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\xff\xff", pb.MALFORMED_MESSAGE),
        (ask(1, b"no peer"), pb.MALFORMED_MESSAGE),
        (circuits.status(Status.OK), pb.UNEXPECTED_MESSAGE),
        (ask(1, RAW[CAROL]), pb.CONNECTION_FAILED),
        (ask(1, RAW[ALICE]), pb.CONNECTION_FAILED),
    ],
    ids=["no message", "no peer id", "an answer", "not connected", "the caller"],
)
def test_what_cannot_be_is_refused_in_the_specifications_words(frame: bytes, code: int) -> None:
    async def main(asker: Asker) -> None:
        answer, _ = await asker.told(frame)
        assert answer.status == code

    scenario(main)


def test_limits_refuse_the_next_and_an_ended_circuit_makes_room() -> None:
    async def main(asker: Asker) -> None:
        asker.target.connected.add(RAW[CAROL])
        first = await asker.told(ask(1, RAW[BOB]))
        assert (await asker.told(ask(1, RAW[BOB])))[0].status == pb.OK
        assert (await asker.told(ask(1, RAW[BOB])))[0].status == pb.RESOURCE_LIMIT_EXCEEDED
        assert (await asker.told(ask(1, RAW[BOB]), CAROL))[0].status == pb.RESOURCE_LIMIT_EXCEEDED
        first[1][1].transport.abort()
        asker.target.opened[0][1].transport.abort()
        await asker.tasks[0]
        assert (await asker.told(ask(1, RAW[BOB]), CAROL))[0].status == pb.OK
        asker.forwarder.leaving = True
        assert (await asker.told(ask(0)))[0].status == pb.RESOURCE_LIMIT_EXCEEDED
        assert (await asker.told(ask(1, RAW[BOB])))[0].status == pb.RESOURCE_LIMIT_EXCEEDED

    scenario(main)


def test_blocked_peers_are_neither_carried_for_nor_to() -> None:
    async def main(asker: Asker) -> None:
        assert (await asker.told(ask(1, RAW[BOB])))[0].status == pb.PERMISSION_DENIED
        assert (await asker.told(ask(0), BOB))[0].status == pb.PERMISSION_DENIED

    scenario(main, ForwardConfig(blocked=(BOB,), handshake=0.5))


def test_a_target_that_says_nothing_or_no_costs_only_its_time() -> None:
    async def main(asker: Asker) -> None:
        asker.target.accepts = False
        answer, _ = await asker.told(ask(1, RAW[BOB]))
        assert answer.status == pb.CONNECTION_FAILED
        assert asker.forwarder.circuits == 0
        await ended(asker.target.opened[0][0])

    scenario(main)


def test_one_peer_has_few_requests_under_way_and_each_ends() -> None:
    async def main(asker: Asker) -> None:
        silent = [await pipe() for _ in range(3 * ASKING)]
        tasks = [asyncio.create_task(asker.forwarder.serve(ALICE, *theirs)) for _, theirs in silent]
        await asyncio.sleep(0)
        assert asker.forwarder._asking.of(ALICE) == ASKING
        answer, _ = await asker.told(ask(0), CAROL)
        assert answer.status == pb.OK, "others are not held up"
        await asyncio.gather(*tasks)
        for (reader, writer), _ in silent:
            await ended(reader)
            writer.transport.abort()

    scenario(main)


def test_an_idle_circuit_is_ended() -> None:
    async def main(asker: Asker) -> None:
        _, (reader, _) = await asker.told(ask(1, RAW[BOB]))
        await ended(reader)
        await asyncio.gather(*asker.tasks)

    scenario(main, ForwardConfig(idle=0.1))


def test_a_rate_is_kept() -> None:
    async def main(asker: Asker) -> None:
        _, (_, writer) = await asker.told(ask(1, RAW[BOB]))
        there, _ = asker.target.opened[0]
        await read_frame(there, FRAME_LIMIT)
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer.write(bytes(3_000_000))
        await there.readexactly(3_000_000)
        assert loop.time() - began > 0.3

    scenario(main, ForwardConfig(rate=2_000_000.0))
