"""Which of the waiting work goes into the next forward pass. Pure: plain data in, a decision out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.types import Span


@dataclass(frozen=True, slots=True)
class Waiting:
    """The oldest unfinished work of one session: which blocks, and how many positions are left."""

    span: Span
    positions: int


@dataclass(frozen=True, slots=True)
class Grant:
    """`positions` of the work at `index` take part in the next forward pass."""

    index: int
    positions: int


def choose(waiting: Sequence[Waiting], budget: int, chunk: int) -> list[Grant]:
    """Fill one forward pass of at most `budget` positions, oldest work first.

    Only work on the same blocks as the oldest can share a pass. Decode steps (few positions) go first and whole;
    what is left of the budget goes to prefill, at most `chunk` positions each as long as others wait too, so that a
    long prompt does not hold up everybody's next token. The oldest work always gets something: nothing starves.
    """
    if not waiting:
        return []
    peers = [i for i, work in enumerate(waiting) if work.span == waiting[0].span]
    limit = chunk if len(peers) > 1 else budget
    reserve = min(waiting[0].positions, limit, budget)
    left = budget - reserve
    grants = {0: reserve}
    for index in sorted(peers[1:], key=lambda i: waiting[i].positions > chunk):
        positions = min(waiting[index].positions, limit, left)
        if positions > 0:
            grants[index] = positions
            left -= positions
    return [Grant(index, positions) for index, positions in sorted(grants.items())]


HOLD_SHARE = 1.0
"""Passes of decode steps for which one may wait for company: what it costs to compute the others separately."""


def patience(waiting: int, active: int, pass_seconds: float) -> float:
    """Seconds that a pass of `waiting` sessions may be held back for more of the `active` ones to arrive.

    A pass over few sessions takes almost as long as one over many. Sessions that are on other hops come back one by
    one; without a little patience they would be served one by one for ever. Half of them is company enough: the other
    half keeps the other hops busy. A session that is alone never waits.
    """
    return 0.0 if waiting >= (active + 1) // 2 else HOLD_SHARE * pass_seconds
