"""How far servers are from here: those that seem to be near are measured, a few at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Container, Iterable

from swarm.coordinates import Coordinate, round_trip_ms
from swarm.net.locator import Locator
from swarm.types import PeerId, ServerRecord

AT_ONCE = 12
ROUNDS = 5
"""Each begins from a better coordinate than the one before."""


async def explore(
    locator: Locator,
    records: Iterable[ServerRecord],
    known: Container[PeerId],
    measured: Callable[[PeerId, float], None],
    rng: random.Random,
) -> None:
    """Measure the servers that seem nearest and are not `known`; `measured` hears of each."""
    left = {record.peer_id: record for record in records if record.peer_id not in known}
    for _ in range(ROUNDS):
        peers = nearest(left.values(), locator.coordinate, rng)
        rtts = await asyncio.gather(*(locator.measure(peer_id, left[peer_id].addresses) for peer_id in peers))
        for peer_id, rtt_ms in zip(peers, rtts, strict=True):
            del left[peer_id]
            if rtt_ms is not None:
                measured(peer_id, rtt_ms)


def nearest(records: Iterable[ServerRecord], here: Coordinate | None, rng: random.Random) -> list[PeerId]:
    """Whom to measure next. As long as it is not known where this is: anybody."""
    order = {}
    for record in records:
        there = record.coordinate
        order[record.peer_id] = rng.random() if here is None or there is None else round_trip_ms(here, there)
    return sorted(order, key=order.__getitem__)[:AT_ONCE]
