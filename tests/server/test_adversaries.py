"""Peers that break the protocol on purpose: each gets an error, and who shares a server with them notices nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.client.session import Session
from swarm.config import ClientConfig, ServerConfig
from swarm.contract import Contract
from swarm.errors import SessionClosed, SwarmError
from swarm.server.control import MAX_REPLIES
from swarm.testing import (
    ExactRunner,
    ForgetlessRunner,
    InlineEngine,
    MemoryStream,
    Peer,
    RoomyRunner,
    Talk,
    World,
    embed,
    generate,
    reference,
    run,
)
from swarm.types import Rows, Segment, SequenceKey, ServerRecord, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer

CODE = pb.Failure
PROMPT = list(range(7))
BLOCKS = 3
MINE = b"M" * 16
CONFIG = ServerConfig(max_sessions=40, grace=5.0, inbox_bytes=20_000, cache_bytes=1 << 20)


async def beside(
    attack: Callable[[World, Peer], Awaitable[None]],
    config: ServerConfig = CONFIG,
    make_runner: type[ExactRunner] = ExactRunner,
) -> None:
    """An attack on a server that serves somebody else meanwhile, who must notice nothing; nothing may remain of it."""
    world = World(blocks=BLOCKS, server_config=config, make_runner=make_runner)
    server = await world.add("s", Span(0, BLOCKS))
    good = world.session()
    tokens = await generate(good, PROMPT, 3)
    attacker = Peer(world, "attacker")
    attacking = asyncio.ensure_future(attack(world, attacker))
    while not attacking.done():
        tokens += await generate(good, tokens[-1:], 1)
    attacking.result()
    tokens += await generate(good, tokens[-1:], 3)
    assert tokens == reference(PROMPT, len(tokens), BLOCKS)
    assert good.reroutes == 0
    world.network.kill("attacker")
    await asyncio.sleep(60.0)
    assert len(server.hosted.sessions) == 1
    assert server.bytes_held() == server.hosted.statistics().kv_bytes == make_runner.room(good.length(0)) * 8 * BLOCKS
    await good.close()
    await asyncio.sleep(1.0)
    assert not server.hosted.sessions
    assert server.hosted.statistics().kv_bytes == server.hosted.statistics().history_bytes == server.bytes_held() == 0
    assert not server.host.statistics().served, "no stream of anybody's is left"
    await world.close()


async def opened(world: World, peer: Peer, session: bytes = MINE, *, to: pb.Prepare | None = None) -> Talk:
    """A session of the attacker's own, in epoch 1, ready for data."""
    talk = await peer.control("s", peer.opening("s", session))
    await talk.say(pb.ControlRequest(prepare=to or pb.Prepare(epoch=1)))
    await talk.say(pb.ControlRequest(resume=pb.Resume(epoch=1)))
    await asyncio.sleep(0.1)
    assert [reply.WhichOneof("kind") for reply in talk.take()] == ["opened", "have"]
    return talk


def step_of(count: int, start: int = 0, sequence: int = 0, want: int = 0) -> pb.Data:
    rows = [pb.Rows(sequence=sequence, start=start, count=count, want=want)]
    return pb.Data(step=pb.Step(rows=rows, hidden=b"".join(embed(i, i) for i in range(count))))


# ---- broken frames --------------------------------------------------------------------------------------------

VALID = [
    pb.ControlRequest(open=pb.Open(session=MINE, contract=messages.contract_message(
        Contract("model", Span(0, BLOCKS), (bytes(8),) * BLOCKS, dtype="exact", hidden_size=1, row_bytes=8)))),
    pb.ControlRequest(attach=pb.Attach(session=MINE)),
    pb.ControlRequest(prepare=pb.Prepare(epoch=3, sequences=[pb.Sequence(id=1, length=4)], upstream="attacker")),
    pb.ControlRequest(resume=pb.Resume(epoch=3, cuts=[pb.Position(sequence=1, position=2)])),
    pb.ControlRequest(probe=pb.Probe(nonce=9)),
    pb.ControlRequest(close=pb.Close()),
    pb.Data(hello=pb.Hello(session=MINE, epoch=1)),
    pb.Data(hello=pb.Hello(session=MINE, epoch=1, role=pb.Hello.RESULTS)),
    pb.Data(step=pb.Step(rows=[pb.Rows(count=2, want=1)], hidden=bytes(16),
                         operations=[pb.Operation(source=1, target=2, length=1)])),
]  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> list[bytes]:
    """Valid frames, valid frames with some bytes changed, truncated or repeated, and plain noise."""
    found: list[bytes] = []
    for _ in range(draw(st.integers(1, 8))):
        frame = bytearray(draw(st.one_of(st.sampled_from(VALID).map(lambda m: m.SerializeToString()), st.binary())))
        for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
            if frame:
                frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
        if draw(st.booleans()):
            del frame[draw(st.integers(0, len(frame))) :]
        found += [bytes(frame)] * draw(st.sampled_from([1, 1, 1, 3]))
    return found


@given(st.lists(st.tuples(st.booleans(), frames()), min_size=1, max_size=4), st.booleans())
@settings(max_examples=150)
def test_no_frames_whatsoever_disturb_anybody(streams: list[tuple[bool, list[bytes]]], ready: bool) -> None:
    async def attack(world: World, peer: Peer) -> None:
        if ready:
            await opened(world, peer)
        for control, sequence in streams:
            protocol = messages.CONTROL_PROTOCOL if control else messages.DATA_PROTOCOL
            talk = Talk(await peer.host.open_stream("s", protocol), pb.ControlReply if control else pb.Data)
            for frame in sequence:
                await talk.say(frame)
        await asyncio.sleep(1.0)

    run(beside(attack))


@pytest.mark.parametrize("protocol", [messages.CONTROL_PROTOCOL, messages.DATA_PROTOCOL])
@pytest.mark.parametrize("frame", [b"", b"\xff" * 50, VALID[0].SerializeToString()[:-3], VALID[3].SerializeToString()])
def test_a_broken_first_frame_is_called_malformed(protocol: str, frame: bytes) -> None:
    async def attack(world: World, peer: Peer) -> None:
        kind = pb.ControlReply if protocol == messages.CONTROL_PROTOCOL else pb.Data
        talk = Talk(await peer.host.open_stream("s", protocol), kind)
        await talk.say(frame)
        await asyncio.sleep(1.0)
        assert talk.failures == [CODE.MALFORMED]
        assert talk.over

    run(beside(attack))


