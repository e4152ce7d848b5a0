"""Which blocks a server should host. Pure: records and sizes in, a span out."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

from swarm.errors import InvalidInput
from swarm.memory import size
from swarm.types import ServerRecord, ServerState, Span


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


def candidates(block_bytes: Sequence[int], memory: int) -> list[Span]:
    """From each first block, the longest span whose blocks fit into `memory` bytes together.

    `block_bytes`: what each block costs, weights and KV cache; blocks of one model may differ.
    Raises InvalidInput when no block fits.
    """
    spans = [
        Span(first, last) for first in range(len(block_bytes)) if (last := _end(block_bytes, first, memory)) > first
    ]
    if not spans:
        need = min(block_bytes)
        raise InvalidInput(
            f"no block fits: the smallest needs {size(need)} with its KV cache, and there are {size(memory)}; "
            "raise --memory, lower --cache-tokens, or take a narrower --dtype"
        )
    return spans


def _end(block_bytes: Sequence[int], first: int, memory: int) -> int:
    last = first
    while last < len(block_bytes) and block_bytes[last] <= memory:
        memory -= block_bytes[last]
        last += 1
    return last


def choose_span(
    records: Iterable[ServerRecord], block_bytes: Sequence[int], memory: int, rng: random.Random | None = None
) -> Span:
    """The span of as many blocks as fit into `memory` bytes, where the swarm is thinnest.

    A route is as fast as its weakest block, so the span is chosen that leaves the weakest of the other blocks as
    strong as possible, then the second weakest, and so on. Blocks that nobody hosts are thus taken first. Among equals
    the span that leaves the fewest separate gaps wins (the next server closes one gap, not two halves), then `rng`
    decides, so that servers that start together do not all choose alike.

    Raises InvalidInput when not even one block fits.
    """
    strength = coverage(records, len(block_bytes))
    spans = candidates(block_bytes, memory)
    best = max(_left_behind(strength, span) for span in spans)
    equals = [span for span in spans if _left_behind(strength, span) == best]
    fewest = min(_gaps(strength, span) for span in equals)
    return (rng or random.Random()).choice([span for span in equals if _gaps(strength, span) == fewest])


def _left_behind(strength: Sequence[float], span: Span) -> list[float]:
    """The strengths of all blocks, weakest first, as if `span` were settled for good."""
    return sorted(math.inf if block in span else value for block, value in enumerate(strength))


def _gaps(strength: Sequence[float], span: Span) -> int:
    """How many separate runs of the weakest blocks remain beside `span`."""
    outside = [value for block, value in enumerate(strength) if block not in span]
    weakest = min(outside, default=math.inf)
    weak = [value == weakest and block not in span for block, value in enumerate(strength)]
    return sum(here and not before for before, here in zip([False, *weak], weak, strict=False))
