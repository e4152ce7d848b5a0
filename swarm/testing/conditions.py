"""What a link between two peers does to frames: delay, jitter, loss, and a rate that all streams on it share."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinkConditions:
    """One direction of a link. `delay`, `jitter` and `retransmit` in seconds, `rate` in bytes per second (None: no
    limit), `loss`: share of frames that arrive `retransmit` later, as a lost packet does on a reliable stream."""

    delay: float = 0.005
    jitter: float = 0.0
    rate: float | None = None
    loss: float = 0.0
    retransmit: float = 0.2


class Line:
    """One direction between two peers, on which one frame is put after the other, whichever stream it belongs to."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self._free = 0.0

    def arrival(self, now: float, nbytes: int, link: LinkConditions) -> float:
        """When a frame of `nbytes` that is sent now arrives; within a stream, not before the one before it."""
        self._free = max(now, self._free)
        if link.rate is not None:
            self._free += nbytes / link.rate
        late = link.retransmit if link.loss and self._random.random() < link.loss else 0.0
        jitter = self._random.uniform(0.0, link.jitter) if link.jitter else 0.0
        return self._free + link.delay + jitter + late
