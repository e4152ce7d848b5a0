"""The KV cache of one sequence over the blocks of a span, in buffers that grow geometrically."""

from __future__ import annotations

import torch

FIRST_CAPACITY = 64
GROWTH = 1.5


class BlockCache:
    """Keys and values of one sequence in one block: `[heads, capacity, head_dim]`.

    Writing one position copies that position only; when the capacity is spent the buffers grow by half.
    """

    __slots__ = ("keys", "values")

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> None:
        self.keys = keys
        self.values = values

    def write(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put `[heads, count, head_dim]` at `start`; returns all positions up to its end."""
        end = start + keys.shape[1]
        stored_keys = self.keys = _room(self.keys, keys, start, end)
        stored_values = self.values = _room(self.values, values, start, end)
        stored_keys[:, start:end] = keys
        stored_values[:, start:end] = values
        return stored_keys[:, :end], stored_values[:, :end]

    def fork(self, length: int) -> BlockCache:
        """A cache of its own with the first `length` positions."""
        if self.keys is None or self.values is None:
            return BlockCache()
        return BlockCache(self.keys[:, :length].clone(), self.values[:, :length].clone())

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.keys, self.values) if t is not None)

    @property
    def position_bytes(self) -> int:
        """Bytes that one position takes."""
        return sum(t.nbytes // t.shape[1] for t in (self.keys, self.values) if t is not None)


def _room(buffer: torch.Tensor | None, like: torch.Tensor, used: int, needed: int) -> torch.Tensor:
    """A buffer with room for `needed` positions, holding the `used` ones."""
    if buffer is not None and buffer.shape[1] >= needed:
        return buffer
    capacity = max(FIRST_CAPACITY, needed, int(GROWTH * (buffer.shape[1] if buffer is not None else 0)))
    grown = like.new_empty(like.shape[0], capacity, like.shape[2])
    if buffer is not None:
        grown[:, :used] = buffer[:, :used]
    return grown


class SequenceCache:
    """One sequence's caches by block, made when a block first writes.

    `length`: positions that count. It is set when a forward pass is complete, so one that failed half-way left nothing.
    """

    __slots__ = ("blocks", "length")

    def __init__(self) -> None:
        self.blocks: dict[int, BlockCache] = {}
        self.length = 0

    def block(self, index: int) -> BlockCache:
        cache = self.blocks.get(index)
        if cache is None:
            cache = self.blocks[index] = BlockCache()
        return cache

    def fork(self, length: int) -> SequenceCache:
        """A cache of its own with the first `length` positions."""
        twin = SequenceCache()
        twin.blocks = {index: block.fork(length) for index, block in self.blocks.items()}
        twin.length = min(length, self.length)
        return twin

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; the buffers stay."""
        self.length = min(self.length, length)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, with the room that they have grown into."""
        return sum(block.nbytes for block in self.blocks.values())
