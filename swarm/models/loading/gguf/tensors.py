"""The tensors of a model out of a GGUF file, one after the other: on their grids, or as numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from math import prod

import torch
from transformers import PretrainedConfig

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import Grid, stack
from swarm.models.loading.gguf.file import GgufFile, row_count
from swarm.models.loading.gguf.grids import GRIDS, bits_on_grid, to_grid, to_numbers
from swarm.models.loading.gguf.names import Names


class GgufTensors:
    """As `Tensors`. Matrices and experts of a type in `GRIDS` are grids, rows in the model's order; what llama.cpp did
    more to than that, or is in no such groups, is float32. Numbers are transformers' own, bit for bit.

    Raises UnsupportedModel, BadCheckpoint where file and configuration are not of one model.
    """

    def __init__(self, file: GgufFile, config: PretrainedConfig) -> None:
        self._file, self._config = file, config
        self._orders: dict[str, torch.Tensor | None] = {}
        self._orders_of_experts: dict[str, torch.Tensor | None] = {}

    @cached_property
    def _names(self) -> Names:
        header = self._file.header
        shapes = {name: info.shape for name, info in header.tensors.items()}
        return Names(header.architecture, self._config, shapes)

    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self._names.targets.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return self._names.targets[name].shape

    def nbytes(self, name: str) -> int:
        """Of what a tensor is made of."""
        infos = (self._file.places[source].info for source in self._names.targets[name].sources)
        return sum(info.last - info.first for info in infos)

    def grid_nbytes(self, name: str) -> int:
        """Bytes of what is made of it, for a weight or experts of a type in `GRIDS`."""
        infos = (self._file.places[source].info for source in self._names.targets[name].sources)
        return sum(prod(info.shape) * bits_on_grid(info.type) // 8 for info in infos)

    def on_grid(self, name: str) -> bool:
        """Whether it is a matrix on a grid, of which no more than the rows' order was changed."""
        source = self._matrix(name)
        return source is not None and self._file.places[source].info.type in GRIDS and self._order(name) is not None

    def by_row(self, name: str) -> bool:
        """Matrices of which no more than the rows' order was changed."""
        return self._matrix(name) is not None and self._order(name) is not None

    def experts(self, name: str, some: range | None = None) -> Iterator[Grid] | None:
        """Of each expert the rows of one tensor of the file after those of another, in the model's order."""
        target = self._names.targets[name]
        infos = [self._file.places[source].info for source in target.sources]
        alike = len({info.type for info in infos}) == 1 and all(len(info.shape) == 3 for info in infos)
        if len(target.shape) != 3 or not alike or infos[0].type not in GRIDS:
            return None
        if name not in self._orders_of_experts:
            self._orders_of_experts[name] = self._names.order_of_experts(name, [info.shape[1] for info in infos])
        order = self._orders_of_experts[name]
        if order is None:
            return None
        return (self._expert(target.sources, expert, order) for expert in some or range(target.shape[0]))

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor | Grid:
        """A tensor, or some of its rows. Only these rows are read, or those from the first to the last that they are
        made of."""
        source = self._matrix(name)
        order = None if source is None else self._order(name)
        if source is None or order is None:
            whole = self._made(name)
            return whole if rows is None else whole[rows].clone()
        chosen = order if rows is None else order[rows]
        kind = self._file.places[source].info.type
        first, last = (int(chosen.min()), int(chosen.max()) + 1) if len(chosen) else (0, 0)
        if kind in GRIDS:
            grid = self._grid(source, first, last)
            return grid if _is_order(chosen, first) else grid.at(chosen - first)
        numbers = self._numbers(source, first, last)
        return numbers if _is_order(chosen, first) else numbers[chosen - first]

    def _expert(self, sources: Sequence[str], expert: int, order: torch.Tensor) -> Grid:
        """The rows of one expert, `order`: which of all of them stands where."""
        counts = [self._file.places[source].info.shape[1] for source in sources]
        grids = [
            self._grid(source, expert * count, (expert + 1) * count)
            for source, count in zip(sources, counts, strict=True)
        ]
        grid = stack(grids)
        return grid if _is_order(order, 0) else grid.at(order)

    def _matrix(self, name: str) -> str | None:
        """The one tensor that it is made of, where both are matrices of one shape."""
        target = self._names.targets[name]
        only = target.sources[0] if len(target.sources) == 1 else None
        if only is None or len(target.shape) != 2 or self._file.places[only].info.shape != target.shape:
            return None
        return only

    def _order(self, name: str) -> torch.Tensor | None:
        """Which of the stored rows stand where in the model; None where they are not all that was changed."""
        if name not in self._orders:
            target = self._names.targets[name]
            self._orders[name] = self._names.order(target.sources[0], target.shape[0])
        return self._orders[name]

    def _made(self, name: str) -> torch.Tensor:
        """All of it, as the library makes it."""
        return self._names.made(name, {part: self._dense(part) for part in self._names.targets[name].sources})

    def _dense(self, source: str) -> torch.Tensor:
        """A tensor of the file as numbers, in its own shape."""
        info = self._file.places[source].info
        return self._numbers(source, 0, row_count(info)).view(info.shape)

    def _grid(self, source: str, first: int, last: int) -> Grid:
        """Rows as they are stored, on their grid."""
        raw, place = self._file.rows(source, first, last), self._file.places[source]
        try:
            return to_grid(raw, place.info.type)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{place.path}: {source}: {error}") from error

    def _numbers(self, source: str, first: int, last: int) -> torch.Tensor:
        """Rows as they are stored, as numbers."""
        raw, place = self._file.rows(source, first, last), self._file.places[source]
        try:
            return to_numbers(raw, place.info.type)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{place.path}: {source}: {error}") from error


def _is_order(rows: torch.Tensor, first: int) -> bool:
    """Whether rows stand as they are stored."""
    return torch.equal(rows, torch.arange(first, first + len(rows)))
