"""One session as a hop serves it: who feeds it and whom it feeds, epoch by epoch, and what the engine does for it.

docs/protocol.md describes the state machine; what is held is in the ledger. Everything here runs on the event loop;
computing happens in the engine.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from swarm.accounting.weight import ANONYMOUS
from swarm.config import FRAME_LIMIT, ServerConfig
from swarm.contract import Contract
from swarm.errors import ComputeFailed, Gap, MalformedFrame, NetworkError, ServerBusy, SwarmError, Unauthorized
from swarm.jobs import Change, Copy, Forward, Kind
from swarm.net.base import Host, Stream
from swarm.net.flight import Flight
from swarm.net.identity import Identity
from swarm.server import prefixes
from swarm.server.budget import CacheBudget
from swarm.server.engine import Engine
from swarm.server.given import NOTHING_GIVEN, Given
from swarm.server.ledger import Accepted, Ledger, SessionLimits
from swarm.server.manifest import Changes
from swarm.server.outbox import Outbox
from swarm.server.prefixes import PrefixCache, seed_of
from swarm.server.promises import NO_CHAINS, Chains, Promises
from swarm.server.prompts import Found, Prompts
from swarm.server.receipts import Receipts
from swarm.server.tallies import Tallies
from swarm.server.work import Work
from swarm.tasks import Tasks, until_first
from swarm.types import Adapter, PeerId, Segment, ServerRecord, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import RAW, Codec
from swarm.wire.places import PLACE_BYTES, RowLayout, bare, check_places, placed
from swarm.wire.plausible import Plausible
from swarm.wire.rows import Buffer
from swarm.wire.transcode import decoded

log = logging.getLogger(__name__)

KINDS = {pb.Operation.FORK: Kind.FORK, pb.Operation.MOVE: Kind.MOVE, pb.Operation.FREE: Kind.FREE}
ITEM_BYTES = 256
"""What a step, and each operation and row in it, counts for beside its hidden states while it is under way."""


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What all sessions on a span share. `codec`: that of a name, or ContractMismatch; `tasks`: owns what runs in the
    background; `flight`: what all clients have on its way."""

    host: Host
    engine: Engine
    budget: CacheBudget
    config: ServerConfig
    row_bytes: int
    max_positions: int
    verify: Callable[[bytes], ServerRecord]
    contract: Contract
    codec: Callable[[str], Codec]
    prefixes: PrefixCache
    tasks: Tasks
    flight: Flight


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """Where a session stands: positions of each sequence, and bytes."""

    epoch: int
    received: dict[int, int]
    computed: dict[int, int]
    forwarded: dict[int, int]
    kv_bytes: int
    history_bytes: int
    unsent_bytes: int


