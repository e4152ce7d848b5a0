"""Whom a forwarder carries for, and how fast. Pure: counts and times are passed in."""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass

from swarm.config import ForwardConfig
from swarm.net.forwarding.circuits import Status
from swarm.types import PeerId

Pair = tuple[PeerId, PeerId]
"""Of a circuit: who opened it, and to whom."""


def refusal(pair: Pair, open_: Collection[Pair], limits: ForwardConfig, blocked: Set[PeerId]) -> Status | None:
    """Why a circuit is not opened beside those that are open; None: it is."""
    caller, target = pair
    if caller in blocked or target in blocked:
        return Status.PERMISSION_DENIED
    if caller == target:
        return Status.CONNECTION_FAILED
    callers = sum(one == caller for one, _ in open_)
    targets = sum(other == target for _, other in open_)
    if len(open_) >= limits.circuits or callers >= limits.per_caller or targets >= limits.per_target:
        return Status.RESOURCE_LIMIT_EXCEEDED
    return None


@dataclass(slots=True)
class Pace:
    """Bytes a second of all that share it; 0: no limit. A second's worth may go at once."""

    rate: float
    _free: float = 0.0

    def take(self, count: int, now: float) -> float:
        """Take `count` bytes at `now`. Seconds to wait before the next are taken; whoever asks first goes first."""
        if not self.rate:
            return 0.0
        self._free = max(self._free, now - 1.0) + count / self.rate
        return max(0.0, self._free - now)
