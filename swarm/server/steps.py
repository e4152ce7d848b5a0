"""What the engine is given to do for a session, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.accounting.weight import ANONYMOUS
from swarm.errors import ComputeFailed, Gap, SwarmError
from swarm.jobs import Change, Copy, Forward, Kind
from swarm.server.ledger import Accepted, Ledger
from swarm.server.manifest import Changes
from swarm.server.outbox import Outbox
from swarm.server.promises import NO_CHAINS, Chains, Promises
from swarm.server.prompts import Found, Prompts
from swarm.server.receipts import Receipts
from swarm.server.session_context import SessionContext
from swarm.server.tallies import Tallies
from swarm.server.work import Work
from swarm.types import Adapter, PeerId, Segment, Span
from swarm.wire import swarm_pb2 as pb
from swarm.wire.places import PLACE_BYTES, RowLayout
from swarm.wire.rows import Buffer

KINDS = {pb.Operation.FORK: Kind.FORK, pb.Operation.MOVE: Kind.MOVE, pb.Operation.FREE: Kind.FREE}
ITEM_BYTES = 256
"""What a step, and each operation and row in it, counts for beside its hidden states while it is under way."""


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


class Steps:
    """Of one session of `client`'s. `failed`: a step could not be computed.

    `receipts`: what the client signs for, if it does; `promises`: what the server signs, if the client wants that;
    `snapshots`: whether sequences are to be able to go back, where blocks keep a running state;
    `tell_kept`: hears what is kept of prompts, None: the client does not want to.
    """

    def __init__(
        self,
        id: bytes,
        client: PeerId,
        span: Span,
        context: SessionContext,
        layout: RowLayout,
        ledger: Ledger,
        prompts: Prompts,
        promises: Promises | None,
        failed: Callable[[SwarmError], None],
    ) -> None:
        self.receipts: Receipts | None = None
        self.snapshots = False
        self.tell_kept: Callable[[pb.Kept], None] | None = None
        self.tallies = Tallies()
        self._id = id
        self._client = client
        self._span = span
        self._context = context
        self._layout = layout
        self._ledger = ledger
        self._prompts = prompts
        self._promises = promises
        self._failed = failed
        self._generation = 0

    async def change(self, changes: Changes) -> None:
        """Change the KV cache, in turn with its work, as the ledger was changed already: whoever evicts this session in
        the meantime finds there all that the cache will hold."""
        self._prompts.clear()
        if self._promises is not None:
            self._promises.change(changes)
        if changes.operations or changes.truncations:
            cuts = [Change(Kind.TRUNCATE, (self._id, s), length=length) for s, length in changes.truncations]
            await self._context.engine.settle(self._id, [*self._changes(changes.operations), *cuts])

    def _changes(self, operations: Sequence[pb.Operation]) -> list[Change]:
        """What the operations do to KV caches."""
        return [Change(KINDS[op.kind], (self._id, op.source), (self._id, op.target), op.length) for op in operations]

    def forget_all(self) -> None:
        """Free all sequences at once; what is under way comes to nothing."""
        self._generation += 1
        gone = [Change(Kind.FREE, (self._id, sequence)) for sequence in self._ledger.forget()]
        self._context.engine.cancel(self._id)
        self._context.engine.change(self._id, gone)
        self._prompts.clear()
        if self._promises is not None:
            self._promises.forget()

    def take_up(self, accepted: Accepted, hidden: memoryview, outbox: Outbox, adapter: Adapter | None) -> None:
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
            job = Forward(self._span, self._segments(rows, places, adapter), memoryview(states)) if rows else Copy()
            rejoined: Callable[[Buffer], Buffer] = lambda output: self._layout.join(output, places)  # noqa: E731
            self._submit(_Step(accepted, operations, rows, found, outbox, taken), job, rejoined, len(hidden))

    def _segments(self, rows: Sequence[pb.Rows], places: bytes, adapter: Adapter | None) -> list[Segment]:
        segments, begin = [], 0
        for row in rows:
            end = begin + row.count * self._layout.planes * PLACE_BYTES
            key, part = (self._id, row.sequence), places[begin:end]
            segments.append(Segment(key, row.start, row.count, part, adapter, self.snapshots))
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
                self._failed(error)

        before = self._changes(step.operations)
        work = Work(self._id, job, done, failed, before, lambda: outbox.forget(nbytes), self._payer, self._weight)
        wanted = any(row.want for row in step.rows)

        def finished() -> None:
            self.tallies.add(work, wanted)
            if self.receipts is not None and isinstance(job, Forward) and not work.left:
                self.receipts.worked([segment.count for segment in job.segments])
            over()

        work.over = finished
        self._context.engine.submit(work)

    @property
    def _payer(self) -> str:
        """Whose turn it is: that of an account, whichever of its peers asks, or of a peer without one."""
        return self._client if self.receipts is None else self.receipts.payer.hex()

    @property
    def _weight(self) -> float:
        return ANONYMOUS if self.receipts is None else self.receipts.weight

    def _computed(self, step: _Step, output: Buffer) -> Chains:
        self._ledger.computed(step.accepted, step.operations, step.rows, output)
        keeps, told = self._prompts.keep(step.found, step.rows)
        if self.tell_kept is not None:
            for each in told:
                self.tell_kept(each)
        for kept in keeps:
            done, ignored = (lambda _, kept=kept: kept.done()), lambda error: None
            copy = Work(self._id, Copy([kept.copy]), done, ignored, client=self._payer, over=kept.over)
            self._context.engine.submit(copy)
        self._context.budget.trim_history()
        return NO_CHAINS if self._promises is None else self._promises.computed(step.operations, step.rows, step.taken)
