"""Numbers of eight bits (or four) with a scale for each tensor, row, or block of rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import FLOAT8, Grid
from swarm.models.loading.layouts import checks
from swarm.models.loading.layouts.stored import Stored

FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)
AT_ONCE = 1 << 22
"""Numbers that are float32 at one time."""
GROUP = 16
"""Columns that share a scale must be a multiple of so many for there to be a kernel."""
SMALLEST = 16
"""Numbers of a block."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What four bits stand for (OCP Microscaling Formats 1.0, §5.3.3)."""


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """Numbers · scale: on their grid where there is one, else computed in float32 and rounded once, to `dtype`.

    `weight`: float8, or int8 with two numbers of four bits a byte, of two dimensions or more. `scale`: of one number,
    or of as many dimensions, each 1, the weight's own, or a count of blocks; `block`: rows and columns of a block
    where the configuration says so, the last ones smaller.
    """

    weight: str
    scale: str
    dtype: torch.dtype
    block: tuple[int, int] | None = None

    @property
    def parts(self) -> list[str]:
        return [self.weight, self.scale]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        found = stored.shape(self.weight)
        if len(found) < 2 or 0 in found:
            raise BadCheckpoint(f"{self.weight} is {list(found)}, which is no matrix")
        *rows, columns = found
        return (*rows, columns * 2 if stored.dtype(self.weight) == torch.int8 else columns)

    def on_grid(self, stored: Stored) -> bool:
        """A matrix of e4m3 whose scales are for equal numbers of columns."""
        shape = self.shape(stored)
        if len(shape) != 2 or stored.dtype(self.weight) != FLOAT8:
            return False
        scale = stored.shape(self.scale)
        blocks = scale[1] if len(scale) == 2 else 1
        group = block_size(self.scale, blocks, shape[1], self.block and self.block[1]) if blocks > 1 else shape[1]
        return shape[1] % group == 0 and group % GROUP == 0

    def read(self, stored: Stored, rows: slice | None) -> torch.Tensor | Grid:
        shape = self.shape(stored)
        scales = self._scales(stored, shape)
        if self.on_grid(stored):
            some = checks.bounds(rows, shape[0])
            codes = stored.read(self.weight, some)
            if bool(((codes.view(torch.uint8) & 0x7F) == 0x7F).any()):
                raise BadCheckpoint(f"{self.weight} has numbers that are none; fetch the checkpoint again")
            scales = scales[some] if len(scales) > 1 else scales
            return Grid(codes, scales.expand(len(codes), -1).contiguous())
        if stored.dtype(self.weight) not in (*FLOATS, torch.int8):
            raise BadCheckpoint(f"{self.weight} has numbers of another kind than {self.scale} scales, eight bits")
        some = checks.bounds(rows, shape[0])
        numbers = stored.read(self.weight, some)
        scales = scales[some] if len(scales) > 1 else scales
        scales = scales.expand(*numbers.shape[:-1], scales.shape[-1]).flatten(0, -2)
        return self._product(numbers.flatten(0, -2), scales, shape[-1]).view(len(numbers), *shape[1:])

    def _product(self, numbers: torch.Tensor, scales: torch.Tensor, columns: int) -> torch.Tensor:
        """`numbers` `[rows, columns]`, `scales` `[rows, blocks]`; a few rows at a time."""
        result = torch.empty(len(numbers), columns, dtype=self.dtype)
        blocks = scales.shape[1]
        step = columns if blocks == 1 else block_size(self.scale, blocks, columns, self.block and self.block[1])
        rows = max(1, AT_ONCE // columns)
        for some in (slice(first, first + rows) for first in range(0, len(numbers), rows)):
            part = _halves(numbers[some]) if numbers.dtype == torch.int8 else numbers[some].float()
            factor = scales[some] if blocks == 1 else scales[some].repeat_interleave(step, dim=1)[:, :columns]
            result[some] = part * factor
        return result

    def _scales(self, stored: Stored, shape: tuple[int, ...]) -> torch.Tensor:
        """float32, one for each row, of one dimension more for the columns' blocks."""
        scales = checks.scales(stored, self.scale, dtypes=(*checks.FLOATS, *checks.POWERS))
        if scales.numel() == 1:
            return scales.view((1,) * len(shape))
        scales = scales[:, None] if scales.shape == shape[:1] else scales
        if scales.dim() != len(shape):
            raise BadCheckpoint(f"{self.scale} is {list(scales.shape)}, which does not fit a weight of {list(shape)}")
        for dim in range(len(shape) - 1):
            scales = self._along(scales, dim, shape)
        return scales

    def _along(self, scales: torch.Tensor, dim: int, shape: Sequence[int]) -> torch.Tensor:
        """The scales of blocks along a dimension, as those of its rows."""
        there, rows = scales.shape[dim], shape[dim]
        if there in (1, rows):
            return scales
        step = block_size(self.scale, there, rows, self.block[0] if self.block and dim == len(shape) - 2 else None)
        return scales.index_select(dim, torch.arange(rows) // step)


def block_size(name: str, blocks: int, numbers: int, said: int | None) -> int:
    """How many of `numbers` have a scale together; `said`: by the configuration.

    Where it is not as said, as in layers of another layout, the numbers of a block are a power of two. Raises
    BadCheckpoint.
    """
    if said is not None and -(-numbers // said) == blocks:
        return said
    size = 0 if blocks == 0 or numbers % blocks else numbers // blocks
    if size & (size - 1) or size < SMALLEST:
        raise BadCheckpoint(f"{name} has scales for {blocks} blocks of {numbers} rows or columns")
    return size


def _halves(pairs: torch.Tensor) -> torch.Tensor:
    """Two numbers of four bits a byte `[rows, columns / 2]` → float32 `[rows, columns]`, the lower half first."""
    table = torch.tensor(E2M1)
    pairs = pairs.view(torch.uint8)
    return torch.stack((table[(pairs & 15).int()], table[(pairs >> 4).int()]), dim=-1).flatten(1)
