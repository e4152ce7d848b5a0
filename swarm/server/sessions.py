"""One session as a hop holds it: the sequences, their history, who feeds it and whom it feeds, epoch by epoch.

docs/protocol.md describes the state machine. Everything here runs on the event loop; computing happens in the engine.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from swarm.config import FRAME_LIMIT, ServerConfig
from swarm.errors import (
    ComputeFailed,
    ContextTooLong,
    Gap,
    LimitExceeded,
    MalformedFrame,
    NetworkError,
    ServerBusy,
    SwarmError,
    Unauthorized,
)
from swarm.jobs import Change, Copy, Forward, Kind
from swarm.net.base import Host, Stream
from swarm.server.budget import CacheBudget
from swarm.server.engine import Engine
from swarm.server.manifest import Changes, reconcile
from swarm.server.outbox import Outbox
from swarm.server.prefixes import Chain, Chains, Hit, PrefixCache, seed_of, split
from swarm.server.work import Work
from swarm.types import PeerId, Segment, ServerRecord, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import RAW, Codec, decode_step
from swarm.wire.rows import Buffer, RowLog

log = logging.getLogger(__name__)

REPLAY_ROWS = 256
KINDS = {pb.Operation.FORK: Kind.FORK, pb.Operation.MOVE: Kind.MOVE, pb.Operation.FREE: Kind.FREE}
ITEM_BYTES = 256
"""What a step, and each operation and row in it, counts for beside its hidden states while it is under way."""


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What all sessions of a server share. `codec`: that of a name, or ContractMismatch."""

    host: Host
    engine: Engine
    budget: CacheBudget
    config: ServerConfig
    row_bytes: int
    max_positions: int
    verify: Callable[[bytes], ServerRecord]
    model: str
    codec: Callable[[str], Codec]
    prefixes: PrefixCache


