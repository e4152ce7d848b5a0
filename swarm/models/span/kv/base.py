"""What the blocks of a span keep of one sequence, whichever way they keep it."""

from __future__ import annotations

from typing import Protocol, Self

import torch


class SequenceCache(Protocol):
    """One sequence over all blocks of a span.

    `length`: positions that count. It is set when a forward pass is complete, so one that failed half-way left nothing.
    """

    length: int

    def fork(self, length: int) -> Self:
        """A cache of its own with the first `length` positions."""

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on."""

    @property
    def reach(self) -> int:
        """The shortest length, beside 0, that `fork` and `truncate` may have now."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held, with the room that it has grown into."""


class KeyValueCache(SequenceCache, Protocol):
    """Keys and values by position, for an attention of ours. Blocks count from 0, the span's first."""

    def write(
        self, block: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values `[heads, count, head_dim]` of a block at position `start`; returns all up to their end,
        `[heads, start + count, head_dim]`."""

    def position_bytes(self, block: int) -> int:
        """Bytes that one position takes in a block."""