def test_frames_above_their_limit_end_the_stream_unread() -> None:
    async def attack(world: World, peer: Peer) -> None:
        await opened(world, peer)
        control = await peer.control("s", bytes((1 << 20) + 1))
        hello = Talk(await peer.host.open_stream("s", messages.DATA_PROTOCOL), pb.Data)
        await hello.say(bytes(4097))
        data = await peer.data("s", MINE, 1)
        await data.say(bytes((64 << 20) + 1))
        await asyncio.sleep(1.0)
        assert control.over
        assert hello.over
        assert data.over

    run(beside(attack))


def test_whoever_opens_streams_and_says_nothing_is_hung_up_on() -> None:
    async def attack(world: World, peer: Peer) -> None:
        talks = [await peer.control("s") for _ in range(50)]
        talks += [Talk(await peer.host.open_stream("s", messages.DATA_PROTOCOL), pb.Data) for _ in range(50)]
        await asyncio.sleep(CONFIG.open_timeout + 1.0)
        assert all(talk.over for talk in talks)

    run(beside(attack))


# ---- somebody else's session ----------------------------------------------------------------------------------


def test_a_stranger_may_not_touch_a_session_though_it_knows_its_id() -> None:
    async def attack(world: World, peer: Peer) -> None:
        (victim,) = world.servers["s"].hosted.sessions.values()
        talks = [
            await peer.control("s", pb.ControlRequest(attach=pb.Attach(session=victim.id))),
            await peer.control("s", peer.opening("s", victim.id)),
            await peer.data("s", victim.id, victim.epoch),
            await peer.data("s", victim.id, victim.epoch, pb.Hello.RESULTS),
            await peer.data("s", victim.id, victim.epoch + 1),
            await peer.data("s", victim.id, 0),
        ]
        for talk in talks[2:]:
            await talk.say(step_of(3, victim.statistics().computed[0]))
        await asyncio.sleep(1.0)
        assert all(talk.failures == [CODE.UNAUTHORIZED] for talk in talks)
        assert all(talk.over for talk in talks)

    run(beside(attack))


def test_the_upstream_of_the_last_epoch_cannot_slip_into_the_next_while_it_is_prepared() -> None:
    async def attack(world: World, peer: Peer) -> None:
        fed = Peer(world, "owner")
        control = await opened(world, fed, to=pb.Prepare(epoch=1, upstream="attacker"))
        old = await peer.data("s", MINE, 1)
        await old.say(step_of(300))
        await asyncio.sleep(0.012)
        # The engine is busy: between the fence and the Have there is time.
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=2, upstream="owner")))
        early = [await peer.data("s", MINE, 2) for _ in range(3)]
        await control.say(pb.ControlRequest(resume=pb.Resume(epoch=2)))
        for talk in early:
            await talk.say(step_of(5))
        await asyncio.sleep(1.0)
        session = world.servers["s"].hosted.sessions[MINE]
        assert session.epoch == 2
        assert session.statistics().received == {}, "nothing of it was taken"
        assert old.over
        assert all(talk.over for talk in early)
        await control.say(pb.ControlRequest(close=pb.Close()))
        await asyncio.sleep(0.1)

    run(beside(attack))


def test_data_of_an_old_epoch_meets_nobody() -> None:
    async def attack(world: World, peer: Peer) -> None:
        control = await opened(world, peer)
        old = await peer.data("s", MINE, 1)
        await old.say(step_of(2))
        await asyncio.sleep(0.1)
        # On its way while the epoch changes.
        await old.say(step_of(2, 2))
        prepare = pb.Prepare(epoch=2, sequences=[pb.Sequence(id=0, length=9)])
        await control.say(pb.ControlRequest(prepare=prepare))
        await old.say(step_of(2, 4))
        await asyncio.sleep(1.0)
        session = world.servers["s"].hosted.sessions[MINE]
        before = session.statistics().computed
        await control.say(pb.ControlRequest(resume=pb.Resume(epoch=2)))
        await old.say(step_of(2, before[0]))
        replayed = await peer.data("s", MINE, 1)
        await asyncio.sleep(1.0)
        assert old.over
        assert replayed.failures == [CODE.UNAUTHORIZED]
        assert session.statistics().computed == session.statistics().received == before

    run(beside(attack))


async def busy_for(world: World, seconds: float) -> None:
    """Let somebody's pass take the engine for so long."""
    engine = world.servers["s"].hosted.engine
    assert isinstance(engine, InlineEngine)
    usual, engine._seconds = engine._seconds, lambda positions: seconds
    await asyncio.sleep(0.05)
    engine._seconds = usual


def test_an_epoch_that_is_overtaken_while_it_is_prepared_is_not_answered() -> None:
    async def attack(world: World, peer: Peer) -> None:
        control = await opened(world, peer)
        await busy_for(world, 1.0)
        for epoch in (2, 3, 4):
            await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=epoch)))
        await asyncio.sleep(3.0)
        assert [reply.have.epoch for reply in control.heard] == [4]

    run(beside(attack))


def test_an_epoch_that_is_overtaken_while_it_is_resumed_resumes_nothing() -> None:
    async def attack(world: World, peer: Peer) -> None:
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(9))
        await asyncio.sleep(0.5)
        alive = [pb.Sequence(id=0, length=9)]
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=2, sequences=alive)))
        await asyncio.sleep(0.5)
        await busy_for(world, 1.0)
        for epoch, cut in ((2, 7), (3, 4)):
            if epoch == 3:
                await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=3, sequences=alive)))
            resume = pb.Resume(epoch=epoch, cuts=[pb.Position(sequence=0, position=cut)])
            await control.say(pb.ControlRequest(resume=resume))
        await asyncio.sleep(3.0)
        session = world.servers["s"].hosted.sessions[MINE]
        assert session.epoch == 3
        assert session.statistics().received == session.statistics().computed == {0: 4}

    run(beside(attack))


