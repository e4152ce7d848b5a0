"""The KV cache of one sequence over the blocks of a span, in buffers that grow geometrically."""

from __future__ import annotations

import torch

FIRST_CAPACITY = 64


class BlockCache:
    """Keys and values of one sequence in one block: `[heads, capacity, head_dim]`, of which `length` positions count.

    Appending one position copies that position only; when the capacity is spent the buffers double.
    """

    __slots__ = ("_keys", "_values", "length")

    def __init__(self) -> None:
        self.length = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add `[heads, count, head_dim]`; returns all keys and values, `[heads, length, head_dim]`."""
        count = keys.shape[1]
        end = self.length + count
        stored_keys = self._keys = _room(self._keys, keys, self.length, end)
        stored_values = self._values = _room(self._values, values, self.length, end)
        stored_keys[:, self.length : end] = keys
        stored_values[:, self.length : end] = values
        self.length = end
        return stored_keys[:, :end], stored_values[:, :end]

    def fork(self, length: int) -> BlockCache:
        """A cache of its own with the first `length` positions."""
        twin = BlockCache()
        if self._keys is not None and self._values is not None:
            twin._keys = self._keys[:, :length].clone()
            twin._values = self._values[:, :length].clone()
            twin.length = min(length, self.length)
        return twin

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; the buffers stay."""
        self.length = min(self.length, length)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self._keys, self._values) if t is not None)


def _room(buffer: torch.Tensor | None, like: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    """A buffer with room for `needed` positions, holding the `used` ones."""
    if buffer is not None and buffer.shape[1] >= needed:
        return buffer
    capacity = max(FIRST_CAPACITY, needed, 2 * (buffer.shape[1] if buffer is not None else 0))
    grown = like.new_empty(like.shape[0], capacity, like.shape[2])
    if buffer is not None:
        grown[:, :used] = buffer[:, :used]
    return grown


class SequenceCache:
    """One sequence's caches by block, made when a block first appends."""

    __slots__ = ("blocks",)

    def __init__(self) -> None:
        self.blocks: dict[int, BlockCache] = {}

    @property
    def length(self) -> int:
        """Positions that every block holds."""
        return min((block.length for block in self.blocks.values()), default=0)

    def block(self, index: int) -> BlockCache:
        cache = self.blocks.get(index)
        if cache is None:
            cache = self.blocks[index] = BlockCache()
        return cache

    def fork(self, length: int) -> SequenceCache:
        twin = SequenceCache()
        twin.blocks = {index: block.fork(length) for index, block in self.blocks.items()}
        return twin

    def truncate(self, length: int) -> None:
        for block in self.blocks.values():
            block.truncate(length)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())
