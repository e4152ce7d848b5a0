"""A grid laid out for the compiled kernel, and rows multiplied with it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from typing import Any

import torch

from swarm.models.linear.compiled import PANEL, SCALES, STEPS, UNIT, Kernel, Weight, kernel
from swarm.models.linear.grid import FLOAT8, Grid, is_whole, pack4, stack

MANY_ROWS = 512
"""Rows that are multiplied in one call, as in kernel.c: what they take to work in stays small."""
PAIR = 2 * PANEL
"""Outputs that are laid out together."""
MOST = 127 * 128
"""Of levels that are floats, as whole numbers: two digits of eight bits."""
CHUNK = 1 << 21
"""Numbers that are laid out at once."""


def laid_out(parts: Iterable[Grid], outputs: int) -> Packed | Grid:
    """A grid of so many outputs, which comes some after others, for the kernel where there is one that can; no more
    than one part is held beside it. Parts have a multiple of 32 outputs, but for the last."""
    rest = iter(parts)
    first = next(rest)
    if first.codes.device.type == "cpu" and _step(first) and first.unit in (None, UNIT) and kernel() is not None:
        return Packed(chain([first], rest), outputs)
    more = list(rest)
    return stack([first, *more]) if more else first


def _step(grid: Grid) -> int | None:
    """Columns that the kernel takes at once: so many that they share a scale."""
    return next((step for step in STEPS if grid.group % step == 0), None)


class Packed:
    """A grid as kernel.c wants it: codes uint8 `[panels, in / 4, 16, 4]`, of four bits `[panels, in / 8, 16, 4]`,
    scales, minima and what they count `[panels, groups, 16]`; an even number of panels, with nothing for outputs that
    are not there."""

    codes: torch.Tensor

    def __init__(self, parts: Iterable[Grid], outputs: int) -> None:
        self.out_features = outputs
        first = 0
        for part in _pieces(parts):
            if first == 0:
                self._begin(part)
            panel = first // PANEL
            last = panel + -(-part.out_features // PAIR) * 2
            self.codes[panel:last] = _panels_of_codes(part)
            for name, numbers in self._numbers.items():
                numbers[panel:last] = _panels(part.parts()[name])
            first += part.out_features

    def _begin(self, grid: Grid) -> None:
        self.floats = grid.codes.dtype == FLOAT8
        self.bits, self.group, self.table, self.columns = grid.bits, grid.group, grid.table, grid.columns
        self.in_features = grid.in_features
        panels, step = -(-self.out_features // PAIR) * 2, _step(grid)
        assert step is not None
        self._columns_at_once = step
        # The kernel reads scales and minima alike.
        kind = torch.float32 if grid.least is not None and grid.least.dtype == torch.float32 else grid.scales.dtype
        self.codes = torch.empty(panels, self.in_features * self.bits // 32, PANEL, 4, dtype=torch.uint8)
        self._numbers = {
            name: torch.empty(panels, part.shape[1], PANEL, dtype=kind if name in ("scales", "least") else part.dtype)
            for name, part in grid.parts().items()
            if name not in ("codes", "columns")
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        parts = (self.codes, *self._numbers.values(), self.columns)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return self.codes.device

    def grid(self) -> Grid:
        """What was laid out, perhaps with scales or minima in more bits."""
        return self.rows(0, self.out_features)

    def rows(self, first: int, last: int) -> Grid:
        """The same of some outputs, or as far as there are any; `first` is a multiple of 16."""
        last = min(last, self.out_features)
        panels, count = slice(first // PANEL, -(-last // PANEL)), last - first
        codes = self.codes[panels]
        if self.bits == 8:
            codes = codes if self.floats else codes.bitwise_xor(128)
            codes = codes.transpose(1, 2).reshape(-1, self.in_features).view(FLOAT8 if self.floats else torch.int8)
        else:
            pairs = torch.stack((codes & 15, codes >> 4), dim=2)  # [panel, 8 columns, half, output, 4]
            codes = pack4(pairs.permute(0, 3, 1, 2, 4).reshape(-1, self.in_features))
        numbers = {
            name: part[panels].transpose(1, 2).reshape(-1, part.shape[1])[:count].contiguous()
            for name, part in self._numbers.items()
        }
        return Grid(codes[:count].contiguous(), table=self.table, columns=self.columns, **numbers)

    def multiply(self, kernel: Kernel, rows: torch.Tensor, kind: int | None = None) -> torch.Tensor:
        """`[rows, in_features]` float32 → `[rows, out_features]` float32; `kind`: in `KINDS`, by default the best."""
        chosen = kernel.best if kind is None else kind
        rows = (rows if self.columns is None else rows[:, self.columns]).contiguous()
        product, rest = self._product(self._weight, rows, kernel, chosen), self._rest
        if rest is None:
            return product
        return product.mul_(128 * self._unit).add_(self._product(rest, rows, kernel, chosen).mul_(self._unit))

    def _product(self, weight: Weight, rows: torch.Tensor, kernel: Kernel, chosen: int) -> torch.Tensor:
        count = rows.shape[0]  # len() of a tensor takes longer, and this is called for every layer of a step
        product = torch.empty(count, self.out_features)
        if count <= MANY_ROWS:
            kernel.multiply(weight, rows, product, chosen)
            return product
        for part, result in zip(torch.split(rows, MANY_ROWS), torch.split(product, MANY_ROWS), strict=True):
            kernel.multiply(weight, part, result, chosen)
        return product

    @cached_property
    def _unit(self) -> float:
        """What levels that are floats are whole numbers of 15 bits of."""
        return max(map(abs, self.table or ())) / MOST

    def _digits(self) -> tuple[list[int], list[int]]:
        """Levels that are floats, high and low: 128 high + low."""
        whole = [round(level / self._unit) for level in self.table or ()]
        high = [(number + 64) >> 7 for number in whole]
        return high, [number - 128 * upper for number, upper in zip(whole, high, strict=True)]

    @cached_property
    def _rest(self) -> Weight | None:
        """The weight with the lower halves of levels that are floats."""
        return None if self.table is None or is_whole(self.table) else self._with(self._digits()[1])

    @cached_property
    def _weight(self) -> Weight:
        """The weight, with the upper halves of levels that are floats."""
        if self.table is None or is_whole(self.table):
            return self._with([int(level) for level in self.table or range(16)])
        return self._with(self._digits()[0])

    def _with(self, levels: list[int]) -> Weight:
        """Where everything is; made anew in a copy, whose parts are elsewhere."""
        offset = 128 if self.bits == 8 else -min(*levels, 0)
        table = (ctypes.c_uint8 * 16)(*(level + offset for level in levels))
        shape = (self.in_features, self.out_features, self.group, self._columns_at_once)
        numbers = {name: part.data_ptr() for name, part in self._numbers.items()}
        pointers = (numbers.get(name) for name in ("scales", "least", "units", "least_units"))
        kind = SCALES[self._numbers["scales"].dtype]
        return Weight(*shape, self.bits, kind, int(self.floats), offset, self.codes.data_ptr(), *pointers, table)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_weight", "_rest")}


def _pieces(parts: Iterable[Grid]) -> Iterator[Grid]:
    """The same in pieces whose layout takes little to make."""
    for part in parts:
        many = max(1, CHUNK // part.in_features // PAIR) * PAIR
        for first in range(0, part.out_features, many):
            yield part.rows(first, first + many)


def _panels(numbers: torch.Tensor) -> torch.Tensor:
    """`[out, groups]` → `[panels, groups, 16]`."""
    return _filled(numbers).view(-1, PANEL, numbers.shape[1]).transpose(1, 2)


def _panels_of_codes(grid: Grid) -> torch.Tensor:
    codes = _filled(grid.codes.view(torch.uint8))
    if grid.bits == 8:  # whole numbers are unsigned: 128 more
        codes = codes if grid.codes.dtype == FLOAT8 else codes.bitwise_xor(128)
        return codes.view(-1, PANEL, grid.in_features // 4, 4).transpose(1, 2)
    pairs = torch.stack((codes & 15, codes >> 4), dim=-1).view(-1, PANEL, grid.in_features // 8, 2, 4)
    return (pairs[:, :, :, 0] | (pairs[:, :, :, 1] << 4)).transpose(1, 2)


def _filled(numbers: torch.Tensor) -> torch.Tensor:
    """With rows of nothing up to a pair of panels."""
    missing = -len(numbers) % PAIR
    return torch.cat([numbers, numbers.new_zeros(missing, numbers.shape[1])]) if missing else numbers
