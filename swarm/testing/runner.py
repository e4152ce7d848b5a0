"""Runners on the host, for tests: rows are bytes."""

from __future__ import annotations

import abc
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.errors import InvalidInput, UnsupportedModel
from swarm.jobs import Afresh, Backward, Forward
from swarm.types import Segment, SequenceKey, Span
from swarm.wire.rows import Buffer


@dataclass(frozen=True, slots=True)
class ByteRows:
    """Rows of `size` bytes."""

    data: Buffer
    size: int

    def __len__(self) -> int:
        return len(self.data) // self.size if self.size else 0

    def __getitem__(self, rows: slice) -> ByteRows:
        first, last, _ = rows.indices(len(self))
        return ByteRows(memoryview(self.data)[first * self.size : last * self.size], self.size)


class ByteRunner(abc.ABC):
    """The part of a runner that computes, for those whose `forward` takes and gives bytes. No gradients. Sequences can
    go back as far as they like, at no cost."""

    rollback = 0
    trains = False

    def put(self, rows: Buffer, count: int) -> ByteRows:
        """Bytes of `count` rows."""
        return ByteRows(rows, len(rows) // count if count else 0)

    def get(self, rows: ByteRows) -> memoryview:
        """The bytes of rows."""
        return memoryview(rows.data)

    def join(self, parts: Sequence[ByteRows]) -> ByteRows:
        """Rows one behind the other."""
        return ByteRows(b"".join(part.data for part in parts), parts[0].size)

    def run(self, job: Forward[ByteRows] | Afresh[ByteRows] | Backward[ByteRows]) -> Any:
        """Rows of outputs. Raises UnsupportedModel for what is computed afresh, and gradients."""
        if not isinstance(job, Forward):
            raise UnsupportedModel("bytes have no gradients")
        return self.put(self.forward(job.span, job.segments, job.rows.data), job.positions)

    def slices(self, job: Afresh[ByteRows] | Backward[ByteRows]) -> Generator[None, None, Any]:
        """In one part for each block that is passed."""
        for _ in job.span:
            yield
        return self.run(job)

    def reach(self, sequence: SequenceKey) -> int:
        """Any length."""
        return 0

    def snapshot_bytes(self, span: Span) -> int:
        """There are none."""
        return 0

    def check_adapter(self, data: Buffer) -> None:
        """Raises InvalidInput: bytes have none."""
        raise InvalidInput("no adapters here")

    @abc.abstractmethod
    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        """Compute the rows of all segments, one behind the other."""


class PastRunner(ByteRunner):
    """One that keeps something of every position in every block: `states`, by sequence and block."""

    def __init__(self) -> None:
        self.states: dict[SequenceKey, dict[int, list[Any]]] = {}

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        self.states[target] = {block: past[:length] for block, past in self.states[source].items()}

    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        self.fork(source, target, length)
        del self.states[source]

    def truncate(self, sequence: SequenceKey, length: int) -> None:
        for past in self.states.get(sequence, {}).values():
            del past[length:]

    def free(self, sequence: SequenceKey) -> None:
        self.states.pop(sequence, None)
