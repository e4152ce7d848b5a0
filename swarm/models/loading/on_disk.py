"""A weight of a checkpoint that stays on disk: rows are read when they are looked up, all of it for each product.

Read and not mapped: a file that is cut off or gone is an error then, where a mapped one would end the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

from swarm.models.linear.grid import as_dense
from swarm.models.loading.tensors import Tensors

PART = 1 << 22
"""Numbers that are read at once."""


class OnDisk:
    """A matrix `name` of a checkpoint in `dtype`, as `swarm.models.linear.unread.Numbers`.

    `unchanged` raises BadCheckpoint where the files are no longer those that were loaded.
    """

    fixed = None

    def __init__(self, tensors: Tensors, name: str, dtype: torch.dtype, unchanged: Callable[[], None]) -> None:
        outputs, inputs = tensors.shape(name)
        self.shape, self.dtype = (outputs, inputs), dtype
        self._tensors, self._name, self._unchanged = tensors, name, unchanged

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """Rows that stand one behind the other in the file are read at once. Raises BadCheckpoint, ModelNotFound."""
        self._unchanged()
        found = torch.empty(len(chosen), self.shape[1], dtype=self.dtype)
        for first, last in _runs(chosen.tolist()):
            begin = int(chosen[first])
            found[first:last] = self._read(begin, begin + last - first)
        return found

    def parts(self) -> Iterator[torch.Tensor]:
        """Raises BadCheckpoint, ModelNotFound."""
        self._unchanged()
        many = max(1, PART // self.shape[1])
        for first in range(0, self.shape[0], many):
            yield self._read(first, min(first + many, self.shape[0]))

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """Reads all of it. Raises BadCheckpoint, ModelNotFound."""
        return torch.cat([torch.nn.functional.linear(rows, part) for part in self.parts()], dim=-1)

    def _read(self, first: int, last: int) -> torch.Tensor:
        return as_dense(self._tensors.read(self._name, slice(first, last))).to(self.dtype)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Where runs of numbers that go up by one begin and end."""
    ends = [place for place, (one, next_one) in enumerate(pairwise(numbers), 1) if next_one != one + 1]
    yield from pairwise([0, *ends, len(numbers)] if numbers else [])
