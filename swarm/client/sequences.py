"""What a client knows of its session's sequences: its own inputs, and the outputs it still waits for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from swarm.client.chunks import GRAIN
from swarm.client.matrices import NOTHING
from swarm.client.trust import Needs
from swarm.errors import InvalidInput, MalformedFrame
from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb
from swarm.wire.places import RowLayout
from swarm.wire.rows import RowLog


@dataclass(slots=True, eq=False)
class Expected:
    """Outputs of positions up to `last` of a sequence that somebody waits for; `missing` is the first not there yet.

    `void`: the sequence has ended, and they will not come.
    """

    missing: int
    last: int
    pieces: list[bytes] = field(default_factory=list)
    void: bool = False

    @property
    def complete(self) -> bool:
        return self.missing == self.last

    @property
    def outputs(self) -> bytes:
        """What came, in order."""
        return b"".join(self.pieces)


@dataclass(slots=True)
class _Sequence:
    log: RowLog
    parent: int = 0
    parent_length: int = 0
    expected: list[Expected] = field(default_factory=list)
    """What is waited for and not complete, in order of position."""

    @property
    def missing(self) -> int | None:
        """The first position whose output is wanted and not there yet."""
        return self.expected[0].missing if self.expected else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All sequences at one moment: the manifest of an epoch. `wanted`: first output still missing, or the length."""

    logs: Mapping[int, RowLog]
    wanted: Mapping[int, int]
    manifest: tuple[pb.Sequence, ...]

    @property
    def lengths(self) -> dict[int, int]:
        return {sequence: log.last for sequence, log in self.logs.items()}

    def steps(self, starts: Mapping[int, int], limit: int, grain: int = GRAIN) -> Iterator[pb.Step]:
        """The inputs from `starts` on again, in steps of at most `limit` positions."""
        pieces = [
            Piece(sequence, start, log.last - start, max(log.last - max(self.wanted[sequence], start), 0))
            for sequence, log in self.logs.items()
            if (start := starts.get(sequence, 0)) < log.last
        ]
        return pack(pieces, self.logs, limit, grain)


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions `start` .. `start + count` of a sequence, the outputs of the last `want` wanted."""

    sequence: int
    start: int
    count: int
    want: int

    def split(self, count: int) -> tuple[Piece, Piece]:
        rest = self.count - count
        head = Piece(self.sequence, self.start, count, max(self.want - rest, 0))
        return head, Piece(self.sequence, self.start + count, rest, min(self.want, rest))


def pack(pieces: Iterable[Piece], logs: Mapping[int, RowLog], limit: int, grain: int = GRAIN) -> Iterator[pb.Step]:
    """Steps of at most `limit` positions that carry all pieces in order, cut where servers compare prompts: at
    multiples of `grain`."""
    waiting = list(pieces)[::-1]
    while waiting:
        step, room, hidden = pb.Step(), limit, []
        while waiting and room:
            head, rest = waiting.pop(), None
            if head.count > room:
                cut = room - (head.start + room) % grain
                if cut <= 0 and step.rows:
                    waiting.append(head)
                    break
                head, rest = head.split(cut if cut > 0 else room)
            step.rows.add(sequence=head.sequence, start=head.start, count=head.count, want=head.want)
            hidden.append(logs[head.sequence].read(head.start, head.start + head.count))
            room -= head.count
            if rest is not None:
                waiting.append(rest)
        step.hidden = b"".join(hidden)
        yield step


class Sequences:
    """The living sequences of one session."""

    def __init__(self, hidden_bytes: int) -> None:
        self.layout = RowLayout(hidden_bytes)
        self.matrices = NOTHING
        """What is added beside linear layers, for all of them."""
        self.rollback = False
        """Whether they will go back: hops are asked to keep what that takes."""
        self._table: dict[int, _Sequence] = {}
        self._ended: set[int] = set()

    @property
    def row_bytes(self) -> int:
        """Of one position, as it is kept and sent."""
        return self.layout.row_bytes

    def widen(self, planes: int) -> None:
        """From now on each position has so many places; those that had none are where they are counted, and one place
        becomes as many. Raises InvalidInput where they had others."""
        old, wider = self.layout, RowLayout(self.layout.hidden_bytes, planes)
        logs = {sequence: _widened(entry.log, old, wider) for sequence, entry in self._table.items()}
        self.layout = wider
        for sequence, entry in self._table.items():
            entry.log = logs[sequence]
            for expected in entry.expected:
                expected.pieces = [bytes(old.widened(piece, 0, wider)) for piece in expected.pieces]

    def length(self, sequence: int) -> int:
        """Positions issued so far; 0 for a sequence that does not exist yet."""
        entry = self._table.get(sequence)
        return entry.log.last if entry else 0

    def log(self, sequence: int) -> RowLog | None:
        """The inputs of a sequence, to be read; None for one that does not exist."""
        entry = self._table.get(sequence)
        return None if entry is None else entry.log

    def missing(self, sequence: int) -> int | None:
        """The first position whose output is wanted and not there yet."""
        entry = self._table.get(sequence)
        return None if entry is None else entry.missing

    def inputs(self, sequence: int, start: int, stop: int) -> bytes:
        """The hidden states of positions start .. stop, as far as the sequence has them."""
        entry = self._table.get(sequence)
        rows = b"" if entry is None else entry.log.read(min(start, entry.log.last), min(stop, entry.log.last))
        return self.hidden(rows)

    @property
    def positions(self) -> int:
        return sum(entry.log.last for entry in self._table.values())

    @property
    def lengths(self) -> dict[int, int]:
        """Positions issued, by sequence."""
        return {sequence: entry.log.last for sequence, entry in self._table.items()}

    @property
    def needs(self) -> Needs:
        """What hops must be able to hold for them."""
        return Needs.of(self.lengths, self.layout.planes, self.matrices.some)

    def preview(self, operations: Sequence[pb.Operation]) -> dict[int, int]:
        """The lengths after these operations.

        Raises InvalidInput for a source that does not exist or is too short, and for a target that exists or existed:
        a hop that missed its end would take the new sequence for the old one.
        """
        lengths, ended = self.lengths, set(self._ended)
        for operation in operations:
            if operation.source not in lengths:
                raise InvalidInput(f"there is no sequence {operation.source}")
            if operation.kind != pb.Operation.FREE:
                if operation.target in lengths or operation.target in ended:
                    raise InvalidInput(f"sequence {operation.target} exists already, or did")
                if operation.length > lengths[operation.source]:
                    raise InvalidInput(f"sequence {operation.source} has no {operation.length} positions")
                lengths[operation.target] = operation.length
            if operation.kind != pb.Operation.FORK:
                del lengths[operation.source]
                ended.add(operation.source)
        return lengths

    def shortens(self, operations: Sequence[pb.Operation]) -> bool:
        """Whether something of a sequence is taken back by these operations."""
        kept = [operation for operation in operations if operation.kind != pb.Operation.FREE and operation.length]
        return any(operation.length < self.length(operation.source) for operation in kept)

    def check_new(self, sequence: int) -> None:
        """Raises InvalidInput for an id that was used before, or is none."""
        if sequence in self._ended or not 0 <= sequence < 1 << 32:
            raise InvalidInput(f"{sequence} cannot be the id of a new sequence")

    def operate(self, operations: Sequence[pb.Operation]) -> None:
        """Fork, move and free; `preview` said that it can be done."""
        for operation in operations:
            source = self._table[operation.source]
            if operation.kind != pb.Operation.FREE:
                twin = source.log.fork(operation.length)
                self._table[operation.target] = _Sequence(twin, operation.source, operation.length)
            if operation.kind != pb.Operation.FORK:
                del self._table[operation.source]
                self._ended.add(operation.source)
                for expected in source.expected:
                    expected.void = True

    def append(self, rows: Rows) -> tuple[Piece, Expected]:
        """Take new inputs; returns what has to be sent, and what will come of it: the last `want` outputs."""
        entry = self._table.setdefault(rows.sequence, _Sequence(RowLog(self.row_bytes)))
        start, count = entry.log.last, len(rows.hidden) // self.layout.hidden_bytes
        if self.layout.planes:
            entry.log.append(self.layout.join(rows.hidden, self.layout.fitted(rows.places, start, count)))
        else:
            entry.log.append(rows.hidden)
        expected = Expected(entry.log.last - rows.want, entry.log.last)
        if rows.want:
            entry.expected.append(expected)
        return Piece(rows.sequence, start, entry.log.last - start, rows.want), expected

    def pack(self, pieces: Sequence[Piece], limit: int, grain: int = GRAIN) -> list[pb.Step]:
        """The steps that carry these pieces."""
        return list(pack(pieces, {piece.sequence: self._table[piece.sequence].log for piece in pieces}, limit, grain))

    def deliver(self, step: pb.Step) -> bool:
        """Take outputs that came back; what is there already, or not wanted, is dropped. True if something was new.

        Raises MalformedFrame on a gap: outputs come in order.
        """
        begin, hidden, news = 0, memoryview(step.hidden), False
        for row in step.rows:
            end = begin + row.count * self.row_bytes
            news |= self._deliver(row, hidden[begin:end])
            begin = end
        return news

    def _deliver(self, row: pb.Rows, hidden: memoryview) -> bool:
        entry, end, news = self._table.get(row.sequence), row.start + row.count, False
        if entry is None or entry.missing is None or end <= entry.missing:
            return False
        if end > entry.log.last:
            raise MalformedFrame(f"outputs up to {end} of a sequence of {entry.log.last} positions")
        while entry.expected and (expected := entry.expected[0]).missing < end:
            if row.start > expected.missing:
                raise MalformedFrame(f"outputs from {row.start} on, but {expected.missing} is the next that is missing")
            upto = min(end, expected.last)
            first, last = expected.missing - row.start, upto - row.start
            expected.pieces.append(bytes(hidden[first * self.row_bytes : last * self.row_bytes]))
            expected.missing, news = upto, True
            if expected.complete:
                del entry.expected[0]
        return news

    def hidden(self, outputs: bytes) -> bytes:
        """The hidden states of rows that came back."""
        return bytes(self.layout.part(outputs)[0])

    def give_up(self, abandoned: Iterable[Expected]) -> None:
        """Nobody waits for these any more."""
        gone = set(abandoned)
        for entry in self._table.values():
            entry.expected = [expected for expected in entry.expected if expected not in gone]

    def snapshot(self) -> Snapshot:
        """Everything as it is now."""
        logs = {sequence: entry.log.fork(entry.log.last) for sequence, entry in self._table.items()}
        wanted = {s: e.log.last if e.missing is None else e.missing for s, e in self._table.items()}
        manifest = tuple(
            pb.Sequence(id=s, length=e.log.last, parent=e.parent, parent_length=e.parent_length)
            for s, e in self._table.items()
        )
        return Snapshot(logs, wanted, manifest)


def _widened(log: RowLog, old: RowLayout, wider: RowLayout) -> RowLog:
    """The same rows with places. Logs of a client begin at position 0."""
    twin = RowLog(wider.row_bytes, log.first)
    twin.append(old.widened(log.read(log.first, log.last), log.first, wider))
    return twin