def test_an_epoch_that_begins_while_a_step_is_computed_says_what_there_is_after_it() -> None:
    async def attack(world: World, peer: Peer) -> None:
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await busy_for(world, 1.0)
        await data.say(step_of(5))
        await asyncio.sleep(1.2)
        await data.say(step_of(5, 5))
        await asyncio.sleep(0.0051)
        prepare = pb.Prepare(epoch=2, sequences=[pb.Sequence(id=0, length=99)])
        await control.say(pb.ControlRequest(prepare=prepare))
        await control.say(pb.ControlRequest(resume=pb.Resume(epoch=2)))
        await asyncio.sleep(1.0)
        session = world.servers["s"].hosted.sessions[MINE]
        told = {h.sequence: h.length for h in control.heard[0].have.held}
        assert told == session.statistics().computed == session.statistics().received

    run(beside(attack))


class Fragile(ExactRunner):
    """Fails on one row, when half of the work is done."""

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        outputs = super().forward(span, segments, hidden)
        if embed(666, 0) in bytes(hidden):
            raise ValueError("no such row")
        return outputs


def test_a_failure_while_the_next_epoch_is_prepared_leaves_nothing_that_is_not_to_be_trusted() -> None:
    async def main() -> None:
        world = World(blocks=BLOCKS, make_runner=Fragile)
        server = await world.add("s", Span(0, BLOCKS))
        peer = Peer(world, "peer")
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(5))
        await asyncio.sleep(0.5)
        await busy_for(world, 1.0)
        row = pb.Rows(sequence=0, start=5, count=1)
        await data.say(pb.Data(step=pb.Step(rows=[row], hidden=embed(666, 0))))
        await asyncio.sleep(0.006)
        alive = [pb.Sequence(id=0, length=6)]
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=2, sequences=alive)))
        await asyncio.sleep(1.5)
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=3, sequences=alive)))
        await asyncio.sleep(0.5)
        assert CODE.COMPUTE_FAILED in control.failures
        assert control.heard[-1].have == pb.Have(epoch=3)
        assert server.bytes_held() == 0
        await world.close()

    run(main())


def test_what_is_to_be_sent_again_does_not_count_as_forwarded_until_it_is() -> None:
    async def attack(world: World, peer: Peer) -> None:
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(9))
        await asyncio.sleep(0.5)
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=2, sequences=[pb.Sequence(id=0, length=9)])))
        place = [pb.Position(sequence=0, position=3)]
        await control.say(pb.ControlRequest(resume=pb.Resume(epoch=2, replays=place, wants=place)))
        await asyncio.sleep(0.5)
        await control.say(pb.ControlRequest(probe=pb.Probe(nonce=1)))
        await asyncio.sleep(0.5)
        results = await peer.data("s", MINE, 2, pb.Hello.RESULTS)
        await asyncio.sleep(0.5)
        await control.say(pb.ControlRequest(probe=pb.Probe(nonce=2)))
        await asyncio.sleep(0.5)
        moved = [reply.progress.moved[0] for reply in control.heard if reply.WhichOneof("kind") == "progress"]
        assert [(m.received, m.computed, m.forwarded) for m in moved] == [(9, 9, 3), (9, 9, 9)]
        assert [(row.start, row.count) for frame in results.heard for row in frame.step.rows] == [(3, 6)]

    run(beside(attack))


def test_blocks_that_cannot_roll_back_forget_all_when_they_are_told_to_forget_some() -> None:
    async def main() -> None:
        world = World(blocks=BLOCKS, make_runner=ForgetlessRunner)
        server = await world.add("s", Span(0, BLOCKS))
        peer = Peer(world, "peer")
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(9))
        await asyncio.sleep(0.5)
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=2, sequences=[pb.Sequence(id=0, length=9)])))
        resume = pb.Resume(epoch=2, cuts=[pb.Position(sequence=0, position=4)])
        await control.say(pb.ControlRequest(resume=resume))
        await asyncio.sleep(0.5)
        assert server.hosted.sessions[MINE].statistics().computed == {}
        assert server.bytes_held() == 0
        await world.close()

    run(main())


# ---- floods ---------------------------------------------------------------------------------------------------


def test_thousands_of_opens_are_busy_beyond_the_limit() -> None:
    async def attack(world: World, peer: Peer) -> None:
        talks = [await peer.control("s", peer.opening("s", i.to_bytes(16, "big"))) for i in range(1, 1001)]
        await asyncio.sleep(1.0)
        kinds = [reply.WhichOneof("kind") for talk in talks for reply in talk.heard]
        assert kinds.count("opened") == CONFIG.max_sessions - 1
        assert all(talk.failures in ([], [CODE.BUSY]) for talk in talks)
        assert len(kinds) == 1000

    run(beside(attack))


def test_a_flood_of_prepares_is_answered_in_turn_and_only_the_last_epoch_lives() -> None:
    async def attack(world: World, peer: Peer) -> None:
        control = await opened(world, peer)
        for epoch in range(2, 1000):
            await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=epoch)))
            await control.say(pb.ControlRequest(resume=pb.Resume(epoch=epoch - 1)))
        await asyncio.sleep(10.0)
        session = world.servers["s"].hosted.sessions[MINE]
        assert session.epoch == 999
        haves = [reply.have.epoch for reply in control.heard if reply.WhichOneof("kind") == "have"]
        assert haves == sorted(set(haves))
        assert haves[-1] == 999

    run(beside(attack))


def test_a_manifest_cannot_fork_one_sequence_into_more_than_there_is_room_for() -> None:
    async def attack(world: World, peer: Peer) -> None:
        server = world.servers["s"]
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(2000))
        await asyncio.sleep(2.0)
        many = [pb.Sequence(id=i, length=2000, parent=0, parent_length=2000 * (i > 0)) for i in range(4000)]
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=2, sequences=many)))
        await asyncio.sleep(1.0)
        assert server.bytes_held() <= CONFIG.cache_bytes
        short = [pb.Sequence(id=i, length=2000, parent=0, parent_length=int(i > 0)) for i in range(4000)]
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=3, sequences=short)))
        await asyncio.sleep(1.0)
        assert len(server.hosted.sessions[MINE].statistics().computed) <= CONFIG.max_sequences
        assert server.bytes_held() <= server.hosted.statistics().kv_bytes <= CONFIG.cache_bytes

    run(beside(attack))


