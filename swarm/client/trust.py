"""Whom a client keeps away from: peers and links that failed, for how long, and why. Pure: the time is passed in."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from swarm.config import ClientConfig
from swarm.types import PeerId

T = TypeVar("T", bound=Hashable)

Link = tuple[PeerId, PeerId]
"""(from, to): the way from one hop to the next."""


@dataclass(frozen=True, slots=True)
class Avoided:
    """Until when something is avoided, by the loop's clock, and the last reason."""

    until: float
    why: str


class Avoidance(Generic[T]):
    """Things to keep away from, each for a time that doubles with every failure and is forgotten after success."""

    def __init__(self, first: float, longest: float) -> None:
        self.first = first
        self.longest = longest
        self._avoided: dict[T, Avoided] = {}
        self._failures: dict[T, int] = {}

    def add(self, thing: T, now: float, seconds: float | None = None, why: str = "") -> None:
        """It failed. `seconds`: for how long to avoid it; None: twice as long as after the failure before."""
        failures = self._failures[thing] = self._failures.get(thing, 0) + 1
        wait = min(self.first * 2 ** min(failures - 1, 16), self.longest) if seconds is None else seconds
        known = self._avoided.get(thing)
        self._avoided[thing] = Avoided(max(known.until if known else 0.0, now + wait), why)

    def forgive(self, thing: T) -> None:
        """It worked: the next failure counts as a first one."""
        self._failures.pop(thing, None)
        self._avoided.pop(thing, None)

    def active(self, now: float) -> Mapping[T, Avoided]:
        """What is to be kept away from at `now`."""
        self._avoided = {thing: avoided for thing, avoided in self._avoided.items() if avoided.until > now}
        return self._avoided


class Trust:
    """What all sessions of a client on one model know of the others; `Blame` alone writes it."""

    def __init__(self, config: ClientConfig) -> None:
        self.peers = Avoidance[PeerId](config.avoid_peer, config.max_avoid)
        self.links = Avoidance[Link](config.avoid_link, config.max_avoid)
