"""What fits of a model by each scheme, as a table. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.memory import size
from swarm.server.fit import Cost, Fit

HEADER = ("scheme", "dtype", "blocks", "a block", "weights", "cache", "disk", "decode")


def table(fits: Sequence[tuple[Cost, Fit | None]], blocks: int) -> list[str]:
    """A line for each scheme, below a header; `blocks`: of the whole model."""
    rows = [HEADER, *(_row(cost, fit, blocks) for cost, fit in fits)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(cost: Cost, fit: Fit | None, blocks: int) -> tuple[str, ...]:
    if fit is None:
        smallest = size(min(cost.sizes.weights))
        return cost.quantization, cost.dtype, f"0 of {blocks}", smallest, *["-"] * 4
    return (
        fit.quantization,
        fit.dtype,
        f"{len(fit.span)} of {blocks}",
        size(fit.block_bytes),
        size(fit.weight_bytes),
        f"{fit.cache_tokens:,} tokens",
        size(fit.disk_bytes),
        f"{fit.decode_ms:.2f} ms/block",
    )
