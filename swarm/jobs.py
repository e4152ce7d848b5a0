"""What a runner is asked to do, as plain data: it can be queued, shared among passes, and told to other machines."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from swarm.types import Adapter, Segment, SequenceKey, Span

R = TypeVar("R")
"""Rows of consecutive positions: as the runner keeps them, with a length and slices, or bytes as they come over the
wire."""


@dataclass(frozen=True, slots=True)
class Forward(Generic[R]):
    """Compute `rows`, hidden states of all segments one behind the other, through the blocks of `span`, and append to
    the sequences' KV caches. It gives as many rows."""

    span: Span
    segments: Sequence[Segment]
    rows: R

    @property
    def positions(self) -> int:
        """Rows that come in."""
        return sum(segment.count for segment in self.segments)


class Activations(Protocol):
    """What gradients are computed from, as the runner keeps it. Whoever holds it may forget it."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""

    @property
    def whole_nbytes(self) -> int:
        """Bytes that it would take with room for all."""


@dataclass(frozen=True, slots=True)
class Afresh(Generic[R]):
    """What the blocks of `span` make of whole sequences, which are kept nowhere.

    `counts`: positions of each sequence; `inputs`: their hidden states, one sequence behind the other. `seed`: of what
    the adapter drops, 0 for nothing. It gives as many rows. `room`: bytes that may be kept of what gradients are
    computed from (activations); with any, it gives the rows and `Activations`, or None in place of these.
    `inputs_wanted`: whether gradients of the inputs may be asked for then.
    """

    span: Span
    counts: Sequence[int]
    inputs: R
    adapter: Adapter | None = None
    seed: int = 0
    room: int = 0
    inputs_wanted: bool = True

    @property
    def positions(self) -> int:
        """Rows that come in."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Backward(Generic[R]):
    """Gradients for the inputs of sequences, which are computed again from their beginning and kept nowhere, unless
    there are `activations` of an `Afresh` of the same: these are used up. `room`: bytes that activations may take.

    `counts`: positions of each sequence; `inputs`: their hidden states, `gradients`: those of what the blocks of `span`
    make of them, both as many rows, one sequence behind the other. It gives as many rows, or none if `inputs_wanted` is
    False, and with an `adapter` its gradients, as a file like the one it came in. `seed`: as in `Afresh`.
    """

    span: Span
    counts: Sequence[int]
    inputs: R
    gradients: R
    adapter: Adapter | None = None
    inputs_wanted: bool = True
    seed: int = 0
    room: int = 0
    activations: Activations | None = None

    @property
    def positions(self) -> int:
        """Rows that come in, of inputs."""
        return sum(self.counts)


class Kind(enum.Enum):
    """What happens to a sequence's KV cache."""

    FORK = "fork"
    MOVE = "move"
    TRUNCATE = "truncate"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of KV caches. `target` begins with the first `length` positions of `source` (FORK), which ends (MOVE);
    `source` forgets its positions from `length` on (TRUNCATE), or ends (FREE)."""

    kind: Kind
    source: SequenceKey
    target: SequenceKey | None = None
    length: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Change KV caches, in order. It gives no rows."""

    changes: Sequence[Change] = ()

    @property
    def positions(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Count:
    """Say how many bytes all KV caches hold. It gives no rows."""

    @property
    def positions(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Reach:
    """Say to which length, the shortest beside 0, each of these sequences can go back. It gives no rows."""

    sequences: Sequence[SequenceKey]

    @property
    def positions(self) -> int:
        """None."""
        return 0


class Caches(Protocol):
    """Who keeps KV caches."""

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def truncate(self, sequence: SequenceKey, length: int) -> None: ...
    def free(self, sequence: SequenceKey) -> None: ...


def apply(changes: Iterable[Change], caches: Caches) -> None:
    """Make the changes, in order. Raises what the caches raise."""
    for change in changes:
        if change.kind is Kind.FREE:
            caches.free(change.source)
        elif change.kind is Kind.TRUNCATE:
            caches.truncate(change.source, change.length)
        elif change.target is not None:
            (caches.fork if change.kind is Kind.FORK else caches.move)(change.source, change.target, change.length)


class Computes(Protocol):
    """The part of a runner that computes rows."""

    def put(self, rows: bytes | memoryview, count: int) -> Any:
        """Bytes of `count` rows to where they are computed."""

    def get(self, rows: Any) -> memoryview:
        """The bytes of rows."""

    def run(self, job: Forward[Any] | Afresh[Any] | Backward[Any]) -> Any:
        """Rows of outputs."""


def compute(runner: Computes, span: Span, segments: Sequence[Segment], hidden: bytes | memoryview) -> memoryview:
    """One forward pass from bytes to bytes."""
    forward = Forward(span, segments, runner.put(hidden, sum(segment.count for segment in segments)))
    return runner.get(runner.run(forward))
