"""Keys and values of one sequence over the blocks of a span, in buffers whose size follows from the length."""

from __future__ import annotations

import torch

from swarm.models.span.kv.cost import OBJECT_BYTES, capacity


class BlockBuffers:
    """Keys and values of one sequence in one block: `[heads, capacity, head_dim]`.

    Writing one position copies that position only; when the capacity is spent the buffers grow.
    """

    __slots__ = ("keys", "values")

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> None:
        self.keys = keys
        self.values = values

    def write(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put `[heads, count, head_dim]` at `start`; returns all positions up to its end."""
        end = start + keys.shape[1]
        stored_keys, stored_values = self.keys, self.values
        if stored_keys is None or stored_values is None or stored_keys.shape[1] < end:
            stored_keys = self.keys = _resized(self.keys, keys, start, end)
            stored_values = self.values = _resized(self.values, values, start, end)
        stored_keys[:, start:end] = keys
        stored_values[:, start:end] = values
        return stored_keys[:, :end], stored_values[:, :end]

    def fork(self, length: int) -> BlockBuffers:
        """Buffers of their own with the first `length` positions."""
        if self.keys is None or self.values is None:
            return BlockBuffers()
        keys, values = self.keys, self.values
        return BlockBuffers(_resized(keys, keys, length, length), _resized(values, values, length, length))

    def truncate(self, length: int) -> None:
        """Give back the room that the first `length` positions do not have."""
        if self.keys is not None and self.values is not None and self.keys.shape[1] > capacity(length):
            self.keys = _resized(self.keys, self.keys, length, length)
            self.values = _resized(self.values, self.values, length, length)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers and of the objects around them."""
        held = sum(t.untyped_storage().nbytes() for t in (self.keys, self.values) if t is not None)
        return held + OBJECT_BYTES if held else 0

    @property
    def position_bytes(self) -> int:
        """Bytes that one position takes."""
        return sum(t.nbytes // t.shape[1] for t in (self.keys, self.values) if t is not None)


def _resized(buffer: torch.Tensor | None, like: torch.Tensor, used: int, length: int) -> torch.Tensor:
    """A buffer for a sequence of `length` positions, of which the first `used` are in the old one."""
    resized = like.new_empty(like.shape[0], capacity(length), like.shape[2])
    if buffer is not None:
        resized[:, :used] = buffer[:, :used]
    return resized


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
        twin.length = min(length, self.length)
        if twin.length > 0:
            twin._blocks = {index: buffers.fork(twin.length) for index, buffers in self._blocks.items()}
        return twin

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on, and the room that they took."""
        self.length = min(self.length, length)
        for buffers in self._blocks.values():
            buffers.truncate(self.length)

    @property
    def reach(self) -> int:
        """Any length."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, with their room, and of the objects around them."""
        return sum(buffers.nbytes for buffers in self._blocks.values())

    def position_bytes(self, block: int) -> int:
        """Bytes that one position takes in a block; 0 before it has written."""
        return self._blocks[block].position_bytes if block in self._blocks else 0
