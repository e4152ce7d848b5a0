"""What one peer may have, and all together: counts and rates. Pure: times are passed in.

A rate is a token bucket, kept as one number by the generic cell rate algorithm (ITU-T I.371, virtual scheduling): the
time at which all that was taken will have been earned.
"""

from __future__ import annotations

import math
from collections import Counter

from swarm.types import PeerId

REMEMBERED = 4096
"""Peers whose buckets are kept at most."""


class Bucket:
    """`rate` a second, 0 for no limit; `burst` may go at once after a pause, a second's worth unless it is said."""

    __slots__ = ("_ahead", "_free", "rate")

    def __init__(self, rate: float, burst: float = 0.0) -> None:
        self.rate = rate
        self._ahead = (burst or rate) / rate if rate else 0.0
        self._free = -math.inf

    def take(self, count: float, now: float) -> float:
        """Take `count` at `now`, whatever there is. Seconds to wait before the next are taken; whoever asks first goes
        first."""
        if not self.rate:
            return 0.0
        self._free = max(self._free, now - self._ahead) + count / self.rate
        return max(0.0, self._free - now)

    def ask(self, count: float, now: float) -> float:
        """Take `count` if they are there: 0.0. Else take nothing: seconds after which they will be."""
        if not self.rate:
            return 0.0
        free = max(self._free, now - self._ahead) + count / self.rate
        if free <= now:
            self._free = free
            return 0.0
        return free - now

    def is_full(self, now: float) -> bool:
        """Whether forgetting it would change nothing."""
        return self._free <= now - self._ahead


class Buckets:
    """A bucket for each peer; those that are full again are forgotten where there are many."""

    def __init__(self, rate: float, burst: float = 0.0) -> None:
        self._rate, self._burst = rate, burst
        self._of: dict[PeerId, Bucket] = {}

    def of(self, peer: PeerId, now: float) -> Bucket:
        """The bucket of a peer."""
        if (bucket := self._of.get(peer)) is None:
            if len(self._of) >= REMEMBERED:
                self._of = {each: kept for each, kept in self._of.items() if not kept.is_full(now)}
            while len(self._of) >= REMEMBERED:
                del self._of[next(iter(self._of))]
            bucket = self._of[peer] = Bucket(self._rate, self._burst)
        return bucket


class Places:
    """What is held now: at most `per_peer` by one peer, at most `total` by all."""

    def __init__(self, per_peer: int, total: int) -> None:
        self.per_peer, self.total = per_peer, total
        self._held: Counter[PeerId] = Counter()
        self.held = 0
        """By all together."""

    def of(self, peer: PeerId) -> int:
        """What a peer holds."""
        return self._held[peer]

    def allows(self, peer: PeerId, count: int = 1) -> bool:
        """Whether a peer may take so many more. Who holds nothing may always take one thing larger than its share."""
        mine = not self._held[peer] or self._held[peer] + count <= self.per_peer
        return mine and (not self.held or self.held + count <= self.total)

    def take(self, peer: PeerId, count: int = 1) -> None:
        """Count them, whether they are allowed or not."""
        self._held[peer] += count
        self.held += count

    def give(self, peer: PeerId, count: int = 1) -> None:
        """They are free again."""
        self._held[peer] -= count
        self.held -= count
        if not self._held[peer]:
            del self._held[peer]