def test_a_step_cannot_fork_one_sequence_into_more_than_there_is_room_for() -> None:
    async def attack(world: World, peer: Peer) -> None:
        server = world.servers["s"]
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(2000))
        forks = [pb.Operation(kind=pb.Operation.FORK, source=0, target=i, length=2000) for i in range(1, 200)]
        await data.say(pb.Data(step=pb.Step(operations=forks)))
        await asyncio.sleep(2.0)
        assert data.failures == control.failures == [CODE.LIMIT], "it could not have so much if it were alone"
        assert data.heard[-1].failure.limit == "cache_bytes"
        assert server.bytes_held() <= CONFIG.cache_bytes
        assert server.hosted.sessions[MINE].statistics().received == {0: 2000}, "nothing of the step was taken"

    run(beside(attack))


def test_tens_of_thousands_of_short_sequences_take_no_more_than_the_budget() -> None:
    """Each takes the room of 64 positions: counted by its positions it would take 64 times what is counted."""
    most = 0

    async def attack(world: World, peer: Peer) -> None:
        nonlocal most
        server, many = world.servers["s"], range(CONFIG.max_sequences)
        rows = [pb.Rows(sequence=i, count=1) for i in many]
        for number in range(1 + 26_000 // len(many)):
            session = number.to_bytes(16, "big")
            await opened(world, peer, session)
            for size in (20, len(many)):
                data = await peer.data("s", session, 1)
                await data.say(pb.Data(step=pb.Step(rows=rows[:size], hidden=bytes(8 * size))))
            await asyncio.sleep(0.2)
            most = max(most, server.bytes_held())

    run(beside(attack, replace(CONFIG, max_sessions=256), RoomyRunner))
    assert CONFIG.cache_bytes / 2 < most <= CONFIG.cache_bytes


def test_what_is_copied_and_freed_in_one_step_counts_while_there_are_both() -> None:
    async def attack(world: World, peer: Peer) -> None:
        server = world.servers["s"]
        await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await peer.data("s", MINE, 1, pb.Hello.RESULTS)
        await data.say(step_of(4000))
        copies = [pb.Operation(kind=pb.Operation.FORK, source=0, target=i, length=4000) for i in range(1, 6)]
        await data.say(pb.Data(step=pb.Step(operations=copies)))
        await asyncio.sleep(2.0)
        held = server.bytes_held()
        assert held > CONFIG.cache_bytes / 2
        copies = [pb.Operation(kind=pb.Operation.FORK, source=0, target=i, length=4000) for i in range(6, 12)]
        ends = [pb.Operation(kind=pb.Operation.FREE, source=i) for i in range(6)]
        await data.say(pb.Data(step=pb.Step(operations=[*copies, *ends])))
        await asyncio.sleep(1.0)
        assert data.failures == [CODE.BUSY]
        assert server.bytes_held() <= held + 10_000, "what the other has computed meanwhile"

    run(beside(attack))


def test_what_is_held_by_mistake_is_noticed_and_not_to_be_had(caplog: pytest.LogCaptureFixture) -> None:
    class Leaking(ExactRunner):
        """What is freed stays."""

        leaked = 0

        def free(self, sequence: SequenceKey) -> None:
            held = super().bytes_held()
            super().free(sequence)
            self.leaked += held - super().bytes_held()

        def bytes_held(self) -> int:
            return super().bytes_held() + self.leaked

    async def main() -> None:
        world = World(blocks=BLOCKS, server_config=replace(CONFIG, prefix_share=0.0), make_runner=Leaking)
        server, peer = await world.add("s", Span(0, BLOCKS)), Peer(world, "peer")
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(3000))
        await asyncio.sleep(10.0)
        free = server.hosted.statistics().free_positions
        await control.say(pb.ControlRequest(close=pb.Close()))
        await asyncio.sleep(20.0)
        assert "more than the 0 that are counted" in caplog.text
        assert server.hosted.statistics().free_positions == free
        server.runner.leaked = 0  # type: ignore[attr-defined]
        await asyncio.sleep(20.0)
        assert server.hosted.statistics().free_positions == CONFIG.cache_bytes // (8 * BLOCKS)
        await world.close()

    run(main())


@pytest.mark.parametrize("rows", [True, False])
def test_no_session_has_more_sequences_than_are_allowed(rows: bool) -> None:
    async def attack(world: World, peer: Peer) -> None:
        await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        many = range(CONFIG.max_sequences + 1)
        if rows:
            step = pb.Step(rows=[pb.Rows(sequence=i, count=1) for i in many], hidden=bytes(8 * len(many)))
        else:
            await data.say(step_of(1))
            forks = [pb.Operation(kind=pb.Operation.FORK, source=0, target=i, length=1) for i in many if i]
            step = pb.Step(operations=forks)
        await data.say(pb.Data(step=step))
        await asyncio.sleep(1.0)
        assert data.failures == [CODE.LIMIT]
        (failure,) = [frame.failure for frame in data.heard]
        assert (failure.limit, failure.allowed, failure.asked) == ("sequences", len(many) - 1, len(many))
        assert len(world.servers["s"].hosted.sessions[MINE].statistics().received) <= 1

    run(beside(attack))


@pytest.mark.parametrize(
    "rows",
    [
        [pb.Rows(count=2**32 - 1)],
        [pb.Rows(count=2**24)],
        [pb.Rows(start=2**24, count=1)],
        [pb.Rows(count=1, want=2**32 - 1)],
        [pb.Rows(sequence=i, count=2**20) for i in range(2000)],
        [pb.Rows(sequence=i, count=1) for i in range(messages.MAX_SEQUENCES + 1)],
    ],
)
def test_a_step_that_says_more_than_it_brings_is_malformed(rows: list[pb.Rows]) -> None:
    async def attack(world: World, peer: Peer) -> None:
        await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(pb.Data(step=pb.Step(rows=rows, hidden=bytes(8))))
        await asyncio.sleep(1.0)
        assert data.failures == [CODE.MALFORMED]

    run(beside(attack))


def test_a_sequence_beyond_the_context_is_too_long() -> None:
    async def attack(world: World, peer: Peer) -> None:
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(4097))
        await asyncio.sleep(1.0)
        assert data.failures == control.failures == [CODE.TOO_LONG]

    run(beside(attack))


