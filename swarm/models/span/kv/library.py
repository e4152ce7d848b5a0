"""The cache of one sequence that runs by itself, made of the library's own cache layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer


class _Positions(DynamicLayer):
    """Counts positions for blocks that keep a running state and no keys, because the library asks the cache."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def get_seq_length(self) -> int:
        return self.count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.count + query_length, 0


class AloneCache:
    """Keys, values and running states of one sequence over the blocks that `config` describes."""

    def __init__(self, config: Any) -> None:
        self.length = 0
        self.cache = DynamicCache(config=config)
        # A window's layer forgets what has left the window, and then cannot roll back; the mask sees to the window.
        self.cache.layers = [DynamicLayer() if _is_window(layer) else layer for layer in self.cache.layers]  # type: ignore[no-untyped-call]
        self._positions = _Positions()
        if self.cache.layers and not any(isinstance(layer, CacheLayerMixin) for layer in self.cache.layers):
            self.cache.layers.append(self._positions)

    @property
    def can_rollback(self) -> bool:
        """Whether all that is kept is kept by position."""
        return all(type(layer) in (DynamicLayer, DynamicIndexedLayer) for layer in self.cache.layers)

    @property
    def is_plain(self) -> bool:
        """Whether all that is kept is keys and values."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def advance(self, count: int) -> None:
        """Note that `count` more positions have been computed."""
        self.length += count
        self._positions.count = self.length

    def fork(self, length: int) -> AloneCache:
        """A copy of the first `length` positions."""
        twin = copy.deepcopy(self)
        twin.truncate(length)
        return twin

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on."""
        if length < self.length:
            self.cache.crop(length - self.length)
            self.length = length

    @property
    def nbytes(self) -> int:
        return sum(self.block_bytes())

    def block_bytes(self) -> list[int]:
        """Bytes that each block keeps."""
        return [sum(t.nbytes for t in _tensors(vars(layer))) for layer in self.cache.layers]


def _is_window(layer: Any) -> bool:
    return type(layer) is DynamicSlidingWindowLayer


def state_in(layer: Any) -> list[torch.Tensor]:
    """What a layer of a cache remembers of the positions that it has seen."""
    names = ("keys", "values", "conv_states", "recurrent_states", "indexer_keys")
    return [tensor for name in names for tensor in _tensors(getattr(layer, name, None))]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in inner for tensor in _tensors(item)]
