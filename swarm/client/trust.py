"""Whom a client keeps away from: peers and links that failed, for how long, and why; and what servers allow.

Pure: the time is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from swarm.client.integrity import Integrity
from swarm.config import ClientConfig
from swarm.types import PeerId

T = TypeVar("T", bound=Hashable)

Link = tuple[PeerId, PeerId]
"""(from, to): the way from one hop to the next."""


@dataclass(frozen=True, slots=True)
class Process:
    """Of a peer, as its record says. `expires`: when that record does, by which the newer of two is known."""

    instance: int
    expires: float

    def follows(self, other: Process) -> bool:
        """Whether the peer was started again since."""
        return self.instance != other.instance and self.expires > other.expires


@dataclass(frozen=True, slots=True)
class Avoided:
    """Until when something is avoided, by the loop's clock, and the last reason. `process`: what was not there; another
    may be. None: that does not matter. `spared`: until when also where there is nothing else."""

    until: float
    why: str
    process: Process | None = None
    spared: float = math.inf


class Avoidance(Generic[T]):
    """Things to keep away from, each for a time that doubles with every failure and is forgotten after success."""

    def __init__(self, first: float, longest: float) -> None:
        self.first = first
        self.longest = longest
        self._avoided: dict[T, Avoided] = {}
        self._failures: dict[T, int] = {}

    def add(
        self,
        thing: T,
        now: float,
        seconds: float | None = None,
        why: str = "",
        *,
        longest: float | None = None,
        process: Process | None = None,
    ) -> None:
        """It failed. `seconds`: for how long to avoid it; None: twice as long as after the failure before.

        `longest`: at most so long, and a sixteenth of that at first, for what may pass as soon.
        """
        failures = self._failures[thing] = self._failures.get(thing, 0) + 1
        first, most = (self.first, self.longest) if longest is None else (longest / 16, longest)
        wait = min(first * 2 ** min(failures - 1, 16), most) if seconds is None else seconds
        known = self._avoided.get(thing)
        until = known.until if known else 0.0
        if known is not None and known.process is None and until > now:
            process = None  # what was wrong before is not made good by that
        # How often it was not there says little of whether it is, and it did not ask for more time.
        spared = now + min(wait, first) if process is not None and seconds is None else now + wait
        spared = max(spared, known.spared if known is not None and until > now else 0.0)
        self._avoided[thing] = Avoided(max(until, now + wait), why, process, spared)

    def forgive(self, thing: T) -> None:
        """It worked: the next failure counts as a first one."""
        self._failures.pop(thing, None)
        self._avoided.pop(thing, None)

    def started(self, thing: T, process: Process) -> None:
        """It runs again: what was not there is. The next failure counts as before."""
        known = self._avoided.get(thing)
        if known is not None and known.process is not None and process.follows(known.process):
            del self._avoided[thing]

    def active(self, now: float) -> Mapping[T, Avoided]:
        """What is to be kept away from at `now`."""
        self._avoided = {thing: avoided for thing, avoided in self._avoided.items() if avoided.until > now}
        return self._avoided

    def spared(self, now: float) -> Mapping[T, Avoided]:
        """What is to be kept away from at `now` also where there is nothing else."""
        return {thing: avoided for thing, avoided in self.active(now).items() if avoided.spared > now}


Excess = tuple[str, int, int]
"""What is too much: the limit's name (sequences, positions, context, or what a server calls it), what it allows, and
what is asked."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a session holds: so many sequences at once, positions of all together, and positions of the longest; and how
    many places each position has; whether an adapter is applied."""

    sequences: int = 0
    positions: int = 0
    longest: int = 0
    places: int = 0
    adapted: bool = False

    @classmethod
    def of(cls, lengths: Mapping[int, int], places: int = 0, adapted: bool = False) -> Needs:
        """Of sequences of these lengths."""
        return cls(len(lengths), sum(lengths.values()), max(lengths.values(), default=0), places, adapted)

    def covers(self, other: Needs) -> bool:
        """Whether this is as much in every respect."""
        return self.sequences >= other.sequences and self.positions >= other.positions and self.longest >= other.longest

    def most(self, other: Needs) -> Needs:
        """The more of both, in every respect."""
        return Needs(
            max(self.sequences, other.sequences),
            max(self.positions, other.positions),
            max(self.longest, other.longest),
            max(self.places, other.places),
            self.adapted or other.adapted,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may ever have at a server, as it says. 0: it does not say.

    `refused`: what it has refused by another measure, such as bytes of KV cache, and how it put it. `blocks`: on how
    many blocks all this was said; on fewer there is room for more positions.
    """

    sequences: int = 0
    positions: int = 0
    longest: int = 0
    refused: tuple[Needs, Excess] | None = None
    blocks: int = 0

    def most_blocks(self, needs: Needs) -> int | None:
        """On how many blocks a session may have this much; None: on any, for all that is known."""
        excess = self.exceeded(needs)
        if excess is None:
            return None
        name, allowed, asked = excess
        return 0 if name in ("sequences", "context") else self.blocks * allowed // asked

    def exceeded(self, needs: Needs) -> Excess | None:
        """What would be too much; None: nothing, for all that is known."""
        pairs = (
            ("sequences", self.sequences, needs.sequences),
            ("context", self.longest, needs.longest),
            ("positions", self.positions, needs.positions),
        )
        told = next((limit for limit in pairs if 0 < limit[1] < limit[2]), None)
        if told is None and self.refused is not None and needs.covers(self.refused[0]):
            return self.refused[1]
        return told

    def tightened(self, excess: Excess, needs: Needs) -> Limits:
        """With what a server said when it refused `needs`."""
        name, allowed, _ = excess
        if name == "sequences":
            return replace(self, sequences=allowed)
        return replace(self, positions=allowed) if name == "positions" else replace(self, refused=(needs, excess))


class Trust:
    """What all sessions of a client on one model know of the others; `Blame` alone writes it.

    `limits`: what one session may have at a server, of those that were opened; `accused`: of whom a server says that
    what they send cannot be right; `integrity`: who computes right, by audits.
    """

    def __init__(self, config: ClientConfig, dtype: str = "float32") -> None:
        self.limits: dict[PeerId, Limits] = {}
        self.integrity = Integrity(dtype)
        self.accused: dict[PeerId, set[PeerId]] = {}
        self.peers = Avoidance[PeerId](config.avoid_peer, config.max_avoid)
        self.links = Avoidance[Link](config.avoid_link, config.max_avoid)