@pytest.mark.parametrize("empty", [True, False])
def test_whoever_never_reads_results_is_not_read_from_for_long(empty: bool) -> None:
    """Steps pile up to the limit and no further, be they rows or nothing but operations."""

    async def attack(world: World, peer: Peer) -> None:
        await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        session = world.servers["s"].hosted.sessions[MINE]
        await data.say(step_of(1))
        fork = pb.Data(step=pb.Step(operations=[pb.Operation(kind=pb.Operation.FORK, source=0, target=1, length=1)]))
        for i in range(500):
            await data.say(fork if empty else step_of(10, 1 + 10 * i, want=10))
        await asyncio.sleep(20.0)
        outbox = session._outbox
        assert outbox is not None
        assert CONFIG.inbox_bytes < outbox.unsent < 2 * CONFIG.inbox_bytes
        assert len(outbox._steps) < 100

    run(beside(attack))


@pytest.mark.parametrize("how", ["epoch", "close", "evict"])
def test_a_reader_that_waits_for_room_is_let_go_when_the_epoch_ends(how: str) -> None:
    async def attack(world: World, peer: Peer) -> None:
        server = world.servers["s"]
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        for i in range(100):
            await data.say(step_of(100, 100 * i, want=100))
        await asyncio.sleep(5.0)
        streams = server.host.statistics().served
        if how == "epoch":
            await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=2)))
        elif how == "close":
            await control.say(pb.ControlRequest(close=pb.Close()))
        else:
            session = server.hosted.sessions[MINE]
            session._ledger.received[0] += 1  # as if a step were under way
            session.evict()
        await asyncio.sleep(1.0)
        assert data.over
        assert server.host.statistics().served < streams

    run(beside(attack))


def test_a_step_under_way_when_its_session_is_evicted_is_answered_at_once() -> None:
    async def attack(world: World, peer: Peer) -> None:
        server = world.servers["s"]
        control = await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        await data.say(step_of(1000))
        await asyncio.sleep(0.01)
        assert server.hosted.statistics().queue
        server.hosted.sessions[MINE].evict()
        await asyncio.sleep(0.02)
        assert control.failures == [CODE.GAP]
        assert data.over
        await asyncio.sleep(1.0)
        assert server.hosted.sessions[MINE].statistics().computed == {}

    run(beside(attack))


def test_whoever_never_reads_replies_is_hung_up_on() -> None:
    async def attack(world: World, peer: Peer) -> None:
        server = world.servers["s"]
        stream = await peer.host.open_stream("s", messages.CONTROL_PROTOCOL)
        await stream.send(peer.opening("s", MINE).SerializeToString())
        probe = pb.ControlRequest(probe=pb.Probe(nonce=2**63)).SerializeToString()
        sent = 0
        try:
            while sent < 300_000:
                await stream.send(probe)
                sent += 1
                if sent % 1000 == 0:
                    await asyncio.sleep(0.01)
        except SwarmError:
            pass
        assert sent < 300_000
        control = server.handler._controls.get(MINE)
        assert control is None or control._replies.qsize() <= MAX_REPLIES

    run(beside(attack))


def test_an_attached_control_stream_replaces_the_one_before() -> None:
    async def attack(world: World, peer: Peer) -> None:
        first = await opened(world, peer)
        second = await peer.control("s", pb.ControlRequest(attach=pb.Attach(session=MINE)))
        await asyncio.sleep(0.1)
        assert first.over
        await second.say(pb.ControlRequest(probe=pb.Probe(nonce=1)))
        await asyncio.sleep(CONFIG.grace * 3)
        assert [reply.WhichOneof("kind") for reply in second.heard] == ["opened", "progress"]

    run(beside(attack))


def test_each_time_a_control_stream_is_lost_there_is_a_whole_time_of_grace() -> None:
    async def attack(world: World, peer: Peer) -> None:
        control = await opened(world, peer)
        for _ in range(5):
            control.close()
            await asyncio.sleep(CONFIG.grace * 0.8)
            control = await peer.control("s", pb.ControlRequest(attach=pb.Attach(session=MINE)))
            await asyncio.sleep(0.1)
            assert not control.failures
        # An id that is used again belongs to the new session, whatever still waits for the old one.
        control.close()
        await asyncio.sleep(CONFIG.grace * 0.5)
        control = await peer.control("s", pb.ControlRequest(attach=pb.Attach(session=MINE)))
        await control.say(pb.ControlRequest(close=pb.Close()))
        await asyncio.sleep(0.1)
        control = await opened(world, peer)
        control.close()
        await asyncio.sleep(CONFIG.grace * 0.8)
        assert MINE in world.servers["s"].hosted.sessions

    run(beside(attack))


def test_whoever_is_to_dial_a_forged_record_says_that_the_link_is_down() -> None:
    async def main() -> None:
        world = World(blocks=BLOCKS)
        await world.add("s", Span(0, BLOCKS))
        peer = Peer(world, "attacker")
        talk = await peer.control("s", peer.opening("s", MINE))
        downstream = pb.Downstream(session=b"D" * 16, record=b"forged")
        await talk.say(pb.ControlRequest(prepare=pb.Prepare(epoch=1, downstream=downstream)))
        await talk.say(pb.ControlRequest(resume=pb.Resume(epoch=1)))
        await asyncio.sleep(1.0)
        assert [reply.WhichOneof("kind") for reply in talk.heard] == ["opened", "have", "link_down"]
        await world.close()

    run(main())


# ---- servers that lie -----------------------------------------------------------------------------------------


class Liar:
    """Stands between the streams of an honest server and the world, and changes what the server says.

    `on_reply(reply)` and `on_data(data)` return what is said instead: a message, several, or nothing.
    """

    def __init__(self, world: World, name: str) -> None:
        self.host = world.servers[name].host
        self.on_reply: Callable[[pb.ControlReply], list[Any]] = lambda reply: [reply]
        self.on_data: Callable[[pb.Data], list[Any]] = lambda data: [data]
        accept, dial = self.host._accept, self.host.open_stream

        def accepting(protocol: str, stream: MemoryStream) -> None:
            self.tamper(stream, protocol)
            accept(protocol, stream)

        async def dialling(*arguments: Any) -> MemoryStream:
            stream = await dial(*arguments)
            self.tamper(stream)
            return stream

        self.host._accept = accepting  # type: ignore[method-assign]
        self.host.open_stream = dialling  # type: ignore[method-assign]

    def tamper(self, stream: MemoryStream, protocol: str = messages.DATA_PROTOCOL) -> None:
        send = stream.send

        async def lying(frame: bytes) -> None:
            if protocol == messages.CONTROL_PROTOCOL:
                instead = self.on_reply(messages.decode(pb.ControlReply, frame))
            else:
                instead = self.on_data(messages.decode(pb.Data, frame))
            for message in instead:
                if message is None:
                    stream.close()
                    return
                await send(message if isinstance(message, bytes) else message.SerializeToString())

        stream.send = lying  # type: ignore[method-assign]


