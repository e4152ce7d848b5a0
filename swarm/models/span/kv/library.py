"""The cache of one sequence that is computed by itself, made of the library's own cache layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from swarm.models.cache_layers import tensors_in
from swarm.models.span.kv.cost import OBJECT_BYTES


class _Positions(DynamicLayer):
    """Counts positions for blocks that keep a running state and no keys, because the library asks the cache."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def get_seq_length(self) -> int:
        return self.count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.count + query_length, 0


class LibraryCache:
    """Keys, values and running states of one sequence over the blocks that `config` describes. A `SequenceCache`."""

    def __init__(self, config: Any) -> None:
        self._length = 0
        self.cache = DynamicCache(config=config)
        # A window's layer forgets what has left the window, and then cannot roll back; the mask sees to the window.
        self.cache.layers = [DynamicLayer() if _is_window(layer) else layer for layer in self.cache.layers]  # type: ignore[no-untyped-call]
        self._positions = _Positions()
        if self.cache.layers and not any(isinstance(layer, CacheLayerMixin) for layer in self.cache.layers):
            self.cache.layers.append(self._positions)

    @property
    def length(self) -> int:
        """Positions that have been computed."""
        return self._length

    @length.setter
    def length(self, length: int) -> None:
        self._length = self._positions.count = length

    @property
    def can_rollback(self) -> bool:
        """Whether all that is kept is kept by position."""
        return all(type(layer) in (DynamicLayer, DynamicIndexedLayer) for layer in self.cache.layers)

    @property
    def reach(self) -> int:
        """The shortest length that it can be cut to."""
        return 0 if self.can_rollback else self._length

    @property
    def is_plain(self) -> bool:
        """Whether all that is kept is keys and values."""
        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def release(self) -> None:
        """Let go of larger tensors of which only a part is kept, such as a whole prompt's for its end."""
        for layer in self.cache.layers:
            _release(layer)

    def fork(self, length: int) -> LibraryCache:
        """A cache of its own with the first `length` positions."""
        twin = copy.deepcopy(self)
        twin.truncate(length)
        return twin

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on."""
        if length < self._length:
            self.cache.crop(length - self._length)
            self.length = length
            self.release()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, and of the objects around it."""
        return sum(size + OBJECT_BYTES for size in self.block_bytes() if size)

    def block_bytes(self) -> list[int]:
        """Bytes that each block keeps."""
        return [sum(t.untyped_storage().nbytes() for t in tensors_in(vars(layer))) for layer in self.cache.layers]


def _release(layer: Any) -> None:
    for name, value in list(vars(layer).items()):
        if _is_part(value):
            setattr(layer, name, value.clone())
        elif isinstance(value, dict):
            value.update({key: part.clone() for key, part in value.items() if _is_part(part)})


def _is_part(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes


def _is_window(layer: Any) -> bool:
    return type(layer) is DynamicSlidingWindowLayer
