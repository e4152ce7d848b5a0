"""What a checkpoint holds, whatever it is written in: tensors, and weights on grids, by their names in the model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import torch

from swarm.models.linear.grid import Grid


class Tensors(Protocol):
    """Reads a checkpoint one tensor after the other. Nothing is held, nor mapped, between two calls.

    Names are those of a checkpoint that transformers saves of this architecture: what several stored tensors are
    together (levels, scales, minima) is one `weight` here.
    """

    def names(self) -> Collection[str]:
        """Of all tensors. Raises BadCheckpoint, ModelNotFound."""

    def shape(self, name: str) -> tuple[int, ...]:
        """In torch's order, of the numbers and not of how they are stored."""

    def nbytes(self, name: str) -> int:
        """Bytes that are stored for it."""

    def grid_nbytes(self, name: str) -> int:
        """Bytes that what is on a grid takes once it is read, a weight or experts."""

    def on_grid(self, name: str) -> bool:
        """Whether `read` gives a grid. Known without reading it."""

    def by_row(self, name: str) -> bool:
        """Whether `read` of some rows reads these alone."""

    def experts(self, name: str, some: range | None = None) -> Iterator[Grid] | None:
        """The grids `[out, in]` of experts whose weights are one tensor of the model, one expert after the other, or of
        some; None where they are on none. Raises as `read`."""

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor | Grid:
        """All of it, or some rows of its first dimension, on the CPU; a grid where it is stored on one that has
        kernels, else numbers as they are stored. Raises BadCheckpoint, ModelNotFound."""
