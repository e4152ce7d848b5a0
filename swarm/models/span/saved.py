"""How many bytes autograd keeps for gradients."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.autograd.graph import saved_tensors_hooks


class Saved(saved_tensors_hooks):
    """As a context: counts what is saved meanwhile, each piece of memory once, without that of `weights`."""

    def __init__(self, weights: Collection[int]) -> None:
        super().__init__(self._pack, _unpack)
        self.nbytes = 0
        self._weights = weights
        self._seen = set[int]()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        where = storage.data_ptr()
        if where not in self._seen and where not in self._weights:
            self._seen.add(where)
            self.nbytes += storage.nbytes()
        return tensor


def _unpack(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
