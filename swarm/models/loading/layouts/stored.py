"""What a layout reads, and what it makes of it: one weight of the model out of several stored tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import Grid
from swarm.models.loading.tensors import Tensors

Settings = Mapping[str, Any]
"""The `quantization_config` of a checkpoint's configuration."""


class Stored(Tensors, Protocol):
    """The tensors of a checkpoint as they are in its files. Raises BadCheckpoint, ModelNotFound."""

    def dtype(self, name: str) -> torch.dtype:
        """Of one, without reading it."""

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """All of it, or some rows of its first dimension, on the CPU."""


class Weight(Protocol):
    """One weight of the model. Each method raises BadCheckpoint where the stored tensors do not fit together."""

    @property
    def parts(self) -> Sequence[str]:
        """The names of the tensors that it is stored as."""

    def shape(self, stored: Stored) -> tuple[int, ...]:
        """Of its numbers, in torch's order."""

    def on_grid(self, stored: Stored) -> bool:
        """Whether `read` gives a grid."""

    def read(self, stored: Stored, rows: slice | None) -> torch.Tensor | Grid:
        """Its numbers, or some rows of them."""


@runtime_checkable
class Experts(Weight, Protocol):
    """The weights of all experts of a layer."""

    def experts(self, stored: Stored, some: range | None) -> Iterator[Grid] | None:
        """As in `Tensors`."""


class Combined:
    """`swarm.models.loading.tensors.Tensors` of what is stored: weights where their parts were, the rest as it is.

    Raises BadCheckpoint where a part is missing.
    """

    def __init__(self, stored: Stored, weights: Mapping[str, Weight]) -> None:
        self._stored = stored
        self._weights = weights
        names = frozenset(stored.names())
        for name, weight in weights.items():
            if lacking := [part for part in weight.parts if part not in names]:
                raise BadCheckpoint(f"{name} is quantized, and {lacking[0]} is missing; fetch the checkpoint again")
        self._names = names - {part for weight in weights.values() for part in weight.parts} | weights.keys()

    def names(self) -> Collection[str]:
        return self._names

    def parts(self, name: str) -> Sequence[str]:
        """The stored tensors that one of them is made of."""
        weight = self._weights.get(name)
        return [name] if weight is None else weight.parts

    def shape(self, name: str) -> tuple[int, ...]:
        weight = self._weights.get(name)
        return self._stored.shape(name) if weight is None else weight.shape(self._stored)

    def nbytes(self, name: str) -> int:
        return sum(map(self._stored.nbytes, self.parts(name)))

    def grid_nbytes(self, name: str) -> int:
        return self.nbytes(name)

    def on_grid(self, name: str) -> bool:
        weight = self._weights.get(name)
        return weight is not None and weight.on_grid(self._stored)

    def by_row(self, name: str) -> bool:
        return True

    def experts(self, name: str, some: range | None = None) -> Iterator[Grid] | None:
        weight = self._weights.get(name)
        return weight.experts(self._stored, some) if isinstance(weight, Experts) else None

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor | Grid:
        weight = self._weights.get(name)
        if weight is not None:
            return weight.read(self._stored, rows)
        if (dtype := self._stored.dtype(name)).itemsize == 1 and dtype != torch.bool:
            raise BadCheckpoint(f"{name} is {dtype}, and has no scale; fetch the checkpoint again")
        return self._stored.read(name, rows)
