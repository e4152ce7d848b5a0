"""Which servers that can follow a span are near it: what nobody else can measure, and routes are made by."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

from swarm.coordinates import Coordinate, round_trip_ms
from swarm.net.locator import Locator
from swarm.types import MAX_NEAR, PeerId, ServerRecord, ServerState, Span, digest

ASKED = 12
"""Servers that are measured at a time: half as many again as are told of, for estimates are wrong."""


class Nearby:
    """What one server has measured of those that can follow it."""

    def __init__(self, locator: Locator, rng: random.Random) -> None:
        self._locator = locator
        self._rng = rng
        self._measured: dict[PeerId, float] = {}

    def told(self) -> tuple[tuple[bytes, float], ...]:
        """For the record: the nearest, by digest, with their round trips in ms."""
        nearest = sorted(self._measured.items(), key=lambda item: (item[1], item[0]))[:MAX_NEAR]
        return tuple((digest(peer_id), rtt_ms) for peer_id, rtt_ms in nearest)

    async def look(self, span: Span, others: Sequence[ServerRecord]) -> None:
        """Measure some of the others."""
        able = followers(span, others)
        self._measured = {peer_id: rtt_ms for peer_id, rtt_ms in self._measured.items() if peer_id in able}
        peers = chosen(able, self._measured, self._locator.coordinate, self._rng)
        rtts = await asyncio.gather(*(self._locator.measure(peer_id, able[peer_id].addresses) for peer_id in peers))
        for peer_id, rtt_ms in zip(peers, rtts, strict=True):
            self._measured.pop(peer_id, None)
            if rtt_ms is not None:
                self._measured[peer_id] = rtt_ms


def followers(span: Span, others: Sequence[ServerRecord]) -> dict[PeerId, ServerRecord]:
    """Those that have the block after the span."""
    return {
        other.peer_id: other
        for other in others
        if other.state is ServerState.ONLINE and other.span.first <= span.last < other.span.last
    }


def chosen(
    able: Mapping[PeerId, ServerRecord],
    measured: Mapping[PeerId, float],
    here: Coordinate | None,
    rng: random.Random,
) -> list[PeerId]:
    """Whom to measure: the nearest by what is known so far, which for most is an estimate, and one at random."""
    if len(able) <= ASKED:
        return list(able)

    def far(peer_id: PeerId) -> float:
        there = able[peer_id].coordinate
        estimate = float("inf") if here is None or there is None else round_trip_ms(here, there)
        return measured.get(peer_id, estimate)

    nearest = sorted(able, key=lambda peer_id: (far(peer_id), rng.random()))
    return [*nearest[: ASKED - 1], rng.choice(nearest[ASKED - 1 :])]
