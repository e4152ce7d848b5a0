"""Arithmetic whose every mistake shows: a block's output is an integer hash of all inputs it has seen for the sequence.

A lost, doubled, reordered or stale position changes every later token, without ties and without floats.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.errors import Gap, InvalidInput
from swarm.jobs import Afresh, Backward, Forward, compute
from swarm.server.runner import Runner
from swarm.testing.runner import ByteRows, PastRunner
from swarm.types import Adapter, Segment, SequenceKey, Span
from swarm.wire.rows import Buffer

ROW = struct.Struct("<Q")
MASK = (1 << 64) - 1
VOCABULARY = 997
BESIDE = struct.Struct("<QQ")
"""Of an adapter: a block, and the number that is added beside it; of its gradients: a block, and theirs."""


@dataclass(frozen=True, slots=True)
class ExactActivations:
    """For each sequence what went into each block, and what came out of the last."""

    stages: list[list[list[int]]]
    nbytes: int

    @property
    def whole_nbytes(self) -> int:
        return self.nbytes


class ExactRunner(PastRunner):
    """Computes blocks as hashes. Raises when a sequence does not go on exactly where it ended."""

    can_rollback: bool = True
    trains = True

    def __init__(self) -> None:
        super().__init__()
        self.on_block: Callable[[], None] | None = None
        self.computed = 0
        self.complaints: list[str] = []
        """What it was asked that cannot be done; a server in order never asks such a thing."""

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        inputs = [value for (value,) in ROW.iter_unpack(hidden)]
        outputs: list[int] = []
        for segment in segments:
            rows, inputs = inputs[: segment.count], inputs[segment.count :]
            outputs += self._through(span, segment, rows)
        self.computed += len(outputs)
        return memoryview(b"".join(map(ROW.pack, outputs)))

    def _through(self, span: Span, segment: Segment, rows: list[int]) -> list[int]:
        blocks = self.states.setdefault(segment.sequence, {})
        numbers = memoryview(segment.places).cast("i").tolist()
        planes = len(numbers) // segment.count
        places = [numbers[i * planes : (i + 1) * planes] for i in range(segment.count)]
        for block in span:
            past = blocks.setdefault(block, [])
            beside = numbers_of(segment.adapter).get(block, ())
            if len(past) != segment.start:
                self.complaints.append(f"{segment} does not continue the {len(past)} positions of block {block}")
                raise AssertionError(self.complaints[-1])
            state = past[-1] if past else block
            after = []
            for row, place in zip(rows, places, strict=True):
                state = hash((state, row, block, *place, *beside)) & MASK
                after.append(state)
            past += after
            rows = after
        return rows

    def run(self, job: Forward[ByteRows] | Afresh[ByteRows] | Backward[ByteRows]) -> Any:
        """Gradients are hashes, too, of those that come in and of all that the blocks have computed."""
        match job:
            case Forward():
                return super().run(job)
            case Afresh():
                stages = self._afresh(job)
                outputs = self._rows(after[-1] for after in stages)
                return (outputs, ExactActivations(stages, 8 * job.positions * len(job.span))) if job.room else outputs
            case Backward():
                kept = job.activations
                stages = kept.stages if isinstance(kept, ExactActivations) else self._afresh(job)
                gradients = _cut(_numbers(job.gradients.data), job.counts)
                file = bytearray()
                pairs = zip(stages, gradients, strict=True)
                found = self._rows(_back(each, job, gradient, file) for each, gradient in pairs)
                return found if job.adapter is None else (found[: job.inputs_wanted * len(found)], bytes(file))

    def check_adapter(self, data: Buffer) -> None:
        """Raises InvalidInput for what is no list of blocks and numbers."""
        if not data or len(data) % BESIDE.size:
            raise InvalidInput(f"{len(data)} bytes are no adapter")

    def _rows(self, sequences: Iterable[Sequence[int]]) -> ByteRows:
        data = b"".join(ROW.pack(value) for each in sequences for value in each)
        self.computed += len(data) // ROW.size
        return self.put(data, len(data) // ROW.size)

    def _afresh(self, job: Afresh[ByteRows] | Backward[ByteRows]) -> list[list[list[int]]]:
        """For each sequence what goes into each block, and what comes out of the last."""
        found = []
        for rows in _cut(_numbers(job.inputs.data), job.counts):
            key = (b"afresh", 0)
            stages = [rows]
            for block in job.span:
                segment = Segment(key, 0, len(rows), adapter=job.adapter)
                stages.append(self._through(Span(block, block + 1), segment, stages[-1]))
            self.free(key)
            found.append(stages)
        return found

    def bytes_held(self) -> int:
        return sum(8 * self.room(len(past)) for blocks in self.states.values() for past in blocks.values())

    def reserved_bytes(self, span: Span, length: int) -> int:
        return 8 * len(span) * self.room(length)

    @staticmethod
    def room(length: int) -> int:
        """Positions for which a sequence of `length` positions takes memory: no more than it has."""
        return length


def _numbers(rows: Buffer) -> list[int]:
    return [value for (value,) in ROW.iter_unpack(rows)]


def _cut(values: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    cut, begin = [], 0
    for count in counts:
        cut.append(list(values[begin : begin + count]))
        begin += count
    return cut


def numbers_of(adapter: Adapter | None) -> dict[int, tuple[int]]:
    """What an adapter has beside each block."""
    return {block: (number,) for block, number in BESIDE.iter_unpack(adapter.data)} if adapter is not None else {}


def _back(
    stages: Sequence[Sequence[int]], job: Backward[ByteRows], gradients: Sequence[int], file: bytearray
) -> list[int]:
    """Gradients of what goes into the first block: each is a hash of those of all later positions, and of the rows.
    Those of an adapter come to `file`."""
    found, beside = list(gradients), numbers_of(job.adapter)
    for block, rows in zip(reversed(list(job.span)), reversed(stages[:-1]), strict=True):
        if block in beside:
            file += BESIDE.pack(block, hash((*beside[block], job.seed, *found, *rows)) & MASK)
        state, after = block, list[int]()
        for gradient, row in zip(reversed(found), reversed(rows), strict=True):
            state = hash((state, gradient, row, block)) & MASK
            after.append(state)
        found = after[::-1]
    return found


class RoomyRunner(ExactRunner):
    """Buffers that hold at least 64 positions, as some machines' have to."""

    @staticmethod
    def room(length: int) -> int:
        return -(-length // 64) * 64


class ForgetlessRunner(ExactRunner):
    """Blocks with a running state, as in linear attention: no position can be taken back."""

    can_rollback = False

    def truncate(self, sequence: SequenceKey, length: int) -> None:
        held = max((len(past) for past in self.states.get(sequence, {}).values()), default=0)
        if length < held:
            self.complaints.append("this state cannot roll back")
            raise AssertionError(self.complaints[-1])

    def reach(self, sequence: SequenceKey) -> int:
        """All that there is."""
        return max((len(past) for past in self.states.get(sequence, {}).values()), default=0)


class SnapshotRunner(ExactRunner):
    """Blocks with a running state of which there are snapshots: some positions can be taken back of those that said so,
    and no others."""

    can_rollback = False
    rollback = 32

    def __init__(self) -> None:
        super().__init__()
        self._reach: dict[SequenceKey, int] = {}

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        output = super().forward(span, segments, hidden)
        for segment in segments:
            end = segment.start + segment.count
            floor = max(end - self.rollback, 1) if segment.rollback else end
            self._reach[segment.sequence] = max(floor, self._reach.get(segment.sequence, 0))
        return output

    def reach(self, sequence: SequenceKey) -> int:
        """As it was noted."""
        return self._reach.get(sequence, 0)

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        self._check(source, length)
        super().fork(source, target, length)
        self._reach[target] = self.reach(source)

    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        super().move(source, target, length)
        self._reach.pop(source, None)

    def truncate(self, sequence: SequenceKey, length: int) -> None:
        self._check(sequence, length)
        super().truncate(sequence, length)

    def free(self, sequence: SequenceKey) -> None:
        super().free(sequence)
        self._reach.pop(sequence, None)

    def _check(self, sequence: SequenceKey, length: int) -> None:
        held = max((len(past) for past in self.states.get(sequence, {}).values()), default=0)
        if length < min(self.reach(sequence), held):
            raise Gap(f"of {held} positions {self.reach(sequence)} have to stay, not {length}")

    def snapshot_bytes(self, span: Span) -> int:
        """As much as some positions."""
        return 64 * len(span)


@dataclass(frozen=True)
class Arithmetic:
    """What is computed in a simulation: rows of `row_bytes`, from tokens, through a runner, to tokens.

    With a `dtype` that codecs know and its `hidden_size`, servers offer them.
    """

    row_bytes: int
    embed: Callable[[int, int], bytes]
    token_of: Callable[[bytes], int]
    make_runner: Callable[[Span], Runner]
    dtype: str = "exact"
    hidden_size: int = 1


def embed(token: int, position: int) -> bytes:
    """The hidden state of a token."""
    return ROW.pack(hash((token, position)) & MASK)


def token_of(output: bytes) -> int:
    """The next token, from the last row."""
    return int(ROW.unpack(output[-ROW.size :])[0] % VOCABULARY)


def reference(prompt: Sequence[int], count: int, blocks: int = 9, adapter: Adapter | None = None) -> list[int]:
    """What one process generates."""
    runner, tokens, start = ExactRunner(), list(prompt), 0
    while len(tokens) < len(prompt) + count:
        rows = b"".join(embed(token, start + i) for i, token in enumerate(tokens[start:]))
        output = compute(
            runner, Span(0, blocks), [Segment((b"", 0), start, len(tokens) - start, adapter=adapter)], rows
        )
        start = len(tokens)
        tokens.append(token_of(bytes(output)))
    return tokens[len(prompt) :]