class Session:
    """A client's session on `span`, of rows with so many `places`. `tell` puts a reply on the control stream, if there
    is one; `receipts`, where the client has an account, are what it signs for; `identity`: who signs what is sent, if
    the client wants that."""

    def __init__(
        self,
        id: bytes,
        client: PeerId,
        span: Span,
        context: SessionContext,
        places: int = 0,
        given: Given = NOTHING_GIVEN,
        identity: Identity | None = None,
    ) -> None:
        self.id = id
        self.client = client
        self.span = span
        self.epoch = 0
        self.closed = False
        self.tell: Callable[[pb.ControlReply], None] = lambda reply: None
        self.last_used = asyncio.get_running_loop().time()
        self.receipts: Receipts | None = None
        self._context = context
        self._layout = RowLayout(context.row_bytes, places)
        self._ledger = _ledger(context, span, self._layout.row_bytes)
        self._prompts = _prompts(id, client, span, context, self._ledger, given.digest)
        self._given = given
        self._tallies = Tallies()
        contract = replace(context.contract.on(span), places=0)
        self._promises = None if identity is None else Promises(identity, id, contract, self._promise)
        self._upstream: PeerId = client
        self._downstream: pb.Downstream | None = None
        self._relayed = False
        self._rollback = False
        """Whether its sequences are to be able to go back, where blocks keep a running state."""
        self._moves = False
        """Whether the client is told when the link onward could take a shorter way."""
        self._check: Plausible | None = None
        """What is to be looked at of the inputs, if another server computes them."""
        self._input_codec = self._output_codec = context.codec(RAW)
        self._resumed = asyncio.Event()
        self._outbox: Outbox | None = None
        self._inputs: Stream | None = None
        self._results: Stream | None = None
        self._results_over = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._generation = 0

    def __str__(self) -> str:
        return f"session {self.id.hex()[:8]} ({self.span})"

    @property
    def subject(self) -> dict[str, str]:
        """What a line of the log about this session is about, for its `extra`."""
        return {"session": self.id.hex()[:8], "span": str(self.span)}

    # ---- epochs -----------------------------------------------------------------------------------------------

    def fence(self, epoch: int) -> bool:
        """Begin a new epoch: from now on nothing of an older one is taken or sent. False if `epoch` is not newer."""
        if epoch <= self.epoch or self.closed:
            return False
        self.epoch = epoch
        self._hang_up()
        return True

    async def prepare(self, message: pb.Prepare) -> pb.Have | None:
        """Hold nothing but what the client says is alive, and say what that is. None: a newer epoch has begun.

        Raises ContractMismatch for a codec that is not spoken here.
        """
        names = message.input_codec, message.output_codec
        input_codec, output_codec = (placed(self._context.codec(name), self._layout.planes) for name in names)
        await self._context.engine.settle(self.id)
        if message.epoch != self.epoch:
            return None
        if message.rollback:
            self._keep_snapshots()
        reach = await self._reach()
        if message.epoch != self.epoch:
            return None
        await self._change(self._ledger.prepare(message.sequences, self._room, reach))
        self._upstream = message.upstream or self.client
        self._downstream = message.downstream if message.HasField("downstream") else None
        self._relayed = message.relayed
        self._moves = message.moves
        self._check = Plausible(self._context.contract.dtype, self._context.row_bytes) if message.check_inputs else None
        self._input_codec, self._output_codec = input_codec, output_codec
        return pb.Have(epoch=message.epoch, held=self._ledger.have(await self._reach()))

    def _keep_snapshots(self) -> None:
        """From now on its sequences are to go back, which takes room where blocks keep a running state."""
        runner = self._context.engine.runner
        if self._rollback or runner.can_rollback or not runner.rollback:
            return
        self._rollback = True
        beside, plain = runner.snapshot_bytes(self.span), self._ledger.cost
        self._ledger.reprice(lambda length: plain(length) + beside if length else 0)
        if not self._room(0):
            self._forget_all()

    async def _reach(self) -> dict[int, int]:
        """To which length each sequence can go back, where that is not any."""
        if self._ledger.can_rollback:
            return {}
        keys = [(self.id, sequence) for sequence in self._ledger.lengths]
        found = await self._context.engine.reach(self.id, keys)
        return {sequence: length for (_, sequence), length in found.items()}

    def _room(self, wanted: int) -> bool:
        return self._context.budget.make_room(wanted, self, asyncio.get_running_loop().time())

    async def resume(self, message: pb.Resume) -> None:
        """Forget what the client wants computed again, send again what it wants sent again, and go on."""
        if message.epoch != self.epoch or self._resumed.is_set():
            return
        reach = await self._reach()
        if message.epoch != self.epoch:
            return
        await self._change(self._ledger.cut(message.cuts, reach))
        if message.epoch != self.epoch:
            return
        self._ledger.begin()
        self._outbox = outbox = Outbox(
            self._output_codec,
            self._context.config.inbox_bytes,
            flight=self._context.flight,
            client=self.client,
            wanted_only=self._downstream is None and not self._relayed,
            on_sent=self._ledger.sent,
            on_given=self._given_out,
        )
        wants = {p.sequence: p.position for p in message.wants}
        for replay in message.replays:
            want_from = wants.get(replay.sequence, messages.MAX_POSITION)
            for rows, output in self._ledger.replay(replay.sequence, replay.position, want_from):
                outbox.put((), (rows,), output, 0, self._promises.chains([rows]) if self._promises else NO_CHAINS)
        self._resumed.set()
        if self._downstream is not None or self._results is not None:
            self._start_sender()

    async def _change(self, changes: Changes) -> None:
        """Change the KV cache, in turn with its work, as the ledger was changed already: whoever evicts this session in
        the meantime finds there all that the cache will hold."""
        self._prompts.clear()
        if self._promises is not None:
            self._promises.change(changes)
        if changes.operations or changes.truncations:
            cuts = [Change(Kind.TRUNCATE, (self.id, s), length=length) for s, length in changes.truncations]
            await self._context.engine.settle(self.id, [*self._changes(changes.operations), *cuts])

    def _changes(self, operations: Sequence[pb.Operation]) -> list[Change]:
        """What the operations do to KV caches."""
        return [Change(KINDS[op.kind], (self.id, op.source), (self.id, op.target), op.length) for op in operations]

    # ---- data in ----------------------------------------------------------------------------------------------

    async def feed(self, stream: Stream, epoch: int) -> None:
        """Take steps from the upstream until the stream ends or the epoch does. Errors go to the sender."""
        self._check_upstream(stream, epoch)
        if self._inputs is not None:
            self._inputs.close()
        self._inputs = stream
        await self._resumed.wait()
        # Whoever came while the epoch was being prepared was held against the upstream of the one before.
        self._check_upstream(stream, epoch)
        while epoch == self.epoch:
            data = messages.decode(pb.Data, await stream.receive(FRAME_LIMIT))
            if data.WhichOneof("kind") != "step":
                raise MalformedFrame("only steps may follow the hello")
            step = await decoded(data.step, self._input_codec)
            if self._check is not None:
                self._check.look(bare(step, self._layout))
                self._check.remember()
            if self.receipts is not None:
                await self.receipts.room()
            if epoch == self.epoch:
                await self._accept(step)

    def _check_upstream(self, stream: Stream, epoch: int) -> None:
        if stream.peer_id != self._upstream or epoch != self.epoch:
            raise Unauthorized(f"{stream.peer_id} is not the upstream of this session in epoch {epoch}")

    async def _accept(self, step: pb.Step) -> None:
        """Take what is new of a step, or raise and take nothing."""
        self.last_used = asyncio.get_running_loop().time()
        outbox = self._outbox
        if outbox is None:
            return
        if self._layout.planes:
            check_places(self._layout.part(step.hidden)[1])
        adapter = self._given.get()
        accepted = self._ledger.accept(step.operations, step.rows, self._room_or_busy)
        if accepted is None:
            return
        for sequence, length in accepted.ended.items():
            # Windows of a speculation that turned out wrong need not be computed any more.
            self._context.engine.void((self.id, sequence), length)
        self._take_up(accepted, fresh_hidden(step, accepted.rows, self._layout.row_bytes), outbox, adapter)
        await outbox.room()

    def _room_or_busy(self, wanted: int) -> bool:
        if not self._room(wanted):
            raise ServerBusy("the KV cache is full", retry_after=self._context.config.evict_after)
        return True

    def _take_up(self, accepted: Accepted, hidden: memoryview, outbox: Outbox, adapter: Adapter | None) -> None:
        """Compute what was accepted, except what the prefix cache has of it."""
        operations, rows = accepted.operations, accepted.rows
        taken = NO_CHAINS if self._promises is None else self._promises.taken(rows, hidden)
        found = self._prompts.follow(operations, rows, hidden)
        if found.hits:
            adopted, rows, hidden = self._prompts.adopt(found, rows, hidden)
            step = _Step(accepted, operations, adopted.rows, found, outbox, taken)
            self._submit(step, Copy(adopted.copies), lambda _: adopted.output, len(adopted.output), adopted.over)
            operations = ()
        if rows or operations:
            states, places = self._layout.part(hidden)
            job = Forward(self.span, self._segments(rows, places, adapter), memoryview(states)) if rows else Copy()
            rejoined: Callable[[Buffer], Buffer] = lambda output: self._layout.join(output, places)  # noqa: E731
            self._submit(_Step(accepted, operations, rows, found, outbox, taken), job, rejoined, len(hidden))

    def _segments(self, rows: Sequence[pb.Rows], places: bytes, adapter: Adapter | None) -> list[Segment]:
        segments, begin = [], 0
        for row in rows:
            end = begin + row.count * self._layout.planes * PLACE_BYTES
            key, part = (self.id, row.sequence), places[begin:end]
            segments.append(Segment(key, row.start, row.count, part, adapter, self._rollback))
            begin = end
        return segments

    def _submit(
        self,
        step: _Step,
        job: Forward[memoryview] | Copy,
        output_of: Callable[[Buffer], Buffer],
        size: int,
        over: Callable[[], None] = lambda: None,
    ) -> None:
        """Queue a step, of `size` bytes of hidden states. `output_of`: the outputs, of what the job gives."""
        generation, outbox = self._generation, step.outbox
        nbytes = size + ITEM_BYTES * (1 + len(step.operations) + len(step.rows))
        outbox.accept(nbytes)

        def done(result: Buffer) -> None:
            if generation == self._generation:
                output = output_of(result)
                chains = self._computed(step, output)
                outbox.put(step.operations, step.rows, output, nbytes, chains)

        def failed(error: ComputeFailed | Gap) -> None:
            # Also when a new epoch is being prepared: what the cache holds after a failure is not to be trusted.
            if generation == self._generation:
                self._abandon(error)

        before = self._changes(step.operations)
        work = Work(self.id, job, done, failed, before, lambda: outbox.forget(nbytes), self._payer, self._weight)
        wanted = any(row.want for row in step.rows)

        def finished() -> None:
            self._tallies.add(work, wanted)
            if self.receipts is not None and isinstance(job, Forward) and not work.left:
                self.receipts.worked([segment.count for segment in job.segments])
            over()

        work.over = finished
        self._context.engine.submit(work)

    @property
    def _payer(self) -> str:
        """Whose turn it is: that of an account, whichever of its peers asks, or of a peer without one."""
        return self.client if self.receipts is None else self.receipts.payer.hex()

    @property
    def _weight(self) -> float:
        return ANONYMOUS if self.receipts is None else self.receipts.weight

    def _computed(self, step: _Step, output: Buffer) -> Chains:
        self._ledger.computed(step.accepted, step.operations, step.rows, output)
        for kept in self._prompts.keep(step.found, step.rows):
            done, ignored = (lambda _, kept=kept: kept.done()), lambda error: None
            copy = Work(self.id, Copy([kept.copy]), done, ignored, client=self._payer, over=kept.over)
            self._context.engine.submit(copy)
        self._context.budget.trim_history()
        return NO_CHAINS if self._promises is None else self._promises.computed(step.operations, step.rows, step.taken)

    def _abandon(self, error: SwarmError) -> None:
        """A step could not be computed: forget the sequences, tell the client, take nothing more in this epoch."""
        self._hang_up()
        self._forget_all()
        self.tell(pb.ControlReply(failure=messages.failure(error, self.epoch)))

    # ---- data out ---------------------------------------------------------------------------------------------

    async def serve_results(self, stream: Stream, epoch: int) -> None:
        """The client reads here what this hop computes, until the epoch ends. Raises Unauthorized."""
        if stream.peer_id != self.client or epoch != self.epoch or self._downstream is not None:
            raise Unauthorized(f"{stream.peer_id} may not read the results of this session in epoch {epoch}")
        self._results, over = stream, self._results_over
        if self._resumed.is_set() and self._sender is None:
            self._start_sender()
        await over.wait()

    def _start_sender(self) -> None:
        self._sender = self._context.tasks.spawn(self._send(self.epoch), name=f"sender of {self}")

    async def _send(self, epoch: int) -> None:
        """Hand on what is computed; a link that breaks is reported to the client, who decides."""
        try:
            stream = self._results or await self._dial(epoch)
            outbox = self._outbox
            if outbox is None:
                return
            await self._until_broken(stream, outbox, epoch)
        except SwarmError as error:
            if epoch == self.epoch:
                log.info("%s: the link onward is down: %s", self, error, extra=self.subject)
                self._results_over.set()
                self.tell(pb.ControlReply(link_down=pb.LinkDown(epoch=epoch, reason=str(error)[:500])))

    async def _dial(self, epoch: int) -> Stream:
        """Open the link to the next hop, at the addresses of its own signed record and nowhere else."""
        target = self._downstream
        if target is None:
            raise NetworkError("there is nobody to send to")
        record = self._context.verify(target.record)
        if record.model != self._context.contract.model:
            raise Unauthorized(f"{record.peer_id} serves another model")
        stream = await self._context.host.open_stream(record.peer_id, messages.DATA_PROTOCOL, record.addresses)
        hello = pb.Hello(session=target.session, epoch=epoch, role=pb.Hello.INPUTS)
        await stream.send(pb.Data(hello=hello).SerializeToString())
        return stream

    async def _until_broken(self, stream: Stream, outbox: Outbox, epoch: int) -> None:
        """Send, and listen for the other side's last word at the same time."""
        sending = outbox.drain(stream, self._context.config.stuck)
        try:
            if self._moves and self._downstream is not None:
                await until_first(_last_word(stream), sending, self._look_for_shorter(stream, epoch))
            else:
                await until_first(_last_word(stream), sending)
        finally:
            stream.close()

    async def _look_for_shorter(self, stream: Stream, epoch: int) -> None:
        """Tell the client, who may begin an epoch for it, when the link onward could take a shorter way. Never ends."""
        await stream.outdated.wait()
        log.info("%s: a shorter way to %s has come up", self, stream.peer_id, extra=self.subject)
        self.tell(pb.ControlReply(shorter_way=pb.ShorterWay(epoch=epoch)))
        await asyncio.Event().wait()

    # ---- promises ---------------------------------------------------------------------------------------------

    @property
    def commits(self) -> bool:
        """Whether what is sent is signed."""
        return self._promises is not None

    def commit(self) -> None:
        """Sign what was sent so far."""
        if self._promises is not None:
            self._promises.close()

    def _given_out(self, rows: Sequence[pb.Rows], hidden: Buffer, chains: Chains) -> None:
        if self._promises is not None:
            self._promises.gave(rows, hidden, chains)

    def _promise(self, commitment: pb.Commitment) -> None:
        self.tell(pb.ControlReply(commitment=commitment))

    # ---- the rest ---------------------------------------------------------------------------------------------

    @property
    def tallies(self) -> Sequence[pb.Tally]:
        """Where the time of this session's steps went."""
        return self._tallies.told

    @property
    def kv_bytes(self) -> int:
        """What its sequences take, for the budget."""
        return self._ledger.kv_bytes

    @property
    def history_bytes(self) -> int:
        """What can be sent again, for the budget."""
        return self._ledger.history_bytes

    def statistics(self) -> SessionStatistics:
        """As of now."""
        ledger = self._ledger
        return SessionStatistics(
            epoch=self.epoch,
            received=dict(ledger.received),
            computed=dict(ledger.lengths),
            forwarded=dict(ledger.forwarded),
            kv_bytes=ledger.kv_bytes,
            history_bytes=ledger.history_bytes,
            unsent_bytes=self._outbox.unsent if self._outbox is not None else 0,
        )

    def progress(self, nonce: int) -> pb.Progress:
        """How far each sequence has come here."""
        self.last_used = asyncio.get_running_loop().time()
        engine = self._context.engine
        moved = self._ledger.moved()
        return pb.Progress(nonce=nonce, epoch=self.epoch, beat=engine.beat, moved=moved, queue=engine.queue)

    def drop_history(self) -> None:
        """Nothing can be sent again."""
        self._ledger.drop_history()

    def evict(self) -> None:
        """Give up the KV cache. The next step is answered as a gap, and replayed; one under way is answered now."""
        log.info("%s: cache evicted", self, extra=self.subject)
        if self._ledger.idle:
            self._forget_all()
        else:
            self._abandon(Gap("the KV cache was needed for others"))

    def _forget_all(self) -> None:
        self._generation += 1
        gone = [Change(Kind.FREE, (self.id, sequence)) for sequence in self._ledger.forget()]
        self._context.engine.cancel(self.id)
        self._context.engine.change(self.id, gone)
        self._prompts.clear()
        if self._promises is not None:
            self._promises.forget()

    def _hang_up(self) -> None:
        if self._outbox is not None:
            self._outbox.close()
        self._outbox = None
        self._resumed.set()
        self._resumed = asyncio.Event()
        self._results_over.set()
        self._results_over = asyncio.Event()
        if self._sender is not None:
            self._sender.cancel()
        for stream in (self._inputs, self._results):
            if stream is not None:
                stream.close()
        self._sender = self._inputs = self._results = None

    def close(self) -> None:
        """Free everything at once."""
        if not self.closed:
            self.closed = True
            if self.receipts is not None:
                self.receipts.close()
            self._hang_up()
            self._forget_all()
            if self._promises is not None:
                self._promises.end()


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A part of what was accepted, on its way: these operations and rows; what is followed; where the outputs go;
    hashes of the inputs, where they are to be promised."""

    accepted: Accepted
    operations: Sequence[pb.Operation]
    rows: Sequence[pb.Rows]
    found: Found
    outbox: Outbox
    taken: Chains


def _ledger(context: SessionContext, span: Span, row_bytes: int) -> Ledger:
    runner, config = context.engine.runner, context.config
    return Ledger(
        cost=functools.partial(runner.reserved_bytes, span),
        row_bytes=row_bytes,
        can_rollback=runner.can_rollback,
        limits=SessionLimits(config.max_sequences, context.max_positions, context.budget.per_client),
    )


def _prompts(id: bytes, client: PeerId, span: Span, context: SessionContext, ledger: Ledger, adapter: bytes) -> Prompts:
    config = context.config
    seed = seed_of(span, client, shared=config.share_prefixes) + adapter
    chains = prefixes.Chains(seed, ledger.row_bytes, config.prefix_chunk)
    # What a running state was at the end of a chunk is gone when the next one has been computed.
    enabled = config.prefix_share > 0 and ledger.can_rollback
    return Prompts(id, chains, context.prefixes, context.budget, ledger, enabled=enabled)


def fresh_hidden(step: pb.Step, fresh: Sequence[pb.Rows], row_bytes: int) -> memoryview:
    """The hidden states of those of a step's rows that are new, the last of each sequence's."""
    hidden, end, pieces = memoryview(step.hidden), 0, list[memoryview]()
    counts = {row.sequence: row.count for row in fresh}
    for row in step.rows:
        end += row.count * row_bytes
        count = counts.get(row.sequence, 0)
        if count:
            pieces.append(hidden[end - count * row_bytes : end])
    if len(pieces) == 1:
        return pieces[0]
    return hidden if sum(map(len, pieces)) == len(hidden) else memoryview(b"".join(pieces))


async def _last_word(stream: Stream) -> None:
    """Wait for the receiver's Failure or the end of the stream; raise what it was."""
    data = messages.decode(pb.Data, await stream.receive(FRAME_LIMIT))
    if data.WhichOneof("kind") == "failure":
        raise messages.error_of(data.failure, stream.peer_id)
    raise MalformedFrame(f"{stream.peer_id} sent something back on a link that goes one way")
