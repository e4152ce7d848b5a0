"""Where each hop goes on after a change of route. Pure: the whole replay is decided here, from what each hop has.

For one sequence, hop i holds `length` positions in its KV cache and can send its outputs of `history` .. `length`
again. Going from the last hop to the first: a hop whose history reaches back to what is needed downstream keeps
everything and sends from history; otherwise it is cut back to there and computes those positions once more. What a
hop needs as input is what it will not hold after its cut. Whatever the first hop needs the client has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holding:
    """What one hop has of one sequence. `reach`: the shortest length, beside 0, to which it can be cut."""

    length: int = 0
    history: int = 0
    reach: int = 0


@dataclass(frozen=True, slots=True)
class HopState:
    """What one hop has, per sequence."""

    held: Mapping[int, Holding]


@dataclass(frozen=True, slots=True)
class HopPlan:
    """`cuts`: truncate the sequence to this length. `replays`: send outputs again from this position."""

    cuts: Mapping[int, int]
    replays: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """`hops`: one plan a hop, in order. `client_from`: the client sends its inputs again from these positions."""

    hops: tuple[HopPlan, ...]
    client_from: Mapping[int, int]


def plan_resume(hops: Sequence[HopState], wanted: Mapping[int, int]) -> ResumePlan:
    """`wanted`: per living sequence the first position whose output the client still misses (its length, if none)."""
    needed = dict(wanted)
    plans: list[HopPlan] = []
    for hop in reversed(hops):
        cuts: dict[int, int] = {}
        replays: dict[int, int] = {}
        for sequence, position in needed.items():
            holding = hop.held.get(sequence, Holding())
            if position < holding.length and holding.history <= position:
                replays[sequence] = position
            elif position < holding.length:
                cuts[sequence] = position if position >= holding.reach else 0
            needed[sequence] = cuts.get(sequence, holding.length)
        plans.append(HopPlan(cuts, replays))
    return ResumePlan(tuple(reversed(plans)), needed)
