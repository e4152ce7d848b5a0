"""Peers in the cities of the world: round trips as along cables with detours, and coordinates that they learned."""

from __future__ import annotations

import math
import random

import numpy as np

from swarm.coordinates import FARTHEST_MS, NOWHERE, Coordinate, round_trip_ms, settled

# Latitude, longitude, and how many peers live there.
CITIES = (
    (51.5, -0.1, 6), (48.9, 2.3, 5), (50.1, 8.7, 6), (52.4, 4.9, 5), (40.4, -3.7, 3), (45.5, 9.2, 3), (52.2, 21.0, 3),
    (59.3, 18.0, 3), (50.4, 30.5, 2), (41.0, 29.0, 2), (55.8, 37.6, 3), (25.2, 55.3, 1), (19.0, 72.8, 2),
    (28.6, 77.2, 2), (1.4, 103.8, 3), (-6.2, 106.8, 1), (22.3, 114.2, 3), (31.2, 121.5, 3), (37.6, 127.0, 3),
    (35.7, 139.7, 4), (-33.9, 151.2, 3), (-23.5, -46.6, 3), (-26.2, 28.0, 1), (40.7, -74.0, 7), (25.8, -80.2, 3),
    (41.9, -87.6, 4), (32.8, -96.8, 4), (37.8, -122.4, 7), (47.6, -122.3, 4), (43.7, -79.4, 3),
)  # fmt: skip
EARTH_KM = 6371.0
KM_PER_MS = 200.0
"""Of light in glass."""
NEIGHBOURS = 24


class World:
    """Peers, most in few cities, who come one after the other and ask others now and then how far they are.

    `liars`: the share of them that says, after every measurement, that they are somewhere else.
    """

    def __init__(self, peers: int, seed: int, liars: float = 0.0) -> None:
        self.rng = rng = random.Random(seed)
        self.city = rng.choices(range(len(CITIES)), [people for *_, people in CITIES], k=peers)
        self.access = [rng.uniform(1.0, 12.0) for _ in range(peers)]
        self._detours = {(a, b): rng.uniform(1.3, 1.9) for a in range(len(CITIES)) for b in range(len(CITIES)) if a < b}
        self.liars = {peer for peer in range(peers) if rng.random() < liars}
        self.coordinates = [NOWHERE] * peers
        self.table = np.array([[self.rtt_ms(a, b) if a != b else 0.0 for b in range(peers)] for a in range(peers)])
        self._near: list[dict[int, tuple[Coordinate, float]]] = [{} for _ in range(peers)]
        self._grow(peers)

    def rtt_ms(self, one: int, other: int) -> float:
        """The round trip that peers would measure on a quiet day."""
        return self.cities_ms(self.city[one], self.city[other]) + self.access[one] + self.access[other]

    def cities_ms(self, one: int, other: int) -> float:
        if one == other:
            return 1.0
        (north, east, _), (north2, east2, _) = CITIES[one], CITIES[other]
        p, q, turn = math.radians(north), math.radians(north2), math.radians(east - east2)
        angle = math.acos(min(1.0, math.sin(p) * math.sin(q) + math.cos(p) * math.cos(q) * math.cos(turn)))
        return 2.0 * angle * EARTH_KM / KM_PER_MS * self._detours[min(one, other), max(one, other)] + 1.0

    def estimated_ms(self, one: int, other: int) -> float:
        """The round trip that anybody would expect who knows both coordinates."""
        return round_trip_ms(self.coordinates[one], self.coordinates[other])

    def _grow(self, peers: int) -> None:
        for live in range(1, peers):
            for _ in range(12):
                self._ask(live, self.rng.randrange(live))
            for peer in self.rng.sample(range(live), max(live // 30, 1)):
                self._ask(peer, self.rng.randrange(live))
        for _ in range(10):
            for peer in range(peers):
                self._ask(peer, self.rng.randrange(peers))

    def _ask(self, peer: int, other: int) -> None:
        if peer == other:
            return
        near = self._near[peer]
        near.pop(other, None)
        near[other] = self.coordinates[other], self.rtt_ms(peer, other) * self.rng.uniform(1.0, 1.1)
        if len(near) > NEIGHBOURS:
            del near[next(iter(near))]
        if peer in self.liars:
            far = FARTHEST_MS / 10
            self.coordinates[peer] = Coordinate(tuple(self.rng.uniform(-far, far) for _ in range(3)), 0.0, 0.0)
        else:
            self.coordinates[peer] = settled(self.coordinates[peer], list(near.values()), self.rng)
