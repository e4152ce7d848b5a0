"""Routes over peers in the cities of the world: how much longer they take than the best, and on whom they fall."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from swarm.client.routing import SPREAD, Conditions, find_route
from swarm.client.surroundings import explore
from swarm.contract import Contract
from swarm.coordinates import NOWHERE, Coordinate, settled
from swarm.server.nearby import chosen, followers
from swarm.types import MAX_NEAR, PeerId, ServerRecord, Span, digest
from tests.world import CITIES, World

BLOCKS = 16
WHOLE = Span(0, BLOCKS)
PEERS = 300
CLIENTS = 100


class Swarm:
    """A server in each peer's house, with one of `hops` spans, that has measured what servers measure."""

    def __init__(self, world: World, hops: int, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.layer = [self.rng.randrange(hops) for _ in range(PEERS)]
        bare = [self.record(peer, BLOCKS // hops) for peer in range(PEERS)]
        self.records = [replace(record, near=self.near(peer, record.span, bare)) for peer, record in enumerate(bare)]

    def record(self, peer: int, length: int) -> ServerRecord:
        span = Span(self.layer[peer] * length, self.layer[peer] * length + length)
        contract = Contract("model", span, tuple(block.to_bytes(8, "big") for block in span))
        at = self.world.coordinates[peer]
        return ServerRecord(str(peer), contract, decode_ms=0.001, free_tokens=1000, coordinate=at, expires=1.0)

    def near(self, peer: int, span: Span, records: Sequence[ServerRecord]) -> tuple[tuple[bytes, float], ...]:
        """After two rounds, as `Nearby` makes them."""
        able, measured = followers(span, records), dict[PeerId, float]()
        for _ in range(2):
            peers = chosen(able, measured, self.world.coordinates[peer], self.rng)
            measured |= {other: self.world.rtt_ms(peer, int(other)) for other in peers}
        nearest = sorted(measured.items(), key=lambda item: item[1])[:MAX_NEAR]
        return tuple((digest(other), rtt_ms) for other, rtt_ms in nearest)

    def best_ms(self, client: Client) -> float:
        """The shortest way there is, by dynamic programming over the layers."""
        layers = [np.flatnonzero(np.array(self.layer) == layer) for layer in range(max(self.layer) + 1)]
        cost = client.rtt[layers[0]] / 2
        for before, after in itertools.pairwise(layers):
            cost = (cost[:, None] + self.world.table[np.ix_(before, after)] / 2).min(axis=0)
        return float((cost + client.rtt[layers[-1]] / 2).min())

    def way_ms(self, client: Client, peers: Sequence[int]) -> float:
        """What a route takes in truth."""
        ends = client.rtt[peers[0]] + client.rtt[peers[-1]]
        links = sum(self.world.table[one, other] for one, other in itertools.pairwise(peers))
        return float(ends + links) / 2


class Client:
    """Somebody at home in a city: what he has measured, by asking as clients do."""

    def __init__(self, world: World, records: Sequence[ServerRecord], rng: random.Random) -> None:
        city, access = rng.choices(range(len(CITIES)), [people for *_, people in CITIES])[0], rng.uniform(1.0, 12.0)
        ways = [world.cities_ms(city, world.city[peer]) + access + world.access[peer] for peer in range(PEERS)]
        self.rtt = np.array(ways)
        self.rng = rng
        self.world = world
        self.near: dict[PeerId, tuple[Coordinate, float]] = {}
        self.coordinate = NOWHERE
        self.rtt_ms: dict[PeerId, float] = {}
        for peer in rng.sample(range(PEERS), 12):
            asyncio.run(self.measure(str(peer)))
        asyncio.run(explore(self, records, self.rtt_ms, self.rtt_ms.__setitem__, rng))  # type: ignore[arg-type]

    async def measure(self, peer_id: PeerId, addresses: Any = ()) -> float:
        """As `Locator.measure`."""
        rtt_ms = float(self.rtt[int(peer_id)])
        self.near[peer_id] = self.world.coordinates[int(peer_id)], rtt_ms
        self.coordinate = settled(self.coordinate, list(self.near.values())[-24:], self.rng)
        return rtt_ms


@pytest.fixture(scope="module")
def world() -> World:
    return World(peers=PEERS, seed=0)


@pytest.mark.parametrize("hops", [pytest.param(4, marks=pytest.mark.soak), 8, pytest.param(16, marks=pytest.mark.soak)])
def test_routes_are_nearly_as_short_as_they_can_be(world: World, hops: int) -> None:
    swarm = Swarm(world, hops, seed=hops)
    over = []
    for number in range(CLIENTS):
        client = Client(world, swarm.records, random.Random(number))
        conditions = Conditions(client.rtt_ms, here=client.coordinate)
        route = find_route(swarm.records, WHOLE, conditions)
        over.append(swarm.way_ms(client, [int(hop.peer_id) for hop in route.hops]) / swarm.best_ms(client))
    assert statistics.median(over) <= 1.1, over
    assert statistics.quantiles(over, n=10)[-1] <= 1.35


def test_clients_that_look_at_the_same_time_spread_over_equals() -> None:
    contract = [Contract("model", Span(first, first + 4), (bytes(8),) * 4) for first in (0, 4, 8, 12)]
    records = [
        ServerRecord(f"{layer}-{place}", contract[layer], decode_ms=1.0 + place / 1000, free_tokens=1000, expires=1.0)
        for layer in range(4)
        for place in range(10)
    ]
    load = Counter[PeerId]()
    for number in range(200):
        load.update(hop.peer_id for hop in find_route(records, WHOLE, Conditions(), rng=random.Random(number)).hops)
    assert len(load) == len(records)
    assert max(load.values()) <= 1.5 * 200 / 10


def test_spreading_costs_what_it_may(world: World) -> None:
    swarm = Swarm(world, 8, seed=1)
    for number in range(20):
        client = Client(world, swarm.records, random.Random(number))
        conditions = Conditions(client.rtt_ms, here=client.coordinate)
        best = find_route(swarm.records, WHOLE, conditions)
        other = find_route(swarm.records, WHOLE, conditions, rng=random.Random(number))
        assert other.cost_ms <= best.cost_ms * (1.0 + 2 * SPREAD)
