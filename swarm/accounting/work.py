"""What computing counts for: the parameters of the blocks, times the positions, each with its weight. Pure."""

from __future__ import annotations

from collections.abc import Iterable

DECODE_POSITIONS = 16
"""Of one sequence in one step: up to so many count whole, as a token does, or a window of guesses."""
QUARTERS = 4
"""Of a position that is counted whole. Positions of a prompt count for one: many share the reading of the weights."""
WINDOW = 64 * QUARTERS
"""What a client has at most without having signed for it, where its steps are not longer than a quarter of that."""
SECONDS = 10.0
"""After which it is asked to sign for less."""


def weighed(count: int) -> int:
    """Quarters of a position for `count` positions of one sequence in one step: more of them never count for less."""
    if count <= DECODE_POSITIONS:
        return QUARTERS * count
    return max(QUARTERS * DECODE_POSITIONS, count)


def work_of(counts: Iterable[int], parameters: int) -> int:
    """Of a step with so many positions of each sequence, through blocks with so many parameters."""
    return sum(map(weighed, counts)) * parameters // QUARTERS
