"""The cache of one sequence over blocks of which some keep keys and values and others a running state of a fixed size.

Keys and values are in buffers of ours, for attention that looks at each sequence by itself; states are in the library's
own cache layers, which are put together for a pass over several sequences and taken apart behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from swarm.models.cache_layers import tensors_in
from swarm.models.span.kv.cost import OBJECT_BYTES, Cost
from swarm.models.span.kv.growing import GrowingCache
from swarm.models.span.kv.library import LibraryCache
from swarm.models.span.kv.snapshots import MOST, Inputs, Snapshot, Snapshots


class _Elsewhere(DynamicLayer):  # type: ignore[no-untyped-call]
    """A block's part of the library's cache, whose keys and values our attention keeps: it counts, and hands on."""

    def __init__(self, count: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = count
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.count + query_length, 0


class HybridCache:
    """Of the blocks that `config` describes. A `KeyValueCache`.

    `computed`: positions that the states have seen; fewer than `length` when it has gone back, and the inputs of those
    between are kept. Nobody writes into a state: a pass makes new ones.
    """

    def __init__(self, config: Any) -> None:
        layers = [
            layer for layer in LibraryCache(config).cache.layers if type(layer).__module__ != LibraryCache.__module__
        ]
        self.blocks = len(layers)
        self.states: dict[int, Any] = {i: layer for i, layer in enumerate(layers) if type(layer) is not DynamicLayer}
        self.length = self.computed = 0
        self._keys = GrowingCache()
        self._past = Snapshots()

    def write(
        self, block: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values `[heads, count, head_dim]` at `start`; returns all up to their end."""
        return self._keys.write(block, start, keys, values)

    def position_bytes(self, block: int) -> int:
        """Bytes that one position takes in a block; 0 in one that keeps a state."""
        return self._keys.position_bytes(block)

    def ended(self, length: int) -> None:
        """A pass is complete."""
        self.length = self.computed = self._keys.length = length

    # ---- going back -------------------------------------------------------------------------------------------

    @property
    def now(self) -> Snapshot:
        """The states as they are."""
        return Snapshot(self.computed, dict(self.states))

    @property
    def owed(self) -> Inputs | None:
        """What the states have still to see; None: nothing."""
        return self._past.inputs(self.computed, self.length) if self.computed < self.length else None

    def remember(self, before: Snapshot, inputs: Inputs) -> None:
        """A pass over these inputs is complete, before which the states were `before`: it may be gone back to."""
        self._past.note(before, inputs)

    def forget_past(self) -> None:
        """Nobody will go back."""
        self._past.clear()

    @property
    def reach(self) -> int:
        """The shortest length that it can go back to."""
        past = self._past.reach
        return self.computed if past is None else past

    def fork(self, length: int) -> HybridCache:
        """A cache of its own with the first `length` positions, which are in reach."""
        twin = copy.copy(self)
        twin.states = dict(self.states)
        twin._keys = self._keys.fork(length)
        twin._past = self._past.fork()
        twin._back_to(length)
        return twin

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on, which is in reach, and what a pass that failed has written behind."""
        self._keys.truncate(length)
        self._back_to(length)

    def _back_to(self, length: int) -> None:
        if length >= self.length:
            return
        self.length = length
        if self._past.reach is None:
            return
        snapshot = self._past.back_to(length)
        if length < self.computed:
            self.states, self.computed = dict(snapshot.states), snapshot.position

    # ---- what it takes ----------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, and of the objects around it."""
        states = [self.states, *self._past.states]
        held = sum(OBJECT_BYTES + _bytes(layer) for each in states for layer in each.values())
        return self._keys.nbytes + held + self._past.input_bytes

    def cost(self, block: int) -> Cost:
        """What a block takes of a sequence, if nobody goes back."""
        if block in self.states:
            return Cost(OBJECT_BYTES + _bytes(self.states[block]), 0, rooms=True)
        return Cost(OBJECT_BYTES, self.position_bytes(block), rooms=True)

    def snapshot_bytes(self, block: int) -> int:
        """What a block takes beside, at most, if it is to go back."""
        return MOST * (OBJECT_BYTES + _bytes(self.states[block])) if block in self.states else 0


def together(caches: Sequence[HybridCache]) -> Any:
    """The library's cache for a pass over these sequences; behind it `apart` takes it apart."""
    longest = max(cache.computed for cache in caches)
    cache = DynamicCache()
    cache.layers = [
        _joined([each.states[block] for each in caches]) if block in caches[0].states else _Elsewhere(longest)
        for block in range(caches[0].blocks)
    ]
    if all(block in caches[0].states for block in range(caches[0].blocks)):
        cache.layers.append(_Elsewhere(longest))  # the library asks a layer with keys how many positions there are
    return cache


def apart(cache: Any, caches: Sequence[HybridCache]) -> None:
    """Give each sequence its part of the states that a pass has left."""
    for row, each in enumerate(caches):
        for block in each.states:
            each.states[block] = _part(cache.layers[block], row, len(caches))


def _joined(layers: Sequence[Any]) -> Any:
    """One layer with the states of all, one behind the other; of a single one, a copy."""
    twin = copy.copy(layers[0])
    for name in vars(twin):
        setattr(twin, name, _cat([getattr(layer, name) for layer in layers]))
    return twin


def _cat(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _cat([value[key] for value in values]) for key in first}
    if isinstance(first, torch.Tensor) and first.ndim:
        return first.clone() if len(values) == 1 else torch.cat(list(values))
    return first


def _part(layer: Any, row: int, rows: int) -> Any:
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        setattr(twin, name, _cut(value, row, rows))
    return twin


def _cut(value: Any, row: int, rows: int) -> Any:
    if isinstance(value, dict):
        return {key: _cut(each, row, rows) for key, each in value.items()}
    if isinstance(value, torch.Tensor) and value.ndim and rows > 1:
        return value[row : row + 1].clone()
    return value


def _bytes(layer: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors_in(vars(layer)))
