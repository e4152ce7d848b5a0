"""A training pass in parts, so that several hops work at a time, and where each part has been. Pure.

Parts follow each other through the hops as in a pipeline of micro-batches (GPipe: Huang et al., 2019): all go forwards,
then all go back, as the loss is of the whole batch, and its gradient there when all outputs are. One forward, one
backward by turns (1F1B: Narayanan et al., PipeDream, 2019) idles as much, and would only hold fewer activations.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from swarm.client.matrices import Matrices
from swarm.types import Hop, Span
from swarm.wire.messages import SESSION_BYTES

PART_POSITIONS = 256
"""Of all sequences of a part together, where there are several, at most."""
COST_OF_A_PART = 20
"""Positions that a server could compute in the time that a part takes beside its own: reading the weights."""


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """The blocks of `span` on a part's way. `inputs`: what went into them; None: it came from the hop before.
    `hop`: who computed it and may still have the inputs under `id`; None: nobody."""

    span: Span
    inputs: bytes | None
    hop: Hop | None = None
    id: bytes = field(default_factory=lambda: os.urandom(SESSION_BYTES))


@dataclass(slots=True, eq=False)
class Part:
    """Some sequences of a pass, of `counts` positions, on their way together. `seed`: of what is dropped; `apart`: hops
    hand nothing on to each other, so that all that they say is seen here."""

    counts: tuple[int, ...]
    outputs: bytes
    seed: int = 0
    legs: list[Leg] = field(default_factory=list)
    apart: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """A pass that went forward, with an adapter. `outputs`: of each sequence."""

    parts: tuple[Part, ...]
    outputs: tuple[bytes, ...]
    matrices: Matrices


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Gradients: of each sequence's inputs, where they are wanted, and files with parts of those of the adapter's
    matrices."""

    inputs: tuple[bytes, ...]
    adapters: tuple[bytes, ...]


def parts_of(counts: Sequence[int], hops: int = 1) -> list[tuple[int, ...]]:
    """Sequences that follow each other in parts for so many hops: each one sequence, or as many as have no more
    positions together than is best.

    M parts of T positions pass K hops in (1 + (K - 1) / M) (1 + c M / T) times the time of a hop without gaps: the
    pipeline fills and empties, and every part costs c positions more. That is least at M = sqrt(T (K - 1) / c).
    """
    best = max(round(math.sqrt(sum(counts) * (hops - 1) / COST_OF_A_PART)), 1)
    most = min(sum(counts) / best, PART_POSITIONS)
    parts: list[list[int]] = []
    for count in counts:
        if parts and sum(parts[-1]) + count <= most:
            parts[-1].append(count)
        else:
            parts.append([count])
    return [tuple(part) for part in parts]


def split(rows: bytes, counts: Sequence[int], row_bytes: int) -> list[bytes]:
    """The rows of each sequence."""
    parts, begin = list[bytes](), 0
    for count in counts:
        parts.append(rows[begin : begin + count * row_bytes])
        begin += count * row_bytes
    return parts
