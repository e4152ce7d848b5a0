"""The weights of all experts of a layer, one parameter of the model: read one expert after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from swarm.errors import BadCheckpoint
from swarm.models.linear.experts import expert_weights
from swarm.models.linear.grid import Grid, as_dense
from swarm.models.linear.schemes import quantize
from swarm.models.loading.places import Places
from swarm.models.loading.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Shape:
    """Of `count` experts, each `[outputs, inputs]`."""

    count: int
    outputs: int
    inputs: int

    @classmethod
    def of(cls, owner: Any, shape: Sequence[int]) -> Shape:
        """By the module that has the parameter, and that parameter's shape."""
        count, *others = shape
        outputs, inputs = reversed(others) if owner.is_transposed else others
        return cls(count, outputs, inputs)

    @property
    def tall(self) -> tuple[int, int]:
        """Of all experts, one below the other."""
        return self.count * self.outputs, self.inputs


class Experts(Protocol):
    """The weights of one parameter."""

    @property
    def shape(self) -> Shape:
        """Of them."""

    @property
    def names(self) -> Sequence[str]:
        """Of what is read of the checkpoint for them."""

    def grids(self, some: range | None = None) -> Iterator[Grid]:
        """`[outputs, inputs]` of each, or some. Raises BadCheckpoint, ModelNotFound, UnsupportedModel."""


class Stored:
    """As the checkpoint has them on its grid."""

    def __init__(self, tensors: Tensors, name: str, shape: Shape) -> None:
        self.shape, self.names = shape, (name,)
        self._tensors = tensors

    def grids(self, some: range | None = None) -> Iterator[Grid]:
        """As in `Experts`."""
        found = self._tensors.experts(self.names[0], some)
        if found is None:
            raise BadCheckpoint(f"{self.names[0]} is not on a grid")
        return found


class ByScheme:
    """Put on the grid of a scheme. `names`: of what the parameter is made of."""

    def __init__(
        self, tensors: Tensors, places: Places, shape: Shape, names: Sequence[str], transposed: bool, scheme: str
    ) -> None:
        self.shape, self.names = shape, names
        self._tensors, self._places = tensors, places
        self._transposed, self._scheme = transposed, scheme
        self._parts = parts_of({name: tensors.shape(name) for name in names}, shape.count)

    @property
    def by_expert(self) -> bool:
        """Whether one can be read without the others. Tried without reading anything."""
        if self._parts is None:
            return False
        some = self._parts(0)
        if any(rows is not None and not self._tensors.by_row(name) for name, rows in some.items()):
            return False
        hollow = {name: self._hollow(name, rows) for name, rows in some.items()}
        try:
            made = self._places.made(hollow)
        except BadCheckpoint:
            return False
        outputs, inputs = self.shape.outputs, self.shape.inputs
        return made.shape == ((1, inputs, outputs) if self._transposed else (1, outputs, inputs))

    def _hollow(self, name: str, rows: slice | None) -> torch.Tensor:
        shape = self._tensors.shape(name)
        return torch.empty(shape if rows is None else (1, *shape[1:]), device="meta")

    def grids(self, some: range | None = None) -> Iterator[Grid]:
        """As in `Experts`."""
        return (quantize(self._dense(each), self._scheme) for each in some or range(self.shape.count))

    def _dense(self, expert: int) -> torch.Tensor:
        """`[outputs, inputs]`."""
        assert self._parts is not None
        read = {name: as_dense(self._tensors.read(name, rows)) for name, rows in self._parts(expert).items()}
        made = self._places.made(read)[0]
        return made.T.contiguous() if self._transposed else made


class PartsOf(Protocol):
    """What is read for an expert."""

    def __call__(self, expert: int) -> Mapping[str, slice | None]:
        """By name, which rows; None: all."""


def parts_of(shapes: Mapping[str, Sequence[int]], count: int) -> PartsOf | None:
    """Of tensors that each have all experts, a row of their first dimension; of those that have one each, by the number
    in their names. None where it is neither."""
    if all(len(shape) == 3 and shape[0] == count for shape in shapes.values()):
        return lambda expert: dict.fromkeys(shapes, slice(expert, expert + 1))
    words = {name: name.split(".") for name in shapes}
    for at in reversed(range(min(map(len, words.values()), default=0))):
        numbers = {name: int(word[at]) for name, word in words.items() if word[at].isdigit()}
        if numbers.keys() == shapes.keys() and set(numbers.values()) == set(range(count)):
            return lambda expert: {name: None for name in shapes if numbers[name] == expert}
    return None


def by_scheme(
    layer: nn.Module, prefix: str, tensors: Tensors, places: Places, scheme: str
) -> dict[str, ByScheme] | None:
    """The experts of a block that go onto the grid of a scheme, by their places, where `prefix` is the block's; None
    where some of them cannot be read one by one."""
    named = {module: name for name, module in layer.named_modules()}
    found = {}
    for owner, name in expert_weights(layer):
        place = f"{prefix}{named[owner]}.{name}"
        shape = Shape.of(owner, getattr(owner, name).shape)
        experts = (
            ByScheme(tensors, places, shape, names, bool(owner.is_transposed), scheme)
            if (names := places.sources(place))
            else None
        )
        if experts is None or not experts.by_expert:
            return None
        found[place] = experts
    return found
