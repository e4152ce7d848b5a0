"""Looks now and then at a route that works, and leaves hops that have become slow where others are faster by enough."""

from __future__ import annotations

import asyncio
import logging
import math
import random

from swarm.client.betterment import WEIGH_EVERY, Stopwatch
from swarm.client.epoch import Epochs
from swarm.client.view import View
from swarm.errors import SwarmError

log = logging.getLogger(__name__)


class Weighing:
    """Of one lane's route."""

    def __init__(self, epochs: Epochs, view: View, rng: random.Random) -> None:
        self._epochs = epochs
        self._view = view
        self._random = rng
        self._stopwatch = Stopwatch()
        self._next = math.inf
        self._wanting = False
        """Whether the last look found another route worth going to: it takes two."""

    def begin(self) -> None:
        """With another route, or the same anew."""
        self._stopwatch, self._wanting = Stopwatch(), False
        self._later()

    def due(self) -> bool:
        """Whether to look now; the next look is put off then."""
        if _now() < self._next:
            return False
        self._later()
        return True

    async def look(self, steps: int) -> bool:
        """After so many steps: whether hops are to be left for a faster route, which is noted for the next epoch."""
        epochs, links = self._epochs, self._epochs.links
        try:
            told = await asyncio.gather(*(link.trace() for link in links))
            await self._view.refresh(WEIGH_EVERY)
        except SwarmError as error:
            log.info("a route cannot be weighed: %s", error)
            return False
        hops = {link.hop.key: link.hop for link in links}
        for key, seconds in self._stopwatch.take(dict(zip(hops, told, strict=True))).items():
            self._view.observed(hops[key].server, seconds * 1000.0 / len(hops[key].span))
        if epochs.streams is None or links != epochs.links:
            return False
        slow = epochs.outdone(steps)
        before, self._wanting = self._wanting, bool(slow)
        return before and epochs.leave(slow)

    def _later(self) -> None:
        # Sessions that began together must not all leave a busy server at the same moment.
        self._next = _now() + WEIGH_EVERY * self._random.uniform(0.5, 1.5)


def _now() -> float:
    return asyncio.get_running_loop().time()
