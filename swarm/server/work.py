"""A step that waits for the engine, and the parts of it that take part in passes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm.errors import ComputeFailed, Gap
from swarm.jobs import Activations, Afresh, Backward, Change, Copy, Count, Forward, Reach
from swarm.types import Segment, SequenceKey
from swarm.wire.rows import Buffer

Job = Forward[memoryview] | Afresh[memoryview] | Backward[memoryview] | Copy | Count | Reach


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of the inputs, as bytes of rows; of an adapter, as a file."""

    rows: Buffer
    adapter: bytes


@dataclass(frozen=True, slots=True)
class Passed:
    """The outputs of a forward pass, as bytes of rows, and what is kept of it for gradients. `adapter`: nothing."""

    rows: Buffer
    activations: Activations | None
    adapter: bytes = b""


Result = Buffer | Gradients | Passed | int | dict[SequenceKey, int]
"""Of a job."""


@dataclass(slots=True, eq=False)
class Work:
    """One job of one session, with rows as bytes. `done` gets the outputs, or `failed` the error, on the loop: Gap
    where a sequence could not go back as far as it was to.

    `before`: changes of KV caches that are made first. `voided` is called instead of `done` where `Engine.void` took
    the work back. `client`: on whose account it is served, with `weight` times the share of others. `kept`: it is done
    although the session is cancelled. `over` is called on the loop, last of all, when the work was computed, failed or
    cancelled: nothing of it will be run any more. `submitted` and `started` are times of the engine's clock,
    `computing` the seconds of its passes. `rows` and `outputs` are where the runner computes, `running` and how many
    `slices` of it are done where it does so in slices;
    `result` is what they become in the end.
    """

    session: bytes
    job: Job
    done: Callable[[Any], None]
    failed: Callable[[ComputeFailed | Gap], None]
    before: Sequence[Change] = ()
    voided: Callable[[], None] = lambda: None
    client: str = ""
    weight: float = 1.0
    kept: bool = False
    over: Callable[[], None] = lambda: None
    taken: int = 0
    begun: bool = False
    broken: bool = False
    submitted: float = 0.0
    started: float = 0.0
    computing: float = 0.0
    rows: Any = None
    running: Generator[None, None, Any] | None = None
    slices: int = 0
    outputs: list[Any] = field(default_factory=list)
    result: Result = b""

    @property
    def segments(self) -> Sequence[Segment]:
        """What may share a pass with others: the segments of a forward job."""
        return self.job.segments if isinstance(self.job, Forward) else ()

    @property
    def left(self) -> int:
        """Positions that no pass has taken yet."""
        return self.job.positions - self.taken

    @property
    def slice(self) -> int:
        """Positions that count for one slice of what is computed in slices: one a block, forwards and backwards."""
        return -(-self.job.positions // self.parts) if self.parts else 0

    @property
    def parts(self) -> int:
        """Slices that it is expected to have."""
        match self.job:
            case Afresh() as job:
                return len(job.span)
            case Backward() as job:
                return (1 if job.activations else 2) * len(job.span)
            case _:
                return 0

    def is_beyond(self, sequence: SequenceKey, length: int, *, some: bool = False) -> bool:
        """Whether all (or some) of it is positions of `sequence` from `length` on."""
        beyond = [segment.sequence == sequence and segment.start >= length for segment in self.segments]
        return any(beyond) if some else bool(beyond) and all(beyond)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a work that takes part in one pass: rows `first` .. `last` - 1 of it."""

    work: Work
    segments: Sequence[Segment]
    first: int
    last: int

    @property
    def positions(self) -> int:
        return self.last - self.first

    @property
    def ends(self) -> bool:
        """Whether nothing of the work is left after it."""
        return self.last == self.work.job.positions


def cut(work: Work, positions: int) -> Share:
    """The next `positions` positions of a work."""
    segments, skip, left = [], work.taken, positions
    for segment in work.segments:
        begin, skip = min(skip, segment.count), max(skip - segment.count, 0)
        count = min(segment.count - begin, left)
        if count:
            segments.append(segment.part(begin, count))
            left -= count
    return Share(work, segments, work.taken, work.taken + positions)
