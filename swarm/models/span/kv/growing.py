"""Keys and values of one sequence over the blocks of a span, in buffers that grow geometrically."""

from __future__ import annotations

import torch

FIRST_CAPACITY = 64
GROWTH = 1.5


class BlockBuffers:
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

    def fork(self, length: int) -> BlockBuffers:
        """Buffers of their own with the first `length` positions."""
        if self.keys is None or self.values is None:
            return BlockBuffers()
        return BlockBuffers(self.keys[:, :length].clone(), self.values[:, :length].clone())

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


class GrowingCache:
    """One sequence's buffers by block, made when a block first writes. A `KeyValueCache`."""

    __slots__ = ("_blocks", "length")

    def __init__(self) -> None:
        self._blocks: dict[int, BlockBuffers] = {}
        self.length = 0

    def write(
        self, block: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values `[heads, count, head_dim]` at `start`; returns all up to their end."""
        buffers = self._blocks.get(block)
        if buffers is None:
            buffers = self._blocks[block] = BlockBuffers()
        return buffers.write(start, keys, values)

    def fork(self, length: int) -> GrowingCache:
        """A cache of its own with the first `length` positions."""
        twin = GrowingCache()
        twin._blocks = {index: buffers.fork(length) for index, buffers in self._blocks.items()}
        twin.length = min(length, self.length)
        return twin

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on; the buffers stay."""
        self.length = min(self.length, length)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, with the room that they have grown into."""
        return sum(buffers.nbytes for buffers in self._blocks.values())

    def position_bytes(self, block: int) -> int:
        """Bytes that one position takes in a block; 0 before it has written."""
        return self._blocks[block].position_bytes if block in self._blocks else 0
