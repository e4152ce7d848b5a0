"""How much of a model fits on a machine by each scheme. Pure: sizes and rates in, rows of a table out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.errors import InvalidInput
from swarm.server.placement import candidates
from swarm.server.sizing import Allowance, Sizes, footprint
from swarm.types import Span


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs by a scheme, hidden states in `dtype`. `disk`: bytes that stay on disk of each block, fetched
    and quantized; `rate`: bytes of weights that a decode step of one sequence goes through in a second, with so
    many `threads`."""

    quantization: str
    dtype: str
    sizes: Sizes
    disk: tuple[int, ...]
    rate: float
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Fit:
    """The most blocks by a scheme, `span` being one such run of them; `decode_ms`: of one block, from `Cost.rate`,
    which leaves out attention and what is small."""

    quantization: str
    dtype: str
    span: Span
    weight_bytes: int
    cache_tokens: int
    disk_bytes: int
    decode_ms: float

    @property
    def block_bytes(self) -> float:
        """Bytes of weights of a block, on average."""
        return self.weight_bytes / len(self.span)


def longest(sizes: Sizes, allowance: Allowance) -> Span | None:
    """The first of the longest runs of blocks that fit; None: none fits."""
    try:
        spans = candidates(allowance.block_bytes(sizes), allowance.memory - allowance.fixed(), sizes.joined)
    except InvalidInput:
        return None
    return max(spans, key=len)


def fit(cost: Cost, allowance: Allowance) -> Fit | None:
    """The most blocks that fit by a scheme; None: none does."""
    span = longest(cost.sizes, allowance)
    if span is None:
        return None
    needs = footprint(span, cost.sizes, allowance)
    return Fit(
        cost.quantization,
        cost.dtype,
        span,
        needs.weight_bytes,
        needs.cache_tokens,
        sum(cost.disk[block] for block in span),
        1000.0 * needs.weight_bytes / len(span) / cost.rate,
    )


def roomier(by_scheme: Sequence[tuple[str, Sizes]], allowance: Allowance, blocks: int) -> tuple[str, int] | None:
    """The scheme by which the most blocks fit, and how many, where these are more than `blocks`; of several the first.
    None where there is none."""
    counts = [(name, len(span)) for name, sizes in by_scheme if (span := longest(sizes, allowance)) is not None]
    best = max(counts, key=lambda each: each[1], default=None)
    return best if best is not None and best[1] > blocks else None
