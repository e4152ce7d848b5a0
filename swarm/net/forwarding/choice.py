"""Through which forwarders a peer behind NAT is reached. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from swarm.types import PeerId

GAIN = 0.7
"""A forwarder gives way to one whose delay is below this share of its own ..."""
LEAST_GAIN = 0.01
"""... and at least by so many seconds."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A forwarder that is known. `delay`: seconds there and back, infinite where it is not known; `full`: it opens no
    more circuits; `failures`: dials that failed since the last that did not; `network`: what it shares with those who
    are likely to vanish together with it."""

    peer_id: PeerId
    delay: float = math.inf
    full: bool = False
    failures: int = 0
    network: str = ""


def choose(candidates: Iterable[Candidate], held: Collection[PeerId], wanted: int) -> list[PeerId]:
    """The forwarders to be connected to, the best first: few delays, and not all in one network.

    A caller's way leads over its own delay and ours; whoever calls tries all at once and takes the first that answers,
    which is the smallest sum. Here only our part is known, so the nearest are taken. Those held stay unless they fail,
    or another is clearly nearer: a change interrupts whoever calls through it.
    """
    usable = [one for one in candidates if not (one.full and one.peer_id not in held)]
    ranked = sorted(usable, key=lambda one: (one.failures > 1, one.failures, _cost(one, held), one.peer_id))
    chosen: list[Candidate] = []
    while ranked and len(chosen) < wanted:
        near = {one.network for one in chosen}
        best = next((one for one in ranked if one.network not in near and one.failures <= 1), ranked[0])
        ranked.remove(best)
        chosen.append(best)
    return [one.peer_id for one in chosen]


def _cost(one: Candidate, held: Collection[PeerId]) -> float:
    return one.delay * GAIN - LEAST_GAIN if one.peer_id in held else one.delay
