"""What a sequence takes in the blocks of a span. Pure.

It is a function of the sequence's length alone, however it came to it: whoever admits sequences can say before
what each will take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST = 16
"""Positions for which a buffer has room at least."""
OBJECT_BYTES = 1024
"""What the objects around a block's buffers take; for one position of a small model that is more than the buffers."""


def capacity(length: int) -> int:
    """Positions for which the buffers of a sequence of `length` positions have room: at most a quarter more, and 16 at
    least, so that writing one position seldom moves those before it."""
    if length <= SMALLEST:
        return SMALLEST if length > 0 else 0
    step = 1 << (length - 1).bit_length() - 3
    return -(-length // step) * step


@dataclass(frozen=True, slots=True)
class Cost:
    """What a sequence takes in some blocks, in bytes: `fixed`, and `position` for each of its positions, or, with
    `rooms`, for each that there is room for."""

    fixed: int
    position: int
    rooms: bool

    def of(self, length: int) -> int:
        """For a sequence of `length` positions."""
        if length <= 0:
            return 0
        return self.fixed + self.position * (capacity(length) if self.rooms else length)

    @classmethod
    def together(cls, costs: Sequence[Cost]) -> Cost:
        """Of several blocks, which keep their positions in the same way."""
        return cls(sum(c.fixed for c in costs), sum(c.position for c in costs), all(c.rooms for c in costs))


def linear_cost(length: int, held: int, more: int, held_then: int) -> Cost:
    """Of a block that held `held` bytes of `length` positions, and `held_then` of `more` positions beyond."""
    position = max(-(-(held_then - held) // more), 0)
    return Cost(OBJECT_BYTES + max(held - position * length, 0), position, rooms=False)
