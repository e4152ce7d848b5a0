"""Coordinates come to say how far apart peers are, whoever is asked, and survive what liars say."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.coordinates import FARTHEST_MS, NOWHERE, Coordinate, moved, round_trip_ms, settled
from tests.world import World

numbers = st.floats(-FARTHEST_MS, FARTHEST_MS)
coordinates = st.builds(
    Coordinate, st.tuples(numbers, numbers, numbers), st.floats(0.0, FARTHEST_MS), st.floats(0.0, FARTHEST_MS)
)


@given(coordinates, coordinates, st.floats(allow_nan=False), st.integers())
def test_whatever_is_said_and_measured_it_stays_a_coordinate(
    mine: Coordinate, theirs: Coordinate, measured: float, seed: int
) -> None:
    after = moved(mine, theirs, measured, random.Random(seed))
    assert math.isfinite(round_trip_ms(after, theirs)) and 0.0 < after.error <= 1.0
    if 1.0 <= measured <= 1000.0 and theirs.error < FARTHEST_MS:
        step = math.dist(after.point, mine.point) + abs(after.height - mine.height)
        off = abs(measured - round_trip_ms(mine, theirs))
        assert step <= 0.5 * off + 1e-6 or math.dist(mine.point, theirs.point) < 1e-3, "no measurement moves it far"


@pytest.mark.parametrize("numbers", [(math.nan, 0, 0), (math.inf, 0, 0), (1e5, 0, 0), (0, 0), ()])
def test_what_is_no_coordinate_is_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="three numbers"):
        Coordinate(numbers)
    with pytest.raises(ValueError, match="not negative"):
        Coordinate(height=-1.0)


def test_three_hundred_peers_in_thirty_cities_learn_how_far_apart_they_are() -> None:
    world = World(peers=300, seed=0)
    pairs = [(one, other) for one in range(0, 300, 3) for other in range(0, 300, 7) if one != other]
    off = [abs(world.estimated_ms(one, other) / world.rtt_ms(one, other) - 1.0) for one, other in pairs]
    assert statistics.median(off) < 0.2
    assert statistics.quantiles(off, n=10)[-1] < 0.7


def test_who_comes_late_needs_a_dozen_measurements() -> None:
    world = World(peers=120, seed=1)
    off = []
    for late in range(100, 120):
        here = NOWHERE
        asked = world.rng.sample(range(100), 12)
        near = [(world.coordinates[other], world.rtt_ms(late, other)) for other in asked]
        here = settled(here, near, world.rng)
        off += [abs(round_trip_ms(here, world.coordinates[i]) / world.rtt_ms(late, i) - 1.0) for i in range(100)]
    assert statistics.median(off) < 0.3


def test_a_liar_in_ten_does_little_harm() -> None:
    honest, lied_to = World(peers=100, seed=2), World(peers=100, seed=2, liars=0.1)
    pairs = [(one, other) for one in range(50) for other in range(50, 90) if {one, other}.isdisjoint(lied_to.liars)]
    off = [
        statistics.median(abs(world.estimated_ms(a, b) / world.rtt_ms(a, b) - 1.0) for a, b in pairs)
        for world in (honest, lied_to)
    ]
    assert off[1] < 0.5, off
