"""Into how many pieces a step is cut so that all hops are busy at once. Pure.

A prompt of n positions through h hops takes h passes if it is sent whole, one hop computing at a time. Cut into k
chunks it flows as through a pipeline: while hop 2 computes chunk 1, hop 1 computes chunk 2. The last chunk is through
after the passes of one chunk through all hops and k - 1 more passes of the slowest; but each pass has a cost that
does not depend on its size, above all reading the weights, so that small chunks waste. The same holds for a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swarm.config import PREFILL_POSITIONS
from swarm.types import Hop

LARGEST = 512
"""Positions in one frame, whatever the times say: servers have others to serve too."""
GRAIN = 8
"""Chunks are multiples of so many positions, and of those at which servers compare prompts."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a pass takes, in seconds: `base`, and `per_position` for each position in it."""

    base: float
    per_position: float

    def seconds(self, positions: float) -> float:
        return self.base + self.per_position * positions


def stage(hop: Hop) -> Stage:
    """What a hop's record says of its passes: a decode step is a pass of one position."""
    blocks, record = len(hop.span), hop.server
    base = max(record.decode_ms, 0.0) / 1000.0 * blocks
    positions = record.prefill_positions or PREFILL_POSITIONS
    prefill = positions * blocks / max(record.prefill_rate, 1e-6)
    return Stage(base, max(prefill - base, 0.01 * prefill) / positions)


def pipeline_seconds(positions: int, chunk: int, stages: Sequence[Stage]) -> float:
    """Until the last chunk of `positions` is through all stages."""
    chunks = -(-positions // chunk)
    passes = [one.seconds(positions / chunks) for one in stages]
    return sum(passes) + (chunks - 1) * max(passes)


def grain_of(prefix_chunks: Iterable[int]) -> int:
    """Where prompts are cut so that servers which compare them in these steps can; 0: one that does not say."""
    grain = math.lcm(GRAIN, *(chunk for chunk in prefix_chunks if chunk))
    return grain if grain <= LARGEST else GRAIN


def best_chunk(positions: int, stages: Sequence[Stage], grain: int = GRAIN) -> int:
    """The chunk, in positions, with which `positions` are soonest through all stages; the largest of equals."""
    if positions <= grain or len(stages) < 2:
        return LARGEST
    sizes = range(LARGEST - LARGEST % grain, 0, -grain)
    return min(sizes, key=lambda size: pipeline_seconds(positions, size, stages))
