"""A grid laid out for the compiled kernel, and rows multiplied with it."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import torch

from swarm.models.linear.compiled import PANEL, STEP, Kernel, Weight
from swarm.models.linear.grid import Grid, pack4

MANY_ROWS = 512
"""Rows that are multiplied in one call, as in kernel.c: what they take to work in stays small."""


def fits(grid: Grid) -> bool:
    """Whether the kernel computes with such groups."""
    return grid.group % STEP == 0


class Packed:
    """A grid as kernel.c wants it; `columns` of the grid are left to the caller."""

    def __init__(self, grid: Grid) -> None:
        self.out_features, self.in_features, self.group = grid.out_features, grid.in_features, grid.group
        self.bits = grid.bits
        self.table = grid.table
        self.codes = _panels_of_codes(grid)
        self.scales = _panels(grid.scales)
        self.least = None if grid.least is None else _panels(grid.least.to(grid.scales.dtype))
        if grid.least is not None and grid.least.dtype != grid.scales.dtype:
            self.scales, self.least = _panels(grid.scales.float()), _panels(grid.least.float())

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum(part.nbytes for part in (self.codes, self.scales, self.least) if part is not None)

    def grid(self, columns: torch.Tensor | None = None) -> Grid:
        """What was laid out; `columns`: its order of columns."""
        codes = self.codes
        if self.bits == 8:
            codes = (codes.int() - 128).to(torch.int8).transpose(1, 2).reshape(-1, self.in_features)
        else:
            pairs = torch.stack((codes & 15, codes >> 4), dim=2)  # [panel, 8 columns, half, output, 4]
            codes = pack4(pairs.permute(0, 3, 1, 2, 4).reshape(-1, self.in_features))
        least = None if self.least is None else self._flat(self.least)
        return Grid(codes[: self.out_features].contiguous(), self._flat(self.scales), least, self.table, columns)

    def _flat(self, panels: torch.Tensor) -> torch.Tensor:
        return panels.transpose(1, 2).reshape(-1, panels.shape[1])[: self.out_features].contiguous()

    def multiply(self, kernel: Kernel, rows: torch.Tensor, kind: int | None = None) -> torch.Tensor:
        """`[rows, in_features]` float32 → `[rows, out_features]` float32; `kind`: in `KINDS`, by default the best."""
        weight, rows, chosen = self._weight, rows.contiguous(), kernel.best if kind is None else kind
        product = torch.empty(len(rows), self.out_features)
        if len(rows) <= MANY_ROWS:
            kernel.multiply(weight, rows, product, chosen)
            return product
        for part, result in zip(torch.split(rows, MANY_ROWS), torch.split(product, MANY_ROWS), strict=True):
            kernel.multiply(weight, part, result, chosen)
        return product

    @cached_property
    def _weight(self) -> Weight:
        """Where everything is; made anew in a copy, whose parts are elsewhere."""
        levels = self.table or tuple(range(16))
        offset = 128 if self.bits == 8 else -min(*levels, 0)
        least = None if self.least is None else self.least.data_ptr()
        halves = int(self.scales.dtype == torch.float16)
        table = (ctypes.c_uint8 * 16)(*(level + offset for level in levels))
        shape = (self.in_features, self.out_features, self.group)
        pointers = (self.codes.data_ptr(), self.scales.data_ptr(), least)
        return Weight(*shape, self.bits, halves, offset, *pointers, table)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_weight"}


def _panels(numbers: torch.Tensor) -> torch.Tensor:
    """`[out, groups]` → `[panels, groups, 16]`, with nothing for outputs that are not there."""
    return _filled(numbers).view(-1, PANEL, numbers.shape[1]).transpose(1, 2).contiguous()


def _panels_of_codes(grid: Grid) -> torch.Tensor:
    """uint8 `[panels, in / 4, 16, 4]`, or of four bits `[panels, in / 8, 16, 4]`."""
    codes = _filled(grid.codes)
    if grid.bits == 8:
        unsigned = (codes.int() + 128).to(torch.uint8)
        return unsigned.view(-1, PANEL, grid.in_features // 4, 4).transpose(1, 2).contiguous()
    pairs = torch.stack((codes & 15, codes >> 4), dim=-1).view(-1, PANEL, grid.in_features // 8, 2, 4)
    return (pairs[:, :, :, 0] | (pairs[:, :, :, 1] << 4)).transpose(1, 2).contiguous()


def _filled(numbers: torch.Tensor) -> torch.Tensor:
    """With rows of nothing up to a pair of panels."""
    missing = -len(numbers) % (2 * PANEL)
    return torch.cat([numbers, numbers.new_zeros(missing, numbers.shape[1])]) if missing else numbers
