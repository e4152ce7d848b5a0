"""The protocol as a state machine: one session of one server, driven by hand with all that may and may not be said."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swarm.config import ServerConfig
from swarm.contract import Contract
from swarm.testing import ROW, ExactRunner, LinkConditions, MemoryStream, Peer, Talk, VirtualClockLoop, World, embed
from swarm.types import Segment, ServerRecord, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

T = TypeVar("T")

BLOCKS = 3
PER_POSITION = 8 * BLOCKS
GRACE = 30.0
FORK, MOVE, FREE = pb.Operation.FORK, pb.Operation.MOVE, pb.Operation.FREE
IDS = st.integers(0, 4)
FEW = st.integers(0, 6)
CODE = pb.Failure


def outputs_of(inputs: list[int]) -> list[int]:
    """What one process computes for these inputs."""
    if not inputs:
        return []
    hidden = b"".join(map(ROW.pack, inputs))
    computed = ExactRunner().forward(Span(0, BLOCKS), [Segment((b"", 0), 0, len(inputs))], hidden)
    return [value for (value,) in ROW.iter_unpack(computed)]


@dataclass
class Model:
    """What the session must hold, in a form too simple to be wrong."""

    epoch: int = 0
    held: dict[int, list[int]] = field(default_factory=dict)
    history: dict[int, int] = field(default_factory=dict)
    upstream: str = "client"
    to_client: bool = True
    relayed: bool = False
    resumed: bool = False
    pending: list[pb.Step] = field(default_factory=list)
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    """(sequence, position, output) of everything that must have gone out in this epoch."""

    def hand_on(self, sequence: int, start: int, stop: int, want: int) -> None:
        if self.to_client and not self.relayed:
            start = stop - want
        outputs = outputs_of(self.held[sequence])
        self.sent += [(sequence, position, outputs[position]) for position in range(start, stop)]

    def operate(self, operation: pb.Operation) -> None:
        if operation.source not in self.held:
            return
        for table in (self.held, self.history):
            kept = table[operation.source]
            if operation.kind != FREE:
                short = kept[: operation.length] if isinstance(kept, list) else min(kept, operation.length)
                table[operation.target] = short  # type: ignore[assignment, index]
            if operation.kind != FORK:
                del table[operation.source]

    def accept(self, step: pb.Step) -> bool:
        """Take a well-formed step. False: it has a gap, and nothing of it is taken."""
        before = dict(self.held), dict(self.history)
        for operation in step.operations:
            self.operate(operation)
        if any(row.start > len(self.held.get(row.sequence, ())) for row in step.rows):
            self.held, self.history = before
            return False
        inputs = [value for (value,) in ROW.iter_unpack(step.hidden)]
        for row in step.rows:
            mine, inputs = inputs[: row.count], inputs[row.count :]
            have = len(self.held.get(row.sequence, ()))
            new = mine[have - row.start :]
            if new:
                self.held[row.sequence] = [*self.held.get(row.sequence, ()), *new]
                self.history.setdefault(row.sequence, have)
                self.hand_on(row.sequence, have, have + len(new), min(row.want, len(new)))
        return True


class Protocol(RuleBasedStateMachine):
    """The client is `client`; `up` may feed the session, `down` may be fed by it, `stranger` may do nothing."""

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner(loop_factory=VirtualClockLoop)
        self.do(self.build())
        self.model: Model | None = None
        self.session = b""
        self.opened = 0
        self.control: Talk | None = None
        self.inputs: Talk | None = None
        self.results: Talk | None = None
        self.epochs: list[int] = []
        self.number = 0

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Let something happen, and everything that follows from it."""

        async def settled() -> T:
            result = await work
            await asyncio.sleep(0.5)
            return result

        return self.runner.run(settled())

    async def build(self) -> None:
        config = ServerConfig(grace=GRACE, cache_bytes=1 << 20)
        self.world = World(blocks=BLOCKS, server_config=config, conditions=LinkConditions(delay=0.001))
        self.server = await self.world.add("server", Span(0, BLOCKS))
        self.peers = {name: Peer(self.world, name) for name in ("client", "up", "stranger", "down")}
        self.delivered: list[tuple[int, pb.Data]] = []
        down = self.peers["down"].host
        await down.serve(messages.DATA_PROTOCOL, self.take_in)
        record = ServerRecord("down", Contract("model", Span(0, 1), (bytes(8),)), expires=1e9)
        self.record = await self.world.network.directory(down).announce(record, self.world.model)

    async def take_in(self, stream: MemoryStream) -> None:
        """What the next hop is sent."""
        assert stream.peer_id == "server"
        hello = messages.decode(pb.Data, await stream.receive(1 << 30)).hello
        assert hello.session == b"D" * 16
        while True:
            self.delivered.append((hello.epoch, messages.decode(pb.Data, await stream.receive(1 << 30))))

    def replies(self, kind: str) -> list[Any]:
        """What the control stream has said of one kind since it was last asked."""
        assert self.control is not None
        return [getattr(reply, kind) for reply in self.control.take() if reply.WhichOneof("kind") == kind]

    def ask(self, **request: Any) -> None:
        assert self.control is not None
        self.control.take()
        self.do(self.control.say(pb.ControlRequest(**request)))

    def forget_streams(self) -> None:
        self.inputs = self.results = None

    # ---- opening and ending -----------------------------------------------------------------------------------

    @precondition(lambda self: self.model is None)
    @rule()
    def open(self) -> None:
        self.opened += 1
        self.session = self.opened.to_bytes(16, "big")
        client = self.peers["client"]
        self.control = self.do(client.control("server", client.opening("server", self.session)))
        (opened,) = self.replies("opened")
        assert (opened.session, opened.can_rollback, opened.max_positions) == (self.session, True, 4096)
        assert list(opened.fingerprints) == [bytes(32)] * BLOCKS
        self.model = Model()
        self.forget_streams()
        self.epochs = [0]

    @rule(
        change=st.sampled_from(
            [
                ({"model": "other"}, CODE.CONTRACT_MISMATCH),
                ({"dtype": "other"}, CODE.CONTRACT_MISMATCH),
                ({"quantization": "int8"}, CODE.CONTRACT_MISMATCH),
                ({"quantization": "x" * 300}, CODE.MALFORMED),
                ({"hidden_size": 2}, CODE.CONTRACT_MISMATCH),
                ({"row_bytes": 9}, CODE.CONTRACT_MISMATCH),
                ({"adapters": ["ab" * 32]}, CODE.CONTRACT_MISMATCH),
                ({"row_bytes": 0}, CODE.MALFORMED),
                ({"fingerprints": b"8 bytes!" * BLOCKS}, CODE.CONTRACT_MISMATCH),
                ({"last": BLOCKS + 1, "fingerprints": bytes(8) * (BLOCKS + 1)}, CODE.CONTRACT_MISMATCH),
                ({"positions": 1 << 30}, CODE.LIMIT),
                ({"session": b"short"}, CODE.MALFORMED),
            ]
        )
    )
    def open_in_vain(self, change: tuple[dict[str, Any], int]) -> None:
        changes, code = change
        request = self.peers["client"].opening("server", b"V" * 16, **changes)
        talk = self.do(self.peers["client"].control("server", request))
        assert talk.failures == [code]
        assert talk.over

    @precondition(lambda self: self.model is not None)
    @rule(who=st.sampled_from(["client", "stranger", "up"]))
    def open_what_is_open(self, who: str) -> None:
        talk = self.do(self.peers[who].control("server", self.peers[who].opening("server", self.session)))
        assert talk.failures == [CODE.UNAUTHORIZED]

    @precondition(lambda self: self.model is not None)
    @rule(who=st.sampled_from(["client", "client", "stranger", "up"]), known=st.booleans())
    def attach(self, who: str, known: bool) -> None:
        request = pb.ControlRequest(attach=pb.Attach(session=self.session if known else b"N" * 16))
        talk = self.do(self.peers[who].control("server", request))
        if not known:
            assert talk.failures == [CODE.SESSION_NOT_FOUND]
        elif who != "client":
            assert talk.failures == [CODE.UNAUTHORIZED]
        else:
            assert [reply.WhichOneof("kind") for reply in talk.heard] == ["opened"]
            assert self.control is None or self.control.over, "one control stream at a time"
            self.control = talk

    @precondition(lambda self: self.control is not None)
    @rule()
    def close(self) -> None:
        self.ask(close=pb.Close())
        assert self.control is not None
        assert self.control.over
        self.model = self.control = None
        self.forget_streams()

    @precondition(lambda self: self.control is not None)
    @rule(garbage=st.one_of(st.none(), st.binary(max_size=20)))
    def lose_the_control_stream(self, garbage: bytes | None) -> None:
        """It ends, or has to end because nonsense was said on it; the session does not."""
        assert self.control is not None
        if garbage is None:
            self.control.close()
            self.do(asyncio.sleep(0))
        else:
            try:
                messages.decode(pb.ControlRequest, garbage)
                return
            except messages.MalformedFrame:
                self.do(self.control.say(garbage))
            assert self.control.failures == [CODE.MALFORMED]
            assert self.control.over
        self.control = None

    @precondition(lambda self: self.control is not None)
    @rule(again=st.booleans())
    def begin_twice(self, again: bool) -> None:
        """Open and attach are first words only."""
        request = pb.ControlRequest(attach=pb.Attach(session=self.session))
        if again:
            request = self.peers["client"].opening("server", b"W" * 16)
        assert self.control is not None
        self.control.take()
        self.do(self.control.say(request))
        assert self.control.failures == [CODE.MALFORMED]
        self.control = None

    @precondition(lambda self: self.model is not None and self.control is None)
    @rule()
    def stay_away(self) -> None:
        self.do(asyncio.sleep(GRACE + 1.0))
        self.model = None
        self.forget_streams()

    @precondition(lambda self: self.model is not None and self.control is None)
    @rule()
    def come_back_in_time(self) -> None:
        self.do(asyncio.sleep(GRACE / 3))
        self.attach("client", True)

    # ---- epochs -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.control is not None)
    @rule(
        data=st.data(),
        ahead=st.sampled_from([-1, 0, 1, 1, 1, 7]),
        upstream=st.sampled_from(["", "client", "up"]),
        to_client=st.booleans(),
        relayed=st.booleans(),
    )
    def prepare(self, data: st.DataObject, ahead: int, upstream: str, to_client: bool, relayed: bool) -> None:
        model = self.model
        assert model is not None
        lengths = {s: len(inputs) for s, inputs in model.held.items()}
        alive = [
            pb.Sequence(
                id=s,
                length=data.draw(FEW, label="length") if data.draw(st.booleans()) else lengths.get(s, 3),
                parent=data.draw(IDS, label="parent"),
                parent_length=data.draw(FEW, label="parent length"),
            )
            for s in data.draw(st.sets(IDS), label="alive")
        ]
        message = pb.Prepare(epoch=max(model.epoch + ahead, 0), sequences=alive, upstream=upstream, relayed=relayed)
        self.send_prepare(model, message, to_client)

    def send_prepare(self, model: Model, message: pb.Prepare, to_client: bool) -> None:
        if not to_client:
            message.downstream.session = b"D" * 16
            message.downstream.record = self.record.signed
        self.ask(prepare=message)
        haves = self.replies("have")
        if message.epoch <= model.epoch:
            assert haves == [], "an epoch that is over is not prepared"
            return
        model = self.begin(model, message)
        (have,) = haves
        assert have.epoch == message.epoch
        assert {h.sequence: h.length for h in have.held} == {s: len(inputs) for s, inputs in model.held.items()}
        assert all(h.history <= h.length for h in have.held)
        assert {h.sequence: h.history for h in have.held} == {
            s: min(first, len(model.held[s])) for s, first in model.history.items()
        }

    def begin(self, model: Model, message: pb.Prepare) -> Model:
        """A new epoch in the model."""
        self.forget_streams()
        self.delivered.clear()
        held = {}
        for s in message.sequences:
            if s.id in model.held:
                held[s.id] = (model.held[s.id][: s.length], min(model.history[s.id], s.length))
            elif 0 < s.parent_length <= min(s.length, len(model.held.get(s.parent, ()))):
                shared = model.held[s.parent][: s.parent_length]
                held[s.id] = (shared, min(model.history[s.parent], s.parent_length))
        self.model = model = replace(
            model,
            epoch=message.epoch,
            held={s: inputs for s, (inputs, _) in held.items()},
            history={s: first for s, (_, first) in held.items()},
            upstream=message.upstream or "client",
            to_client=not message.HasField("downstream"),
            relayed=message.relayed,
            resumed=False,
            pending=[],
            sent=[],
        )
        return model

    @precondition(lambda self: self.control is not None)
    @rule(upstream=st.sampled_from(["client", "up"]), to_client=st.booleans(), relayed=st.booleans())
    def go(self, upstream: str, to_client: bool, relayed: bool) -> None:
        """An epoch as a good client makes it, in which everything stays and data can flow."""
        model = self.model
        assert model is not None
        alive = [pb.Sequence(id=s, length=len(inputs)) for s, inputs in model.held.items()]
        prepare = pb.Prepare(epoch=model.epoch + 1, sequences=alive, upstream=upstream, relayed=relayed)
        self.send_prepare(model, prepare, to_client)
        self.ask(resume=pb.Resume(epoch=model.epoch + 1))
        assert self.model is not None
        self.model.resumed = True
        self.feed(upstream, 0, True)
        if to_client:
            self.read_results("client", 0)

    @precondition(lambda self: self.control is not None)
    @rule(data=st.data(), right=st.sampled_from([True, True, True, False]))
    def resume(self, data: st.DataObject, right: bool) -> None:
        model = self.model
        assert model is not None
        positions = st.dictionaries(IDS, FEW, max_size=3)
        cuts, wants = data.draw(positions, label="cuts"), data.draw(positions, label="wants")
        replays = {
            s: data.draw(st.integers(model.history[s], len(model.held[s])), label="replay")
            for s in data.draw(st.sets(st.sampled_from(sorted(model.held))) if model.held else st.just(set()))
        }
        message = pb.Resume(
            epoch=model.epoch if right else model.epoch + 1,
            cuts=[pb.Position(sequence=s, position=p) for s, p in cuts.items()],
            replays=[pb.Position(sequence=s, position=p) for s, p in replays.items()],
            wants=[pb.Position(sequence=s, position=p) for s, p in wants.items()],
        )
        self.ask(resume=message)
        failures = self.replies("failure")
        if not right or model.resumed:
            assert failures == []
            return
        for s, position in cuts.items():
            if s in model.held and position < len(model.held[s]):
                model.held[s] = model.held[s][:position]
                model.history[s] = min(model.history[s], position)
                if position == 0:
                    del model.held[s], model.history[s]
        if any(s not in model.held or position > len(model.held[s]) for s, position in replays.items()):
            assert [failure.code for failure in failures] == [CODE.SESSION_NOT_FOUND]
            return
        for s, position in replays.items():
            length = len(model.held[s])
            for begin in range(position, length):
                model.hand_on(s, begin, begin + 1, int(begin >= wants.get(s, 1 << 24)))
        model.resumed = True
        pending, model.pending = model.pending, []
        for step in pending:
            if not model.accept(step):
                self.inputs = None
                return

    @precondition(lambda self: self.control is not None)
    @rule(nonce=st.integers(0, 2**64 - 1))
    def probe(self, nonce: int) -> None:
        model = self.model
        assert model is not None
        self.ask(probe=pb.Probe(nonce=nonce))
        (progress,) = self.replies("progress")
        assert (progress.nonce, progress.epoch, progress.queue) == (nonce, model.epoch, 0)
        lengths = {s: len(inputs) for s, inputs in model.held.items()}
        assert {m.sequence: (m.received, m.computed) for m in progress.moved} == {s: (n, n) for s, n in lengths.items()}

    # ---- data -------------------------------------------------------------------------------------------------

    @rule(
        who=st.sampled_from(["client", "client", "up", "up", "stranger"]),
        ahead=st.sampled_from([-1, 0, 0, 0, 0, 1]),
        known=st.sampled_from([True, True, True, False]),
    )
    def feed(self, who: str, ahead: int, known: bool) -> None:
        model = self.model
        epoch = max((model.epoch if model else 0) + ahead, 0)
        session = self.session if known and model else b"N" * 16
        talk = self.do(self.peers[who].data("server", session, epoch))
        if model is None or not known:
            assert talk.failures == [CODE.SESSION_NOT_FOUND]
        elif who != model.upstream or epoch != model.epoch:
            assert talk.failures == [CODE.UNAUTHORIZED]
        else:
            assert not talk.heard
            assert not talk.over
            assert self.inputs is None or self.inputs.over, "one upstream at a time"
            self.inputs, model.pending = talk, []

    @precondition(lambda self: self.inputs is not None)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        model = self.model
        assert model is not None
        self.send_step(model, self.draw_step(data, model))

    def draw_step(self, data: st.DataObject, model: Model) -> pb.Step:
        """Rows before, at, around and behind the end of what is held; operations on what is and what is not."""
        step, hidden = pb.Step(), b""
        for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 2]), label="operations")):
            source, target = data.draw(IDS, label="source"), data.draw(IDS, label="target")
            kind = data.draw(st.sampled_from([FORK, MOVE, FREE]), label="kind")
            if kind == FREE or source != target:
                step.operations.add(kind=kind, source=source, target=target, length=data.draw(FEW, label="length"))
        for sequence in sorted(data.draw(st.sets(IDS, max_size=3), label="sequences")):
            have = len(model.held.get(sequence, ()))
            start = max(have + data.draw(st.sampled_from([0, 0, 0, 0, -1, -2, -9, 1]), label="offset"), 0)
            count = data.draw(st.integers(1, 4), label="count")
            step.rows.add(sequence=sequence, start=start, count=count, want=data.draw(st.integers(0, count)))
            for i in range(count):
                self.number += 1
                hidden += embed(self.number, start + i)
        step.hidden = hidden
        return step

    def send_step(self, model: Model, step: pb.Step) -> None:
        assert self.inputs is not None
        if self.control is not None:
            self.control.take()
        self.do(self.inputs.say(pb.Data(step=step)))
        if not model.resumed:
            model.pending.append(step)
        elif not model.accept(step):
            assert self.inputs.failures == [CODE.GAP]
            if self.control is not None:
                (failure,) = self.replies("failure")
                assert (failure.code, failure.epoch) == (CODE.GAP, model.epoch)
            self.inputs = None

    @precondition(lambda self: self.inputs is not None and self.model is not None and self.model.resumed)
    @rule(
        step=st.sampled_from(
            [
                pb.Step(rows=[pb.Rows(count=1)], hidden=bytes(7)),
                pb.Step(rows=[pb.Rows(count=2)], hidden=bytes(8)),
                pb.Step(rows=[pb.Rows(count=0)]),
                pb.Step(rows=[pb.Rows(count=1, want=2)], hidden=bytes(8)),
                pb.Step(rows=[pb.Rows(count=1), pb.Rows(count=1)], hidden=bytes(16)),
                pb.Step(rows=[pb.Rows(start=2**32 - 1, count=1)], hidden=bytes(8)),
                pb.Step(hidden=bytes(8)),
                pb.Step(operations=[pb.Operation(kind=7)]),  # type: ignore[arg-type]
                pb.Step(operations=[pb.Operation(kind=MOVE, source=1, target=1, length=1)]),
                pb.Step(operations=[pb.Operation(length=2**32 - 1, target=1)]),
            ]
        )
    )
    def step_out_of_bounds(self, step: pb.Step) -> None:
        assert self.inputs is not None
        self.do(self.inputs.say(pb.Data(step=step)))
        assert self.inputs.failures == [CODE.MALFORMED]
        assert self.inputs.over
        self.inputs = None

    @precondition(lambda self: self.inputs is not None and self.model is not None and self.model.resumed)
    @rule(hello=st.booleans())
    def say_something_else(self, hello: bool) -> None:
        assert self.inputs is not None
        word = pb.Data(hello=pb.Hello(session=self.session)) if hello else pb.Data(failure=pb.Failure())
        self.do(self.inputs.say(word))
        assert self.inputs.failures == [CODE.MALFORMED]
        self.inputs = None

    @rule(who=st.sampled_from(["client", "client", "up", "stranger"]), ahead=st.sampled_from([-1, 0, 0, 0, 1]))
    def read_results(self, who: str, ahead: int) -> None:
        model = self.model
        if self.results is not None:
            return
        epoch = max((model.epoch if model else 0) + ahead, 0)
        talk = self.do(self.peers[who].data("server", self.session, epoch, pb.Hello.RESULTS))
        if model is None:
            assert talk.failures == [CODE.SESSION_NOT_FOUND]
        elif who != "client" or epoch != model.epoch or not model.to_client:
            assert talk.failures == [CODE.UNAUTHORIZED]
        else:
            assert not talk.over
            self.results = talk

    # ---- what happens at the server ---------------------------------------------------------------------------

    @precondition(lambda self: self.model is not None)
    @rule()
    def evict(self) -> None:
        model = self.model
        assert model is not None

        async def evict() -> None:
            self.server.hosted.sessions[self.session].evict()

        self.do(evict())
        model.held.clear()
        model.history.clear()

    @precondition(lambda self: self.model is not None)
    @rule()
    def drop_history(self) -> None:
        model = self.model
        assert model is not None
        self.server.hosted.sessions[self.session].drop_history()
        model.history = {s: len(inputs) for s, inputs in model.held.items()}

    # ---- what always holds ------------------------------------------------------------------------------------

    @invariant()
    def nothing_escapes(self) -> None:
        if hasattr(self, "server"):
            assert self.server.host.failures == []

    @invariant()
    def memory_is_what_is_held(self) -> None:
        if not hasattr(self, "model"):
            return
        positions = sum(map(len, self.model.held.values())) if self.model else 0
        load = self.server.hosted.statistics()
        assert self.server.bytes_held() == positions * PER_POSITION
        assert load.kv_bytes == positions * PER_POSITION
        assert load.sessions == (self.model is not None)
        if load.queue:  # what looks after the memory may be asking the engine at this very moment
            self.do(asyncio.sleep(0.001))
        assert self.server.hosted.statistics().queue == 0
        remembered = 0
        if self.model is not None:
            remembered = sum(len(i) - self.model.history[s] for s, i in self.model.held.items())
        assert load.history_bytes == remembered * ROW.size

    @invariant()
    def epochs_never_go_back(self) -> None:
        if hasattr(self, "model") and self.model is not None:
            assert self.server.hosted.sessions[self.session].epoch == self.model.epoch
            self.epochs.append(self.model.epoch)
            assert self.epochs == sorted(self.epochs)

    @invariant()
    def what_went_out_is_what_one_process_computes(self) -> None:
        if not hasattr(self, "model") or self.model is None:
            return
        model = self.model
        if model.to_client and self.results is not None and model.resumed:
            assert flatten(self.results.heard) == model.sent
        elif not model.to_client and model.resumed:
            assert {epoch for epoch, _ in self.delivered} <= {model.epoch}
            assert flatten([data for _, data in self.delivered]) == model.sent

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            try:
                self.do(self.world.close())
            finally:
                self.runner.close()


def flatten(frames: list[pb.Data]) -> list[tuple[int, int, int]]:
    """(sequence, position, output) of all steps, in order."""
    found = []
    for data in frames:
        assert data.WhichOneof("kind") == "step"
        numbers = iter(value for (value,) in ROW.iter_unpack(data.step.hidden))
        for row in data.step.rows:
            found += [(row.sequence, row.start + i, next(numbers)) for i in range(row.count)]
        assert next(numbers, None) is None
    return found


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=200, stateful_step_count=50)
