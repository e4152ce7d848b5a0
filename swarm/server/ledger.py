"""What a session holds at a hop: how far each sequence has come, what can be sent again, and what all that takes. Pure.

No streams, no engine, no clock: steps and manifests in, what is to be computed or changed out. docs/protocol.md has the
rules; `tests/golden/ledger` has runs of it that any other implementation can replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from swarm.errors import ContextTooLong, Gap, LimitExceeded, ServerBusy
from swarm.server.manifest import Changes, reconcile
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer, RowLog

REPLAY_ROWS = 256
"""Rows of history in one step, when they are sent again."""

NO_REACH: Mapping[int, int] = {}
Room = Callable[[int], bool]
"""Whether there is room for so many bytes more of KV cache, when others have given way."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one session may have. `positions`: of one sequence, 0 for no limit; `cache_bytes`: of all together."""

    sequences: int
    positions: int
    cache_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """What is new of a step: operations to be made, in order, then rows to be computed.

    `ended`: sequences that these operations end, and up to which position others go on with them.
    """

    operations: Sequence[pb.Operation]
    rows: Sequence[pb.Rows]
    ended: Mapping[int, int]


class Ledger:
    """The sequences of one session. `cost`: bytes of KV cache that a sequence of so many positions takes;
    `can_rollback`: whether any of them can go back to any length.

    For each sequence: positions `received` (accepted, in the end computed), computed (`lengths`) and `forwarded`; and
    its `history`, the outputs of the last of them, `row_bytes` each.
    """

    def __init__(
        self, *, cost: Callable[[int], int], row_bytes: int, can_rollback: bool, limits: SessionLimits
    ) -> None:
        self.cost = cost
        self.row_bytes = row_bytes
        self.can_rollback = can_rollback
        self.limits = limits
        self.lengths: dict[int, int] = {}
        self.received: dict[int, int] = {}
        self.forwarded: dict[int, int] = {}
        self.history: dict[int, RowLog] = {}
        self.kv_bytes = 0
        """What the sequences take when it is most: now, or while what is accepted is being done."""
        self.history_bytes = 0
        self._waiting: dict[Accepted, int] = {}
        """Steps accepted and not done, in order, and what all sequences take while each is, when it is most."""

    # ---- steps ------------------------------------------------------------------------------------------------

    def accept(self, operations: Iterable[pb.Operation], rows: Iterable[pb.Rows], room: Room) -> Accepted | None:
        """Take what is new of a step; None: nothing is.

        Raises Gap, ContextTooLong, LimitExceeded and ServerBusy; then nothing was taken.
        """
        before, after = self._taken(self.received), dict(self.received)
        known, peak = self._operated(operations, after)
        fresh = _fresh(rows, after)
        if not (known or fresh):
            return None
        after.update((row.sequence, row.start + row.count) for row in fresh)
        most = max(before + peak, self._taken(after))
        self._check(fresh, after)
        if not room(max(most - self.kv_bytes, 0)):
            raise ServerBusy("the KV cache is full")
        self.kv_bytes = max(self.kv_bytes, most)
        self.received = after
        accepted = Accepted(known, fresh, _ended(known))
        self._waiting[accepted] = most
        return accepted

    def _taken(self, lengths: Mapping[int, int]) -> int:
        return sum(map(self.cost, lengths.values()))

    def _operated(self, operations: Iterable[pb.Operation], after: dict[int, int]) -> tuple[list[pb.Operation], int]:
        """Apply operations to a table of lengths. Returns those whose source is held, and by how many bytes the
        sequences have grown when it is most: a copy is there before its source ends."""
        known, growth, peak = list[pb.Operation](), 0, 0
        for operation in operations:
            source, before = after.get(operation.source, 0), after.get(operation.target, 0)
            if not operate(after, operation):
                continue
            known.append(operation)
            if operation.kind != pb.Operation.FREE:
                growth += self.cost(after[operation.target])
            if operation.kind == pb.Operation.FORK:
                peak = max(peak, growth)
            else:
                growth -= self.cost(source)
            if operation.kind != pb.Operation.FREE:
                growth -= self.cost(before)
        return known, peak

    def _check(self, rows: Iterable[pb.Rows], after: Mapping[int, int]) -> None:
        """Whether a session may have the lengths `after`, however much room there is."""
        limits = self.limits
        for row in rows:
            if limits.positions and row.start + row.count > limits.positions:
                last = row.start + row.count
                raise ContextTooLong(f"position {last} is beyond this model's {limits.positions} positions")
        if len(after) > limits.sequences:
            text = f"{len(after)} sequences in one session; it may have {limits.sequences}"
            raise LimitExceeded(text, "sequences", limits.sequences, len(after))
        asked, most = self._taken(after), limits.cache_bytes
        if asked > most:
            what = f"{sum(after.values())} positions of {len(after)} sequences in one session"
            raise LimitExceeded(f"{what} take {asked} bytes of KV cache; there are {most}", "cache_bytes", most, asked)

    def computed(
        self, accepted: Accepted, operations: Sequence[pb.Operation], rows: Sequence[pb.Rows], output: Buffer
    ) -> None:
        """These operations and rows of what was accepted, a part of it or all, are done; the outputs are these."""
        for operation in operations:
            operate(self.lengths, operation)
            self._operate_history(operation)
        begin, view = 0, memoryview(output)
        for row in rows:
            end = begin + row.count * self.row_bytes
            self.lengths[row.sequence] = row.start + row.count
            self._remember(row, view[begin:end])
            begin = end
        if operations:
            self._weigh_history()
        if all(self.lengths.get(row.sequence, 0) >= row.start + row.count for row in accepted.rows):
            self._waiting.pop(accepted, None)
            self._weigh()

    def _remember(self, row: pb.Rows, output: Buffer) -> None:
        rows = self.history.get(row.sequence)
        if rows is None:
            rows = self.history[row.sequence] = RowLog(self.row_bytes, row.start)
        # A copy: a view would keep the output of a whole pass alive, of everybody's rows.
        rows.append(bytes(output))
        self.history_bytes += len(output)

    def _operate_history(self, operation: pb.Operation) -> None:
        source = self.history.get(operation.source)
        if operation.kind != pb.Operation.FREE and source is not None:
            self.history[operation.target] = source.fork(operation.length)
        if operation.kind != pb.Operation.FORK:
            self.history.pop(operation.source, None)

    def sent(self, step: pb.Step) -> None:
        """A step has been handed on."""
        for operation in step.operations:
            operate(self.forwarded, operation)
        for row in step.rows:
            self.forwarded[row.sequence] = row.start + row.count

    # ---- epochs -----------------------------------------------------------------------------------------------

    def reprice(self, cost: Callable[[int], int]) -> None:
        """From now on sequences take as much; nothing waits to be done."""
        self.cost = cost
        self._weigh()

    def _reach(self, reach: Mapping[int, int]) -> Mapping[int, int]:
        """The shortest length, beside 0, to which each sequence can go back."""
        return {} if self.can_rollback else {s: min(reach.get(s, length), length) for s, length in self.lengths.items()}

    def prepare(self, alive: Iterable[pb.Sequence], room: Room, reach: Mapping[int, int] = NO_REACH) -> Changes:
        """Hold nothing but what is alive, of what is computed. Returns what is to be changed in the KV cache.

        `reach`: the shortest length, beside 0, to which sequences that cannot go back to any can go back; those that
        are not named cannot at all. Forks for which there is no room are not made: what they would hold is replayed
        later, or refused.
        """
        changes = reconcile(self.lengths, alive, self._reach(reach))
        kept, reserved = list[pb.Operation](), 0
        for operation in changes.operations:
            if operation.kind == pb.Operation.FORK:
                wanted = reserved + self.cost(operation.length)
                if len(self.lengths) + len(kept) >= self.limits.sequences or not room(wanted):
                    continue
                reserved = wanted
            kept.append(operation)
        return self._change(Changes(tuple(kept), changes.truncations))

    def have(self, reach: Mapping[int, int] = NO_REACH) -> list[pb.Held]:
        """What is held of each sequence, from where on it can be sent again, and how much of it can be forgotten.
        `reach`: as for `prepare`."""
        shortest = self._reach(reach)
        return [
            pb.Held(
                sequence=sequence,
                length=length,
                history=min(self.history[sequence].first, length),
                rollback=length - shortest.get(sequence, length),
            )
            for sequence, length in self.lengths.items()
        ]

    def cut(self, cuts: Iterable[pb.Position], reach: Mapping[int, int] = NO_REACH) -> Changes:
        """Forget positions that the client wants computed again. Returns what is to be changed in the KV cache.
        `reach`: as for `prepare`."""
        shortest = self._reach(reach)
        shorter = [(p.sequence, p.position) for p in cuts if p.position < self.lengths.get(p.sequence, 0)]
        gone = [s for s, position in shorter if position == 0 or position < shortest.get(s, 0)]
        frees = tuple(pb.Operation(kind=pb.Operation.FREE, source=sequence) for sequence in gone)
        return self._change(Changes(frees, tuple(cut for cut in shorter if cut[0] not in gone)))

    def _change(self, changes: Changes) -> Changes:
        for operation in changes.operations:
            operate(self.lengths, operation)
            self._operate_history(operation)
        for sequence, length in changes.truncations:
            self.lengths[sequence] = length
            self.history[sequence].truncate(length)
        self.received = dict(self.lengths)
        self._waiting.clear()
        self._weigh()
        self._weigh_history()
        return changes

    def begin(self) -> None:
        """All that is held counts as received and handed on."""
        self.received = dict(self.lengths)
        self.forwarded = dict(self.lengths)

    def replay(self, sequence: int, start: int, want_from: int) -> Iterator[tuple[pb.Rows, bytes]]:
        """Outputs once more from position `start` on, of which the client wants those from `want_from` on.

        Raises Gap where history does not reach back so far: it may have been dropped since the client heard of it.
        """
        rows = self.history.get(sequence)
        if rows is None or not rows.first <= start <= rows.last:
            raise Gap(f"the history of sequence {sequence} does not reach back to {start}")
        self.forwarded[sequence] = start
        for begin in range(start, rows.last, REPLAY_ROWS):
            end = min(begin + REPLAY_ROWS, rows.last)
            want = min(max(end - want_from, 0), end - begin)
            yield pb.Rows(sequence=sequence, start=begin, count=end - begin, want=want), rows.read(begin, end)

    # ---- letting go -------------------------------------------------------------------------------------------

    def drop_history(self) -> None:
        """Nothing can be sent again."""
        for sequence, rows in self.history.items():
            rows.clear(self.lengths.get(sequence, 0))
        self.history_bytes = 0

    def forget(self) -> list[int]:
        """Hold nothing. Returns the sequences that there were."""
        passing = [o.target for step in self._waiting for o in step.operations if o.kind != pb.Operation.FREE]
        gone = list(dict.fromkeys([*self.lengths, *self.received, *passing]))
        self._waiting.clear()
        for table in (self.lengths, self.received, self.forwarded, self.history):
            table.clear()
        self.kv_bytes = self.history_bytes = 0
        return gone

    # ---- what there is ----------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether all that was accepted is computed."""
        return self.received == self.lengths

    def moved(self) -> list[pb.Moved]:
        """How far each sequence has come."""
        return [
            pb.Moved(
                sequence=sequence,
                received=received,
                computed=self.lengths.get(sequence, 0),
                forwarded=self.forwarded.get(sequence, 0),
            )
            for sequence, received in self.received.items()
        ]

    def _weigh(self) -> None:
        """Recount what is held, and what will be while that which waits is being done."""
        self.kv_bytes = max(self._taken(self.lengths), *self._waiting.values(), 0)

    def _weigh_history(self) -> None:
        self.history_bytes = sum(rows.nbytes for rows in self.history.values())


