"""Several texts in one row of a batch: each is a sequence of its own for remote blocks.

Without a mask and a cache, transformers takes a gap in `position_ids` for the beginning of another text, and lets no
text see another (packed training data). Whether it did so for this model shows in the mask that its blocks are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Texts:
    """Where the texts of rows are: row and columns `first` .. `last` - 1 of each."""

    places: tuple[tuple[int, int, int], ...]

    @property
    def longest(self) -> int:
        """Columns of the longest text."""
        return max(last - first for _, first, last in self.places)

    @property
    def mask(self) -> torch.Tensor:
        """`[texts, longest]`: where each, in a row of its own, has tokens."""
        mask = torch.zeros(len(self.places), self.longest, dtype=torch.long)
        for index, (_, first, last) in enumerate(self.places):
            mask[index, : last - first] = 1
        return mask

    def apart(self, values: torch.Tensor) -> torch.Tensor:
        """`[batch, T, …]` → `[texts, longest, …]`, zeros behind each text."""
        spread = values.new_zeros(len(self.places), self.longest, *values.shape[2:])
        for index, (row, first, last) in enumerate(self.places):
            spread[index, : last - first] = values[row, first:last]
        return spread

    def together(self, spread: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What `apart` makes of values shaped as `like`, back to those."""
        values = torch.zeros_like(like)
        for index, (row, first, last) in enumerate(self.places):
            values[row, first:last] = spread[index, : last - first]
        return values


def texts_in(positions: Any, mask: torch.Tensor | None) -> Texts | None:
    """The texts of a batch; None: each row is one.

    `positions` `[batch or 1, T]`, or several planes of it, of which the first counts the text; `mask`
    `[batch or 1, 1, T, T]`: what the library made of them, whether a query (third) sees a key.
    """
    if not isinstance(positions, torch.Tensor) or mask is None:
        return None
    plane = (positions[0] if positions.ndim == 3 else positions).expand(mask.shape[0], -1)
    begins = torch.ones_like(plane, dtype=torch.bool)
    begins[:, 1:] = plane.diff(dim=1) != 1
    cuts = begins[:, 1:].nonzero()
    if not len(cuts) or _sees(mask, int(cuts[0, 0]), int(cuts[0, 1]) + 1):
        return None
    places = []
    for row in range(plane.shape[0]):
        firsts = [*begins[row].nonzero()[:, 0].tolist(), plane.shape[1]]
        places += [(row, first, last) for first, last in pairwise(firsts)]
    return Texts(tuple(places))


def _sees(mask: torch.Tensor, row: int, column: int) -> bool:
    """Whether a column sees the one before it."""
    entry = mask[row, 0, column, column - 1]
    return bool(entry) if mask.dtype == torch.bool else bool(entry == 0)
