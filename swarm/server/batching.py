"""Which of the waiting work goes into the next forward pass. Pure: plain data in, a decision out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarm.types import Span


@dataclass(frozen=True, slots=True)
class Waiting:
    """The oldest unfinished work of one session: which blocks, and how many positions are left. `weight`: the share of
    its client."""

    span: Span
    positions: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Grant:
    """`positions` of the work at `index` take part in the next forward pass."""

    index: int
    positions: int


DECODE_POSITIONS = 16
"""Work of at most so many positions counts as a decode step: one token, or a window of guesses."""
SMALLEST_SLICE = 16
"""Positions of a prompt that a pass takes at least, however slow the machine: reading the weights costs as much."""


def choose(waiting: Sequence[Waiting], budget: int, chunk: int, *, decoding: bool = False) -> list[Grant]:
    """Fill one forward pass of at most `budget` positions; `waiting` is in order of precedence.

    Only work on the same blocks as the first can share a pass. Decode steps go before prompts, and whole. A prompt that
    is alone gets the whole budget, several get at most `chunk` each, more or less by their weights; but where somebody
    decodes (here, or soon again: `decoding`), all prompts together get `chunk`, so that they do not hold up everybody's
    next token. The first in line always gets something.
    """
    if not waiting:
        return []
    peers = [i for i, work in enumerate(waiting) if work.span == waiting[0].span]
    steps = [i for i in peers if waiting[i].positions <= DECODE_POSITIONS]
    busy = decoding or 0 < len(steps) < len(peers)
    limits = dict.fromkeys(peers, chunk if busy or len(peers) > 1 else budget)
    if not busy and len(peers) > 1 and not steps:
        whole = sum(waiting[i].weight for i in peers)
        limits = {i: max(int(chunk * len(peers) * waiting[i].weight / whole), 1) for i in peers}
    reserve = min(waiting[0].positions, limits[0], budget)
    left_for_all = budget - reserve
    left_for_prompts = (chunk if busy else budget) - (0 if 0 in steps else reserve)
    grants = {0: reserve}
    for index in sorted(peers[1:], key=lambda i: i not in steps):
        is_prompt = index not in steps
        room = min(left_for_all, left_for_prompts) if is_prompt else left_for_all
        positions = min(waiting[index].positions, limits[index], room)
        if positions > 0:
            grants[index] = positions
            left_for_all -= positions
            left_for_prompts -= positions if is_prompt else 0
    return [Grant(index, positions) for index, positions in sorted(grants.items())]


def slice_of(seconds: float, per_position: float, most: int) -> int:
    """Positions of prompts in a pass that others wait for: what takes `seconds`; `most` until it was measured."""
    return most if per_position <= 0.0 else max(min(int(seconds / per_position), most), min(SMALLEST_SLICE, most))


def serve_fairly(served: Mapping[str, float], waiting: Iterable[str]) -> dict[str, float]:
    """How much each client that waits, or was served more than those, has been served, in positions by its weight.

    Start-time fair queuing (Goyal, Vin, Cheng, 1996): the next pass goes to the client served least; who comes begins
    with the least of those who wait, or where it left off if that was more: nobody saves up a claim while idle.
    """
    clients = set(waiting)
    least = min((served[client] for client in clients if client in served), default=0.0)
    ahead = {client: amount for client, amount in served.items() if amount > least}
    return {**dict.fromkeys(clients, least), **ahead}


HOLD_SHARE = 1.0
"""Passes of decode steps for which one may wait for company: what it costs to compute the others separately."""


def patience(waiting: int, active: int, pass_seconds: float) -> float:
    """Seconds that a pass of `waiting` sessions may be held back for more of the `active` ones to arrive.

    A pass over few sessions takes almost as long as one over many. Sessions that are on other hops come back one by
    one; without a little patience they would be served one by one for ever. Half of them is company enough: the other
    half keeps the other hops busy. A session that is alone never waits.
    """
    return 0.0 if waiting >= (active + 1) // 2 else HOLD_SHARE * pass_seconds