async def despite(lie: Callable[[Liar], None], *, broken: bool, limit: float = 300.0, relayed: bool = False) -> Session:
    """Generate past a liar, who serves the middle of the route and is the fastest there; others are honest.

    `broken`: it begins to lie when all its streams break; `relayed`: its links lead through the client.
    """
    world = World(blocks=9)
    for name, span in (("a", Span(0, 3)), ("c", Span(6, 9)), ("a2", Span(0, 3)), ("c2", Span(6, 9))):
        await world.add(name, span, decode_ms=1.0 if len(name) == 1 else 5.0)
    await world.add("liar", Span(3, 6), decode_ms=0.1)
    liar = Liar(world, "liar")
    session = world.session(ClientConfig(max_wait=120.0))
    tokens = await generate(session, PROMPT, 3)
    assert [hop.peer_id for hop in session.route.hops] == ["a", "liar", "c"]  # type: ignore[union-attr]
    await world.add("honest", Span(3, 6), decode_ms=5.0)
    session.view.records = []
    if relayed:
        session.view.trust.links.add(("liar", "c"), asyncio.get_running_loop().time(), 1e6)
        session.view.trust.links.add(("a", "liar"), asyncio.get_running_loop().time(), 1e6)
        for stream in list(world.servers["a"].host.streams):
            stream.close()
        tokens += await generate(session, tokens[-1:], 1)
        assert session.route.relayed_links == {0, 1}  # type: ignore[union-attr]
    began = asyncio.get_running_loop().time()
    lie(liar)
    for stream in list(liar.host.streams) if broken else ():
        stream.drop()
    tokens += await asyncio.wait_for(generate(session, tokens[-1:], 30), limit * 10)
    assert asyncio.get_running_loop().time() - began < limit
    assert tokens == reference(PROMPT, len(tokens))
    await session.close()
    await asyncio.sleep(60.0)
    for server in world.servers.values():
        assert server.bytes_held() == 0, server.name
        assert server.host.failures == []
    await world.close()
    return session


def about_have(change: Callable[[pb.Held], None]) -> Callable[[Liar], None]:
    def lie(liar: Liar) -> None:
        def on_reply(reply: pb.ControlReply) -> list[Any]:
            for held in reply.have.held if reply.WhichOneof("kind") == "have" else ():
                change(held)
            return [reply]

        liar.on_reply = on_reply

    return lie


def longer(held: pb.Held) -> None:
    held.length += 5


def much_longer(held: pb.Held) -> None:
    held.length, held.history = 2**32 - 1, 0


def shorter(held: pb.Held) -> None:
    held.length //= 2
    held.history = min(held.history, held.length)


def nothing(held: pb.Held) -> None:
    held.length = held.history = 0


def all_remembered(held: pb.Held) -> None:
    held.history = 0


@pytest.mark.parametrize("change", [longer, much_longer, shorter, nothing, all_remembered])
def test_a_server_lies_about_what_it_holds(change: Callable[[pb.Held], None]) -> None:
    run(despite(about_have(change), broken=True))


def test_a_server_says_that_it_holds_what_it_lost() -> None:
    """As if it had not been restarted: each time its upstream goes on behind the end of what there is."""

    def on_reply(reply: pb.ControlReply) -> list[Any]:
        if reply.WhichOneof("kind") == "have":
            reply.have.ClearField("held")
            reply.have.held.add(sequence=0, length=9, history=9)
        return [reply]

    async def main() -> None:
        world = World(blocks=9)
        for name, span in (("a", Span(0, 3)), ("c", Span(6, 9))):
            await world.add(name, span)
        await world.add("liar", Span(3, 6), decode_ms=0.1)
        liar = Liar(world, "liar")
        session = world.session()
        tokens = await generate(session, PROMPT, 5)
        await world.add("honest", Span(3, 6), decode_ms=5.0)
        liar.on_reply = on_reply
        for held in world.servers["liar"].hosted.sessions.values():
            held.evict()
        began = asyncio.get_running_loop().time()
        tokens += await generate(session, tokens[-1:], 20)
        assert tokens == reference(PROMPT, 25)
        assert asyncio.get_running_loop().time() - began < 5.0
        assert [hop.peer_id for hop in session.route.hops] == ["a", "honest", "c"]  # type: ignore[union-attr]
        await world.close()

    run(main())


def replies(**instead: Any) -> Callable[[Liar], None]:
    """Answer one kind of message with others: `have=[...]`."""

    def lie(liar: Liar) -> None:
        liar.on_reply = lambda reply: instead.get(reply.WhichOneof("kind") or "", [reply])

    return lie


def says(**kind: Any) -> pb.ControlReply:
    return pb.ControlReply(**kind)


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(replies(have=[]), id="never says what it has"),
        pytest.param(replies(have=[says(opened=pb.Opened())]), id="answers something else"),
        pytest.param(replies(have=[b"\xff\xff"]), id="answers nonsense"),
        pytest.param(replies(have=[bytes((1 << 20) + 1)]), id="answers too much"),
        pytest.param(replies(have=[None]), id="hangs up"),
        pytest.param(replies(have=[says(failure=pb.Failure(code=99))]), id="fails in a way unheard of"),
        pytest.param(replies(have=[says(failure=pb.Failure(code=CODE.BUSY))]), id="is always busy, but not for long"),
        pytest.param(replies(have=[says(failure=pb.Failure(code=CODE.SESSION_NOT_FOUND))]), id="forgets the session"),
        pytest.param(replies(have=[says(have=pb.Have(epoch=1))] * 2), id="talks of another epoch"),
        pytest.param(replies(opened=[], have=[None]), id="never opens again"),
        pytest.param(
            replies(
                opened=[says(opened=pb.Opened(fingerprints=[b"another model's weights, 32 bytes"] * 3))], have=[None]
            ),
            id="opens other weights than it announced",
        ),
        pytest.param(replies(progress=[], have=[None]), id="answers no probes"),
    ],
)
def test_a_server_answers_badly(lie: Callable[[Liar], None]) -> None:
    session = run(despite(lie, broken=True))
    assert session.route.hops[1].peer_id == "honest"  # type: ignore[union-attr]