def operate(lengths: dict[int, int], operation: pb.Operation) -> bool:
    """Apply an operation to a table of lengths. False: its source is not held, and nothing was done."""
    if operation.source not in lengths:
        return False
    if operation.kind != pb.Operation.FREE:
        lengths[operation.target] = min(lengths[operation.source], operation.length)
    if operation.kind != pb.Operation.FORK:
        del lengths[operation.source]
    return True


def _fresh(rows: Iterable[pb.Rows], held: Mapping[int, int]) -> list[pb.Rows]:
    """The rows without what is held already, which is cut off their beginnings. Raises Gap."""
    fresh = []
    for row in rows:
        have = held.get(row.sequence, 0)
        if row.start > have:
            raise Gap(f"sequence {row.sequence} is held up to {have}, the step begins at {row.start}")
        count = row.start + row.count - have
        if count > 0:
            fresh.append(pb.Rows(sequence=row.sequence, start=have, count=count, want=min(row.want, count)))
    return fresh


def _ended(operations: Sequence[pb.Operation]) -> dict[int, int]:
    """Sequences that these operations end, and up to which position others go on with them."""
    kept: dict[int, int] = {}
    for operation in operations:
        length = 0 if operation.kind == pb.Operation.FREE else operation.length
        kept[operation.source] = max(kept.get(operation.source, 0), length)
    return {o.source: kept[o.source] for o in operations if o.kind != pb.Operation.FORK}
