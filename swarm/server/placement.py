"""Which blocks a server should host. Pure: records and sizes in, a span out."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swarm.errors import InvalidInput
from swarm.memory import size
from swarm.span import is_inside
from swarm.types import ServerRecord, ServerState, Span

ENOUGH = 2
"""Servers of a block, below which a server more matters before any speed: one may leave without a word."""
LONGEST_STRIDE = 1e12
"""Decode steps a second that no block has."""


def throughput(record: ServerRecord) -> float:
    """Decode steps per second that a server makes through its whole span."""
    return 1000.0 / (max(record.decode_ms, 1e-6) * len(record.span))


def coverage(records: Iterable[ServerRecord], blocks: int) -> list[float]:
    """For each block the decode steps per second of all servers that host it, or soon will.

    Servers that drain do not count: they will be gone when the reader of this has loaded.
    """
    shares: list[list[float]] = [[] for _ in range(blocks)]
    for record in records:
        if record.state is not ServerState.DRAINING:
            for block in range(record.span.first, min(record.span.last, blocks)):
                shares[block].append(throughput(record))
    # fsum and rounding: equal coverage compares equal, in whatever order the records came.
    return [round(math.fsum(share), 6) for share in shares]


@dataclass(frozen=True, slots=True)
class Strength:
    """How well each block is served: by so many `servers`, with so many decode steps a second of all together."""

    servers: NDArray[np.int64]
    speed: NDArray[np.float64]

    @property
    def levels(self) -> NDArray[np.float64]:
        """What orders blocks: how many servers they have, up to `ENOUGH`, then how fast these are."""
        return np.minimum(self.servers, ENOUGH) * LONGEST_STRIDE + self.speed

    def plus(self, span: Span, speed: float) -> Strength:
        """With one server more."""
        servers, speeds = self.servers.copy(), self.speed.copy()
        servers[span.first : span.last] += 1
        speeds[span.first : span.last] += speed
        return Strength(servers, speeds)


def strength_of(records: Iterable[ServerRecord], blocks: int) -> Strength:
    """How well each block is served, and soon will be. Servers that drain do not count."""
    records = [record for record in records if record.state is not ServerState.DRAINING]
    servers = np.zeros(blocks, dtype=np.int64)
    for record in records:
        servers[record.span.first : record.span.last] += 1
    return Strength(servers, np.array(coverage(records, blocks)))


def candidates(block_bytes: Sequence[int], memory: int, joined: Sequence[Span] = ()) -> list[Span]:
    """From each first block, the longest span whose blocks fit into `memory` bytes together.

    `block_bytes`: what each block costs, weights and KV cache; blocks of one model may differ; `joined`: runs of
    blocks that must stay together. Raises InvalidInput when no block fits.
    """
    cuts = [place for place in range(len(block_bytes) + 1) if not is_inside(place, joined)]
    spans = [
        Span(first, last) for first in cuts[:-1] if (last := _end(block_bytes, first, memory, frozenset(cuts))) > first
    ]
    if not spans:
        need = min(sum(block_bytes[first:last]) for first, last in itertools.pairwise(cuts))
        what = "no block fits" if not joined else f"no blocks fit ({', '.join(map(str, joined))} must stay together)"
        raise InvalidInput(
            f"{what}: the smallest needs {size(need)} with its KV cache, and there are {size(memory)}; "
            "raise --memory, lower --cache-tokens, or take a narrower --dtype"
        )
    return spans


def _end(block_bytes: Sequence[int], first: int, memory: int, cuts: Collection[int]) -> int:
    last = fitting = first
    while last < len(block_bytes) and block_bytes[last] <= memory:
        memory -= block_bytes[last]
        last += 1
        fitting = last if last in cuts else fitting
    return fitting


def choose_span(
    records: Iterable[ServerRecord],
    block_bytes: Sequence[int],
    memory: int,
    rng: random.Random | None = None,
    joined: Sequence[Span] = (),
) -> Span:
    """The span of as many blocks as fit into `memory` bytes, where the swarm is thinnest.

    A route is as fast as its weakest block, so the span is chosen that leaves the weakest of the other blocks as
    strong as possible, then the second weakest, and so on. Blocks that nobody hosts are thus taken first, then those
    that only one server has. Among equals
    the span that leaves the fewest separate gaps wins (the next server closes one gap, not two halves), then the one
    that begins and ends where others do (a route then has fewer hops), then `rng` decides, so that servers that start
    together do not all choose alike.

    `joined`: runs of blocks that must stay together. Raises InvalidInput when not even one block fits.
    """
    records = list(records)
    spans = candidates(block_bytes, memory, joined)
    strength = strength_of(records, len(block_bytes))
    return best_of(spans, strength, boundaries(records, len(block_bytes)), rng or random.Random())


def best_of(spans: Sequence[Span], strength: Strength, meeting: Collection[int], rng: random.Random) -> Span:
    """As `choose_span`, of spans that fit, by the strength of each block and where the spans of others meet."""
    levels = strength.levels
    left = _left_behind(levels, spans)
    most = left[np.lexsort(left.T[::-1])[-1]]
    equals = [spans[int(place)] for place in np.flatnonzero((left == most).all(axis=1))]
    ranks = [(_gaps(levels.tolist(), span), _seams(span, meeting)) for span in equals]
    return rng.choice([span for span, rank in zip(equals, ranks, strict=True) if rank == min(ranks)])


def boundaries(records: Iterable[ServerRecord], blocks: int) -> frozenset[int]:
    """Where the spans of servers that stay begin and end, and where the model does."""
    staying = [record.span for record in records if record.state is not ServerState.DRAINING]
    return frozenset({0, blocks, *(edge for span in staying for edge in (span.first, span.last))})


def _left_behind(strength: NDArray[np.float64], spans: Sequence[Span]) -> NDArray[np.float64]:
    """(spans, blocks): the strengths of all blocks, weakest first, as if that span were settled for good."""
    left = np.tile(strength, (len(spans), 1))
    for row, span in zip(left, spans, strict=True):
        row[span.first : span.last] = np.inf
    left.sort(axis=1)
    return left


def _seams(span: Span, meeting: Collection[int]) -> int:
    """How many ends of a span lie within those of others."""
    return (span.first not in meeting) + (span.last not in meeting)


def _gaps(strength: Sequence[float], span: Span) -> int:
    """How many separate runs of the weakest blocks remain beside `span`."""
    outside = [value for block, value in enumerate(strength) if block not in span]
    weakest = min(outside, default=math.inf)
    weak = [value == weakest and block not in span for block, value in enumerate(strength)]
    return sum(here and not before for before, here in zip([False, *weak], weak, strict=False))