def floods(message: Callable[[int], pb.ControlReply], count: int = 200) -> Callable[[Liar], None]:
    """Say something unasked, often, in every epoch."""

    def lie(liar: Liar) -> None:
        def on_reply(reply: pb.ControlReply) -> list[Any]:
            if reply.WhichOneof("kind") == "have":
                return [reply, *(message(reply.have.epoch) for _ in range(count))]
            return [reply]

        liar.on_reply = on_reply

    return lie


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(floods(lambda epoch: says(link_down=pb.LinkDown(epoch=epoch))), id="link down"),
        pytest.param(floods(lambda epoch: says(leaving=pb.Leaving(deadline=1e9))), id="leaving"),
        pytest.param(floods(lambda epoch: says(leaving=pb.Leaving(deadline=float("nan")))), id="leaving, never"),
        pytest.param(floods(lambda epoch: says(progress=pb.Progress(nonce=2**64 - 1, epoch=epoch))), id="progress"),
        pytest.param(floods(lambda epoch: says(have=pb.Have(epoch=epoch))), id="have"),
        pytest.param(floods(lambda epoch: says(failure=pb.Failure(code=CODE.BUSY, epoch=epoch))), id="busy"),
        pytest.param(
            floods(lambda epoch: says(failure=pb.Failure(code=CODE.BUSY, retry_after=float("nan"), epoch=epoch))),
            id="busy, for no number of seconds",
        ),
        pytest.param(floods(lambda epoch: says(failure=pb.Failure(code=CODE.GAP, epoch=epoch))), id="gap"),
        pytest.param(floods(lambda epoch: says(failure=pb.Failure(epoch=epoch))), id="trouble"),
    ],
)
def test_a_server_floods(lie: Callable[[Liar], None]) -> None:
    run(despite(lie, broken=True))


def sends(instead: Callable[[pb.Data], list[Any]]) -> Callable[[Liar], None]:
    """Send other data than it computed."""

    def lie(liar: Liar) -> None:
        liar.on_data = lambda data: instead(data) if data.WhichOneof("kind") == "step" else [data]

    return lie


def later_by_one(data: pb.Data) -> list[Any]:
    for row in data.step.rows:
        row.start += 1
    return [data]


def short_of_a_byte(data: pb.Data) -> list[Any]:
    return [pb.Data(step=pb.Step(rows=data.step.rows, hidden=data.step.hidden[:-1]))]


DATA_LIES = [
    pytest.param(sends(lambda data: []), id="nothing"),
    pytest.param(sends(lambda data: [None]), id="the end"),
    pytest.param(sends(lambda data: [b"\xff\xff\xff"]), id="nonsense"),
    pytest.param(sends(short_of_a_byte), id="a byte less"),
    pytest.param(sends(later_by_one), id="positions that are not next"),
    pytest.param(sends(lambda data: [pb.Data(hello=pb.Hello())]), id="a hello"),
    pytest.param(sends(lambda data: [pb.Data(failure=pb.Failure())]), id="a failure"),
]


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("lie", DATA_LIES)
def test_a_hop_sends_garbage_to_the_next(lie: Callable[[Liar], None], relayed: bool) -> None:
    session = run(despite(lie, broken=False, relayed=relayed, limit=600.0))
    assert "liar" not in [hop.peer_id for hop in session.route.hops]  # type: ignore[union-attr]


@pytest.mark.parametrize("lie", DATA_LIES)
def test_the_last_hop_sends_garbage_to_the_client(lie: Callable[[Liar], None]) -> None:
    async def main() -> None:
        world = World(blocks=3)
        await world.add("liar", Span(0, 3), decode_ms=0.1)
        liar = Liar(world, "liar")
        session = world.session(ClientConfig(max_wait=120.0))
        tokens = await generate(session, PROMPT, 3)
        lie(liar)
        await world.add("honest", Span(0, 3), decode_ms=5.0)
        tokens += await asyncio.wait_for(generate(session, tokens[-1:], 10), 300.0)
        assert tokens == reference(PROMPT, 13, 3)
        await world.close()

    run(main())


def test_results_that_nobody_asked_for_are_dropped() -> None:
    def more(data: pb.Data) -> list[Any]:
        unknown = pb.Data(step=pb.Step(rows=[pb.Rows(sequence=77, count=2, want=2)], hidden=bytes(16)))
        earlier = pb.Data(step=pb.Step(rows=[pb.Rows(sequence=0, start=0, count=1, want=1)], hidden=bytes(8)))
        return [unknown, earlier, data, data, unknown, earlier]

    async def main() -> None:
        world = World(blocks=3)
        await world.add("liar", Span(0, 3))
        session = world.session()
        liar = Liar(world, "liar")
        sends(more)(liar)
        assert await generate(session, PROMPT, 20) == reference(PROMPT, 20, 3)
        assert session.reroutes == 0
        await world.close()

    run(main())


def test_a_record_that_lies_about_its_weights_is_found_out_at_opening() -> None:
    async def main() -> None:
        world = World(blocks=3)
        await world.add("honest", Span(0, 3), decode_ms=9.0)
        server = await world.add("liar", Span(0, 3), fingerprint=b"tuned", decode_ms=0.1)
        server.record = replace(server.record, contract=replace(server.record.contract, fingerprints=(bytes(8),) * 3))
        await server.directory.announce(replace(server.record, expires=1e9), world.model)
        session = world.session()
        assert await generate(session, PROMPT, 5) == reference(PROMPT, 5, 3)
        assert session.route.hops[0].peer_id == "honest"  # type: ignore[union-attr]
        await world.close()

    run(main())


