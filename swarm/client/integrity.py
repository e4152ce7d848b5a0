"""What a client knows of who computes right: by what it has audited itself, and by nothing else. Pure.

Whether a server can be reached is another matter, and another list. Work that nobody has looked at earns nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from swarm.types import PeerId

HIGHEST, LOWEST = 0.5, 0.01
"""Probability of an audit, of who is not known, and of who has always passed."""
FIRST_NOISE, MOST_NOISE = 0.02, 0.04
"""Relative to what blocks add: what is taken for usual before anything is known, and at most."""
LEAST_NOISE = {"float32": 0.001, "exact": 0.0}
"""How little is believed, by dtype: other kernels on another machine must pass."""
LEAST_OF_16_BITS = 0.005
LEARNT = 0.25
"""Of the noise of a new audit that passed, in what is usual."""
DOUBT_MS = 0.2
"""A block, times the logarithm of the odds that it computes wrong: what using a server costs in a route."""
PROVEN = 0.5
"""Audits passed, faded, from which on a server counts as known."""
QUANTILE, GRID = 0.05, 4096
HALF_LIFE = 30 * 86400.0
"""Seconds after which what was seen counts for half."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Audits that a server passed and failed, faded, of those that its route failed its share; when that was; and why
    it is not used any more, if it is not."""

    passed: float = 0.0
    failed: float = 0.0
    at: float = 0.0
    convicted: str = ""

    def faded(self, now: float) -> Standing:
        """As it counts at `now`, in unix seconds."""
        left = 0.5 ** (max(now - self.at, 0.0) / HALF_LIFE)
        return replace(self, passed=self.passed * left, failed=self.failed * left, at=max(now, self.at))


NOBODY = Standing()


class Integrity:
    """Of all servers that were audited. `noise`: the usual error between honest servers; `now`: unix seconds."""

    def __init__(self, dtype: str = "float32", known: Mapping[PeerId, Standing] | None = None) -> None:
        self.standings = dict(known or {})
        self.noise = FIRST_NOISE
        self.changed = False
        """Whether anything is known that was not kept yet."""
        self._least = least_noise(dtype)

    def of(self, peer: PeerId) -> Standing:
        """What is known of a server."""
        return self.standings.get(peer, NOBODY)

    def passed(self, peers: Iterable[PeerId], noise: float, now: float) -> None:
        """These came to the same as others, as nearly as `noise`."""
        learnt = self.noise + LEARNT * (noise - self.noise)
        self.noise = min(max(learnt, self._least), MOST_NOISE)
        for peer in peers:
            old = self.of(peer).faded(now)
            self._know(peer, replace(old, passed=old.passed + 1.0))

    def doubted(self, peers: Iterable[PeerId], now: float) -> None:
        """One of these was wrong."""
        together = list(peers)
        for peer in together:
            old = self.of(peer).faded(now)
            self._know(peer, replace(old, failed=old.failed + 1.0 / len(together)))

    def convict(self, peer: PeerId, why: str, now: float) -> None:
        """It was wrong, by the word of two others: it is not used again."""
        old = self.of(peer).faded(now)
        self._know(peer, replace(old, failed=old.failed + 1.0, convicted=why))

    def _know(self, peer: PeerId, standing: Standing) -> None:
        self.standings[peer] = standing
        self.changed = True

    @property
    def convicted(self) -> frozenset[PeerId]:
        """Who is not used any more."""
        return frozenset(peer for peer, standing in self.standings.items() if standing.convicted)

    def costs(self, peers: Iterable[PeerId], now: float) -> dict[PeerId, float]:
        """In ms a block, what it costs to use these: next to nothing of who has passed often, more of who is not known,
        most of who failed. A cost and no rule, so that newcomers are used where they are faster."""
        return {peer: -DOUBT_MS * math.log(reliability(self.of(peer).faded(now))) for peer in peers}

    def unproven(self, peers: Iterable[PeerId]) -> frozenset[PeerId]:
        """Who of these has passed no audit."""
        return frozenset(peer for peer in peers if self.of(peer).passed < PROVEN)

    def rate(self, peers: Iterable[PeerId], now: float) -> float:
        """The probability with which what these have computed is audited (adaptive replication; Anderson, 2004)."""
        return max((audit_rate(self.of(peer).faded(now)) for peer in peers), default=0.0)


def least_noise(dtype: str) -> float:
    """What two honest servers may always be apart, relative to what blocks add."""
    return LEAST_NOISE.get(dtype, LEAST_OF_16_BITS)


def reliability(standing: Standing) -> float:
    """How often a server computes right at the least, with a certainty of 95 %: the lower quantile of the posterior
    Beta(1 + passed, 1 + failed), over outcomes of audits alone."""
    return _lower(round(standing.passed, 1), round(standing.failed, 2))


@functools.lru_cache(4096)
def _lower(passed: float, failed: float) -> float:
    shares = (np.arange(GRID) + 0.5) / GRID
    weights = passed * np.log(shares) + failed * np.log1p(-shares)
    risen = np.exp(weights - weights.max()).cumsum()
    return float(shares[int(np.searchsorted(risen, QUANTILE * risen[-1]))])


def audit_rate(standing: Standing) -> float:
    """High for who is new or in doubt, falling with every audit that is passed."""
    surplus = max(standing.passed - 4.0 * standing.failed, 0.0)
    return min(max(HIGHEST / (1.0 + surplus), LOWEST), HIGHEST)