class Session:
    """A client's session on `span`. `tell` puts a reply on the control stream, if there is one."""

    def __init__(self, id: bytes, client: PeerId, span: Span, around: SessionContext) -> None:
        self.id = id
        self.client = client
        self.span = span
        self.around = around
        self.epoch = 0
        self.lengths: dict[int, int] = {}
        self.received: dict[int, int] = {}
        self.forwarded: dict[int, int] = {}
        self.history: dict[int, RowLog] = {}
        self.kv_bytes = 0
        self.history_bytes = 0
        self.closed = False
        self.tell: Callable[[pb.ControlReply], None] = lambda reply: None
        self._upstream: PeerId = client
        self._downstream: pb.Downstream | None = None
        self._relayed = False
        self._input_codec = self._output_codec = around.codec(RAW)
        self._resumed = asyncio.Event()
        self._outbox: Outbox | None = None
        self._inputs: Stream | None = None
        self._results: Stream | None = None
        self._results_over = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._generation = 0
        self._prompted = False
        self._tallies = {phase: pb.Tally(phase=phase) for phase in (pb.Tally.PREFILL, pb.Tally.DECODE)}
        self._cost = functools.partial(around.engine.runner.reserved_bytes, span)
        self._peaks: dict[int, int] = {}
        """What work that is under way takes for a moment beyond what it leaves: a copy whose source ends after it."""
        config = around.config
        self._chains = Chains(
            seed_of(span, client, shared=config.share_prefixes), around.row_bytes, config.prefix_chunk
        )
        # What a running state was at the end of a chunk is gone when the next one has been computed.
        self._keeps_prefixes = config.prefix_share > 0 and around.engine.runner.can_rollback
        self.last_used = asyncio.get_running_loop().time()

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
        engine, codec = self.around.engine, self.around.codec
        input_codec, output_codec = codec(message.input_codec), codec(message.output_codec)
        await engine.settle(self.id)
        if message.epoch != self.epoch:
            return None
        changes = reconcile(self.lengths, message.sequences, can_rollback=engine.runner.can_rollback)
        await self._change(self._affordable(changes))
        self._upstream = message.upstream or self.client
        self._downstream = message.downstream if message.HasField("downstream") else None
        self._relayed = message.relayed
        self._input_codec, self._output_codec = input_codec, output_codec
        return pb.Have(epoch=message.epoch, held=[self._held(s) for s in self.lengths])

    def _affordable(self, changes: Changes) -> Changes:
        """Without the forks for which there is no room: what they would hold is replayed later, or refused."""
        kept: list[pb.Operation] = []
        reserved, now = 0, asyncio.get_running_loop().time()
        for operation in changes.operations:
            if operation.kind == pb.Operation.FORK:
                wanted = reserved + self._cost(operation.length)
                full = len(self.lengths) + len(kept) >= self.around.config.max_sequences
                if full or not self.around.budget.make_room(wanted, self, now):
                    continue
                reserved = wanted
            kept.append(operation)
        return Changes(tuple(kept), changes.truncations)

    def _held(self, sequence: int) -> pb.Held:
        length = self.lengths[sequence]
        return pb.Held(sequence=sequence, length=length, history=min(self.history[sequence].first, length))

    async def resume(self, message: pb.Resume) -> None:
        """Forget what the client wants computed again, send again what it wants sent again, and go on."""
        if message.epoch != self.epoch or self._resumed.is_set():
            return
        cuts = [(p.sequence, p.position) for p in message.cuts if p.position < self.lengths.get(p.sequence, 0)]
        await self._change(self._cuts(cuts))
        if message.epoch != self.epoch:
            return
        self.received = dict(self.lengths)
        self.forwarded = dict(self.lengths)
        self._outbox = Outbox(
            self._output_codec,
            self.around.config.inbox_bytes,
            wanted_only=self._downstream is None and not self._relayed,
            on_sent=self._note_sent,
        )
        wants = {p.sequence: p.position for p in message.wants}
        for replay in message.replays:
            self._replay(replay.sequence, replay.position, wants.get(replay.sequence, messages.MAX_POSITION))
        self._resumed.set()
        if self._downstream is not None or self._results is not None:
            self._start_sender()

    def _cuts(self, cuts: Sequence[tuple[int, int]]) -> Changes:
        rollback = self.around.engine.runner.can_rollback
        gone = [s for s, position in cuts if position == 0 or not rollback]
        frees = tuple(pb.Operation(kind=pb.Operation.FREE, source=s) for s in gone)
        return Changes(frees, tuple((s, p) for s, p in cuts if s not in gone))

    async def _change(self, changes: Changes) -> None:
        """Apply changes to lengths and history, and to the KV cache in turn with its work.

        The tables come first: whoever evicts this session in the meantime finds in them all that the cache will hold.
        """
        for operation in changes.operations:
            _operate(self.lengths, operation)
            self._operate_history(operation)
        for sequence, length in changes.truncations:
            self.lengths[sequence] = length
            self.history[sequence].truncate(length)
        self.received = dict(self.lengths)
        self._chains.clear()
        self._peaks.clear()
        self._weigh()
        if changes.operations or changes.truncations:
            cuts = [Change(Kind.TRUNCATE, (self.id, s), length=length) for s, length in changes.truncations]
            await self.around.engine.settle(self.id, [*self._changes(changes.operations), *cuts])

    def _changes(self, operations: Sequence[pb.Operation]) -> list[Change]:
        """What the operations do to KV caches."""
        return [Change(KINDS[op.kind], (self.id, op.source), (self.id, op.target), op.length) for op in operations]

    def _replay(self, sequence: int, start: int, want_from: int) -> None:
        """Queue outputs again out of history."""
        log_, outbox = self.history.get(sequence), self._outbox
        if log_ is None or outbox is None or not log_.first <= start <= log_.last:
            # It may have been dropped since the client heard of it: a gap like any other.
            raise Gap(f"the history of sequence {sequence} does not reach back to {start}")
        self.forwarded[sequence] = start
        for begin in range(start, log_.last, REPLAY_ROWS):
            end = min(begin + REPLAY_ROWS, log_.last)
            want = min(max(end - want_from, 0), end - begin)
            rows = pb.Rows(sequence=sequence, start=begin, count=end - begin, want=want)
            outbox.put((), (rows,), log_.read(begin, end), 0)

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
            if epoch == self.epoch:
                await self._accept(decode_step(data.step, self._input_codec))

    def _check_upstream(self, stream: Stream, epoch: int) -> None:
        if stream.peer_id != self._upstream or epoch != self.epoch:
            raise Unauthorized(f"{stream.peer_id} is not the upstream of this session in epoch {epoch}")

    async def _accept(self, step: pb.Step) -> None:
        """Take what is new of a step, or raise and take nothing."""
        self.last_used = asyncio.get_running_loop().time()
        outbox, after = self._outbox, dict(self.received)
        known, growth, peak = self._priced(step.operations, after)
        rows, hidden = self._fresh(step, after)
        if outbox is None or not (rows or known):
            return
        growth += sum(self._cost(row.start + row.count) - self._cost(after.get(row.sequence, 0)) for row in rows)
        after.update((row.sequence, row.start + row.count) for row in rows)
        self._check_room(rows, after, max(growth, peak))
        self.received = after
        for sequence, length in _ended(known).items():
            # Windows of a speculation that turned out wrong need not be computed any more.
            self.around.engine.void((self.id, sequence), length)
        self._take_up(known, rows, hidden, outbox, max(peak - max(growth, 0), 0))
        await outbox.room()

    def _priced(self, operations: Sequence[pb.Operation], after: dict[int, int]) -> tuple[list[pb.Operation], int, int]:
        """Apply operations to a table of lengths: those whose source is held, by how many bytes the sequences grow, and
        by how many they have grown when it is most."""
        known, growth, peak = list[pb.Operation](), 0, 0
        for operation in operations:
            source, before = after.get(operation.source, 0), after.get(operation.target, 0)
            if not _operate(after, operation):
                continue
            known.append(operation)
            if operation.kind != pb.Operation.FREE:
                growth += self._cost(after[operation.target])
            if operation.kind == pb.Operation.FORK:
                peak = max(peak, growth)
            else:
                growth -= self._cost(source)
            if operation.kind != pb.Operation.FREE:
                growth -= self._cost(before)
        return known, growth, peak

    def _take_up(
        self, operations: Sequence[pb.Operation], rows: list[pb.Rows], hidden: memoryview, box: Outbox, peak: int
    ) -> None:
        """Compute what was accepted, except what the prefix cache has of it."""
        if peak:
            self._peaks[id(operations[0])] = peak
        self._chains.operate(operations)
        chains = self._chains.follow(rows, hidden) if self._keeps_prefixes else {}
        hits = self._hits(rows, chains)
        if hits:
            covered, rows, hidden = split(rows, hidden, hits, self.around.row_bytes)
            self._adopt(operations, covered, hits, box, chains)
            operations = ()
        if rows or operations:
            self._submit(operations, rows, hidden, box, chains)

    def _hits(self, rows: Sequence[pb.Rows], chains: Mapping[int, Chain]) -> dict[int, Hit]:
        hits = {}
        for row in rows:
            chain = chains.get(row.sequence)
            hit = self.around.prefixes.borrow(chain, row.start) if chain is not None else None
            if hit is not None:
                hits[row.sequence] = hit
        return hits

    def _fresh(self, step: pb.Step, held: Mapping[int, int]) -> tuple[list[pb.Rows], memoryview]:
        """The rows that are not held yet: what is a duplicate is cut off. Raises Gap."""
        fresh, pieces, end, row_bytes = [], [], 0, self.around.row_bytes
        hidden = memoryview(step.hidden)
        for row in step.rows:
            have = held.get(row.sequence, 0)
            if row.start > have:
                raise Gap(f"sequence {row.sequence} is held up to {have}, the step begins at {row.start}")
            end += row.count * row_bytes
            count = row.start + row.count - have
            if count > 0:
                fresh.append(pb.Rows(sequence=row.sequence, start=have, count=count, want=min(row.want, count)))
                pieces.append(hidden[end - count * row_bytes : end])
        whole = len(pieces) == 1 or sum(map(len, pieces)) == len(hidden)
        if whole:
            return fresh, hidden if len(pieces) != 1 else pieces[0]
        return fresh, memoryview(b"".join(pieces))

    def _check_room(self, rows: Sequence[pb.Rows], after: Mapping[int, int], wanted: int) -> None:
        """Make room for `wanted` more bytes, with which the sequences have the lengths `after`.

        Raises ContextTooLong, LimitExceeded, ServerBusy.
        """
        limit, config = self.around.max_positions, self.around.config
        for row in rows:
            if limit and row.start + row.count > limit:
                raise ContextTooLong(f"position {row.start + row.count} is beyond this model's {limit} positions")
        if len(after) > config.max_sequences:
            most, asked = config.max_sequences, len(after)
            raise LimitExceeded(f"{asked} sequences in one session; it may have {most}", "sequences", most, asked)
        asked, most = sum(map(self._cost, after.values())), self.around.budget.total
        if asked > most:
            what = f"{sum(after.values())} positions of {len(after)} sequences in one session"
            raise LimitExceeded(f"{what} take {asked} bytes of KV cache; there are {most}", "cache_bytes", most, asked)
        wanted = max(wanted, 0)
        if not self.around.budget.make_room(wanted, self, self.last_used):
            raise ServerBusy("the KV cache is full", retry_after=config.evict_after)
        self.kv_bytes += wanted

    def _submit(
        self,
        operations: Sequence[pb.Operation],
        rows: Sequence[pb.Rows],
        hidden: memoryview,
        box: Outbox,
        chains: Mapping[int, Chain],
    ) -> None:
        nbytes = len(hidden) + ITEM_BYTES * (1 + len(operations) + len(rows))
        box.unsent += nbytes
        done, failed = self._outcome(operations, rows, box, nbytes, chains)
        segments = [Segment((self.id, row.sequence), row.start, row.count) for row in rows]
        voided = lambda: box.forget(nbytes)  # noqa: E731
        job = Forward(self.span, segments, hidden) if rows else Copy()
        work = Work(self.id, job, done, failed, self._changes(operations), voided, self.client)
        wanted = any(row.want for row in rows)
        work.over = lambda: self._tally(work, wanted)
        self.around.engine.submit(work)

    def _tally(self, work: Work, wanted: bool) -> None:
        """Note where the time of a step went, for a client who asks. A prompt ends with the first output wanted."""
        if work.taken:
            tally = self._tallies[pb.Tally.DECODE if self._prompted else pb.Tally.PREFILL]
            self._prompted |= wanted
            tally.steps += 1
            tally.positions += work.taken
            tally.queue += work.started - work.submitted
            tally.compute += work.computing

    def _outcome(
        self,
        operations: Sequence[pb.Operation],
        rows: Sequence[pb.Rows],
        box: Outbox,
        nbytes: int,
        chains: Mapping[int, Chain],
    ) -> tuple[Callable[[Buffer], None], Callable[[ComputeFailed], None]]:
        """What to do with the outputs of work that is submitted now, or with its failure."""
        generation = self._generation

        def done(output: Buffer) -> None:
            if generation != self._generation:
                return
            self._computed(operations, rows, output, chains)
            box.put(operations, rows, output, nbytes)

        def failed(error: ComputeFailed) -> None:
            # Also when a new epoch is being prepared: what the cache holds after a failure is not to be trusted.
            if generation == self._generation:
                self._abandon(error)

        return done, failed

    def _adopt(
        self,
        operations: Sequence[pb.Operation],
        rows: Sequence[pb.Rows],
        hits: Mapping[int, Hit],
        box: Outbox,
        chains: Mapping[int, Chain],
    ) -> None:
        """Take the KV cache and the outputs of rows from prefixes, in turn, as if they were computed."""
        prefixes = self.around.prefixes
        reads = (hits[row.sequence].prefix.outputs.read(row.start, row.start + row.count) for row in rows)
        output = b"".join(reads)
        nbytes = len(output) + ITEM_BYTES * (1 + len(operations) + len(rows))
        box.unsent += nbytes
        done, failed = self._outcome(operations, rows, box, nbytes, chains)

        forks = [Change(Kind.FORK, hit.prefix.key, (self.id, sequence), hit.length) for sequence, hit in hits.items()]

        def over() -> None:
            for hit in hits.values():
                prefixes.give_back(hit.prefix)

        self._submit_copy(forks, over, lambda _: done(output), failed, operations)

    def _submit_copy(
        self,
        changes: Sequence[Change],
        over: Callable[[], None],
        done: Callable[[Buffer], None],
        failed: Callable[[ComputeFailed], None] = lambda error: None,
        operations: Sequence[pb.Operation] = (),
    ) -> None:
        """Queue a copy of KV cache, in turn with the session's steps."""
        before, client = self._changes(operations), self.client
        self.around.engine.submit(Work(self.id, Copy(changes), done, failed, before, client=client, over=over))

    def _keep(self, row: pb.Rows, chain: Chain) -> None:
        """Offer what has been computed of a prompt to the prefix cache, when nothing more of it is on its way."""
        sequence, prefixes = row.sequence, self.around.prefixes
        # The copy is made after whatever is queued by now: nothing of that may change what is under this id.
        idle = self._chains[sequence] is chain and self.received.get(sequence) == row.start + row.count
        history = self.history[sequence]
        if not idle or history.first or chain.offered == len(chain.digests):
            return
        chain.offered = len(chain.digests)
        key, room = (self.id, sequence), self.around.budget.prefix_room
        prefix = prefixes.begin(key, chain, history, self._cost, room)
        if prefix is not None:
            fork = Change(Kind.FORK, key, prefix.key, prefix.outputs.last)
            over = functools.partial(prefixes.give_back, prefix)
            self._submit_copy([fork], over, lambda _: prefixes.finish(prefix))

    def _computed(
        self,
        operations: Sequence[pb.Operation],
        rows: Sequence[pb.Rows],
        output: Buffer,
        chains: Mapping[int, Chain],
    ) -> None:
        for operation in operations:
            _operate(self.lengths, operation)
            self._operate_history(operation)
        begin, view = 0, memoryview(output)
        for row in rows:
            end = begin + row.count * self.around.row_bytes
            self.lengths[row.sequence] = row.start + row.count
            self._remember(row, view[begin:end])
            if row.sequence in chains:
                self._keep(row, chains[row.sequence])
            begin = end
        if operations:
            self._peaks.pop(id(operations[0]), None)
            self._weigh()
        self.around.budget.trim_history()

    def _remember(self, row: pb.Rows, output: Buffer) -> None:
        log_ = self.history.get(row.sequence)
        if log_ is None:
            log_ = self.history[row.sequence] = RowLog(self.around.row_bytes, row.start)
        # A copy: a view would keep the output of a whole pass alive, of everybody's rows.
        log_.append(bytes(output))
        self.history_bytes += len(output)

    def _operate_history(self, operation: pb.Operation) -> None:
        source = self.history.get(operation.source)
        if operation.kind != pb.Operation.FREE and source is not None:
            self.history[operation.target] = source.fork(operation.length)
        if operation.kind != pb.Operation.FORK:
            self.history.pop(operation.source, None)

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
        self._sender = asyncio.ensure_future(self._send(self.epoch))

    async def _send(self, epoch: int) -> None:
        """Hand on what is computed; a link that breaks is reported to the client, who decides."""
        try:
            stream = self._results or await self._dial(epoch)
            outbox = self._outbox
            if outbox is None:
                return
            await self._until_broken(stream, outbox)
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
        record = self.around.verify(target.record)
        if record.model != self.around.model:
            raise Unauthorized(f"{record.peer_id} serves another model")
        stream = await self.around.host.open_stream(record.peer_id, messages.DATA_PROTOCOL, record.addresses)
        hello = pb.Hello(session=target.session, epoch=epoch, role=pb.Hello.INPUTS)
        await stream.send(pb.Data(hello=hello).SerializeToString())
        return stream

    async def _until_broken(self, stream: Stream, outbox: Outbox) -> None:
        """Send, and listen for the other side's last word at the same time."""
        sending = asyncio.ensure_future(outbox.drain(stream))
        listening = asyncio.ensure_future(_last_word(stream))
        try:
            done, _ = await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
            (listening if listening in done else sending).result()
        finally:
            sending.cancel()
            listening.cancel()
            await asyncio.gather(sending, listening, return_exceptions=True)
            stream.close()

    def _note_sent(self, step: pb.Step) -> None:
        for operation in step.operations:
            _operate(self.forwarded, operation)
        for row in step.rows:
            self.forwarded[row.sequence] = row.start + row.count

    # ---- the rest ---------------------------------------------------------------------------------------------

    @property
    def tallies(self) -> Sequence[pb.Tally]:
        """Where the time of this session's steps went."""
        return [tally for tally in self._tallies.values() if tally.steps]

    def progress(self, nonce: int) -> pb.Progress:
        """How far each sequence has come here."""
        self.last_used = asyncio.get_running_loop().time()
        engine = self.around.engine
        moved = [
            pb.Moved(
                sequence=sequence,
                received=received,
                computed=self.lengths.get(sequence, 0),
                forwarded=self.forwarded.get(sequence, 0),
            )
            for sequence, received in self.received.items()
        ]
        return pb.Progress(nonce=nonce, epoch=self.epoch, beat=engine.beat, moved=moved, queue=engine.queue)

    def drop_history(self) -> None:
        for sequence, log_ in self.history.items():
            log_.clear(self.lengths.get(sequence, 0))
        self.history_bytes = 0

    def evict(self) -> None:
        """Give up the KV cache. The next step is answered as a gap, and replayed; one under way is answered now."""
        log.info("%s: cache evicted", self, extra=self.subject)
        if self.received == self.lengths:
            self._forget_all()
        else:
            self._abandon(Gap("the KV cache was needed for others"))

    def _forget_all(self) -> None:
        self._generation += 1
        gone = [Change(Kind.FREE, (self.id, sequence)) for sequence in {*self.lengths, *self.received}]
        self.around.engine.cancel(self.id)
        self.around.engine.change(self.id, gone)
        self._chains.clear()
        self._peaks.clear()
        for table in (self.lengths, self.received, self.forwarded, self.history):
            table.clear()
        self._weigh()

    def _weigh(self) -> None:
        """Recount what is held; computed and still queued positions alike."""
        both = {*self.lengths, *self.received}
        held = sum(self._cost(max(self.lengths.get(s, 0), self.received.get(s, 0))) for s in both)
        self.kv_bytes = held + max(self._peaks.values(), default=0)
        self.history_bytes = sum(log_.nbytes for log_ in self.history.values())

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
            self._hang_up()
            self._forget_all()


def _operate(lengths: dict[int, int], operation: pb.Operation) -> bool:
    """Apply an operation to a table of lengths. False: its source is not held, and nothing was done."""
    if operation.source not in lengths:
        return False
    if operation.kind != pb.Operation.FREE:
        lengths[operation.target] = min(lengths[operation.source], operation.length)
    if operation.kind != pb.Operation.FORK:
        del lengths[operation.source]
    return True


def _ended(operations: Sequence[pb.Operation]) -> dict[int, int]:
    """Sequences that these operations end, and up to which position others go on with them."""
    kept: dict[int, int] = {}
    for operation in operations:
        length = 0 if operation.kind == pb.Operation.FREE else operation.length
        kept[operation.source] = max(kept.get(operation.source, 0), length)
    return {o.source: kept[o.source] for o in operations if o.kind != pb.Operation.FORK}


async def _last_word(stream: Stream) -> None:
    """Wait for the receiver's Failure or the end of the stream; raise what it was."""
    data = messages.decode(pb.Data, await stream.receive(FRAME_LIMIT))
    if data.WhichOneof("kind") == "failure":
        raise messages.error_of(data.failure, stream.peer_id)
    raise MalformedFrame(f"{stream.peer_id} sent something back on a link that goes one way")
