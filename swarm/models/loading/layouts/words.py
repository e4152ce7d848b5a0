"""Levels of four or eight bits without a sign, packed into words of 32, as most layouts store them."""

from __future__ import annotations

import torch

from swarm.models.linear.grid import SIGNED, Grid, pack4, small

WORD = 32
"""Bits of a word."""


def lanes(words: torch.Tensor) -> torch.Tensor:
    """int32 `[rows, words]` → its bytes, uint8 `[rows, 4 · words]`, the lowest first."""
    # A tensor with one row or column may be called contiguous whatever its strides are, and cannot be viewed then.
    return torch.empty(words.shape, dtype=words.dtype).copy_(words).view(torch.uint8)


def levels(lanes: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes `[rows, bytes]` → levels, uint8 `[rows, 8 / bits · bytes]`, the one in the lower half of a byte first."""
    return lanes if bits == 8 else torch.stack((lanes & 15, lanes >> 4), dim=-1).flatten(1)


def grid(
    lanes: torch.Tensor,
    bits: int,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> Grid:
    """The numbers (level - zero) · scale; exact in float32 where scales are of 16 bits.

    `lanes`: uint8 `[out, bits / 8 · in]`. `scales`: float32 `[out, groups]`; `zeros`: levels `[out, groups]`, by
    default the middle of the range. `columns`: int64 `[in]`, where the columns are in the order of groups, if they are
    stored in another.
    """
    middle = 1 << (bits - 1)
    if columns is not None:
        ordered = levels(lanes, bits)[:, columns]
        lanes = pack4(ordered) if bits == 4 else ordered
    below = None if zeros is None else (middle - zeros.float()) * scales
    least = small(below) if below is not None and bool(below.any()) else None
    if bits == 4:
        return Grid(lanes, small(scales), least, SIGNED, columns)
    return Grid((lanes ^ middle).view(torch.int8), small(scales), least, columns=columns)