def test_a_liar_who_is_alone_ends_in_a_typed_error() -> None:
    async def main(lie: Callable[[Liar], None]) -> None:
        world = World(blocks=3)
        await world.add("liar", Span(0, 3))
        liar = Liar(world, "liar")
        session = world.session(ClientConfig(max_wait=60.0))
        tokens = await generate(session, PROMPT, 3)
        lie(liar)
        for stream in list(liar.host.streams):
            stream.drop()
        with pytest.raises(SwarmError):
            await asyncio.wait_for(generate(session, tokens[-1:], 3), 2000.0)
        await world.close()

    for lie in (replies(have=[]), replies(have=[None]), replies(opened=[])):
        run(main(lie))


def test_a_frozen_upstream_that_wakes_feeds_nobody() -> None:
    async def main() -> None:
        world = World(blocks=9)
        for name, span in (("a", Span(0, 5)), ("b", Span(5, 9)), ("a2", Span(0, 5))):
            await world.add(name, span, decode_ms=1.0 if len(name) == 1 else 5.0)
        session = world.session()
        taken: list[str] = []

        def freeze(index: int) -> None:
            if index == 5:
                world.network.freeze("a")
                # It wakes, with a step in its hands, when the session has long moved on.
                asyncio.get_running_loop().call_later(9.0, world.network.thaw, "a")
            taken.append(session.route.hops[0].peer_id if session.route else "")

        assert await generate(session, PROMPT, 600, on_token=freeze) == reference(PROMPT, 600)
        assert session.reroutes == 1
        assert taken[-1] == "a2"
        await world.close()

    run(main())


def test_closing_while_a_session_is_being_opened_leaves_nothing_at_the_servers() -> None:
    async def main() -> None:
        for milliseconds in range(0, 80, 5):
            world = World(blocks=3)
            server = await world.add("s", Span(0, 3))
            session = world.session()
            step = asyncio.ensure_future(session.step([Rows(0, embed(1, 0), 1)]))
            await asyncio.sleep(milliseconds / 1000)
            await session.close()
            with contextlib.suppress(SessionClosed):
                await step
            await asyncio.sleep(1.0)
            assert not server.hosted.sessions, f"after {milliseconds} ms"
            assert server.bytes_held() == 0
            await world.close()

    run(main())


def test_a_hop_dials_only_servers_of_its_own_model() -> None:
    async def main() -> None:
        world = World(blocks=3)
        await world.add("s", Span(0, 3))
        peer, other = Peer(world, "peer"), Peer(world, "other")
        dialled: list[MemoryStream] = []

        async def handler(stream: MemoryStream) -> None:
            dialled.append(stream)

        await other.host.serve(messages.DATA_PROTOCOL, handler)  # type: ignore[arg-type]
        record = ServerRecord("other", Contract("another model", Span(0, 1), (bytes(8),)), expires=1e9)
        signed = await world.network.directory(other.host).announce(record, replace(world.model, key="another model"))
        talk = await peer.control("s", peer.opening("s", MINE))
        downstream = pb.Downstream(session=b"D" * 16, record=signed.signed)
        await talk.say(pb.ControlRequest(prepare=pb.Prepare(epoch=1, downstream=downstream)))
        await talk.say(pb.ControlRequest(resume=pb.Resume(epoch=1)))
        await asyncio.sleep(1.0)
        assert talk.heard[-1].WhichOneof("kind") == "link_down"
        assert not dialled
        await world.close()

    run(main())


# ---- what is kept of prompts -----------------------------------------------------------------------------------

TEXTS = [list(range(100, 132)), list(range(200, 232)), [*range(100, 116), *range(200, 216)]]
TRICKS = st.lists(
    st.tuples(
        st.sampled_from([None, None, pb.Operation.FREE, pb.Operation.MOVE, pb.Operation.FORK]),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from(TEXTS),
        st.sampled_from([8, 16, 16, 20]),
        st.sampled_from([0.0, 0.0, 0.0, 0.004, 1.0]),
    ),
    max_size=12,
)


def poison(tricks: list[Any]) -> None:
    """Somebody uses ids again for other texts, ends what is being computed, goes on with one text after another; then
    others ask what begins alike, on a server that shares."""

    async def main() -> None:
        config = ServerConfig(share_prefixes=True, prefix_share=1.0, cache_bytes=1 << 20)
        world = World(blocks=BLOCKS, server_config=config)
        await world.add("s", Span(0, BLOCKS))
        peer = Peer(world, "attacker")
        await opened(world, peer)
        data = await peer.data("s", MINE, 1)
        lengths: dict[int, int] = {}
        for kind, sequence, other, text, count, pause in tricks:
            step = pb.Step()
            if kind is not None and sequence != other:
                step.operations.add(kind=kind, source=other, target=sequence, length=lengths.get(other, 0))
                if other in lengths:
                    if kind != pb.Operation.FREE:
                        lengths[sequence] = lengths[other]
                    if kind != pb.Operation.FORK:
                        del lengths[other]
            start = lengths.get(sequence, 0)
            end = min(start + count, len(text))
            if start < end:
                step.rows.add(sequence=sequence, start=start, count=end - start)
                step.hidden = b"".join(embed(text[i], i) for i in range(start, end))
                lengths[sequence] = end
            await data.say(pb.Data(step=step))
            await asyncio.sleep(pause)
        await asyncio.sleep(1.0)
        for text in TEXTS:
            session = world.session()
            assert await generate(session, text, 2) == reference(text, 2, BLOCKS)
            await session.close()
        await world.close()

    run(main())


@given(TRICKS)
@settings(max_examples=300, deadline=None)
def test_nobody_can_leave_a_wrong_beginning_for_others(tricks: list[Any]) -> None:
    poison(tricks)


def test_ids_that_are_used_again_at_once_do_not_mix_texts() -> None:
    free, fork = pb.Operation.FREE, pb.Operation.FORK
    one, two, three = TEXTS
    for pause in (0.0, 0.001, 0.003, 0.005):
        poison([(None, 0, 1, one, 16, pause), (free, 1, 0, one, 16, pause), (None, 0, 1, two, 16, 1.0)])
    poison(
        [(None, 2, 0, two, 20, 0.0), (free, 1, 0, one, 16, 0.0), (None, 2, 2, three, 16, 0.0), (fork, 2, 1, two, 20, 1)]
    )
