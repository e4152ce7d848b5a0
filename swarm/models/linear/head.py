"""A model's head whose weight is on a grid. Users look at heads: what they see are the grid's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from swarm.errors import InvalidInput
from swarm.models.linear.quantized import QuantizedLinear, tiles
from swarm.models.linear.unread import Held, UnreadWeight

FIXED = "the head is on a grid, and its numbers cannot be changed: load the model with head='memory'"


class QuantizedHead(QuantizedLinear):
    """As `QuantizedLinear`. `weight`: its numbers, made when somebody looks; changing them raises InvalidInput."""

    @property
    def weight(self) -> torch.Tensor:
        """`[out_features, in_features]`, of which nothing is held."""
        return UnreadWeight(Held(_OnGrid(self)))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise InvalidInput(FIXED)
        super().__setattr__(name, value)


class _OnGrid:
    """The numbers of a layer, as `Numbers`."""

    fixed = FIXED

    def __init__(self, layer: QuantizedLinear) -> None:
        self.shape, self.dtype = (layer.out_features, layer.in_features), layer.dtype
        self._layer = layer

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """Off the grid."""
        return self._layer.grid.at(chosen).dense(self.dtype)

    def parts(self) -> Iterator[torch.Tensor]:
        """Off the grid, some outputs after others."""
        return (part.to(self.dtype) for part, _, _ in tiles(self._layer.grid))

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """As the layer computes it, without a bias."""
        return self._layer.without_bias(rows)
