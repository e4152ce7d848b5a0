"""Whom a client keeps away from, and for how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.client.trust import Avoidance


def test_each_failure_doubles_the_time_until_it_is_long_enough() -> None:
    avoidance, now, waits = Avoidance[str](10.0, 60.0), 0.0, []
    for _ in range(5):
        avoidance.add("peer", now)
        began = now
        while "peer" in avoidance.active(now):
            now += 1.0
        waits.append(now - began)
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0]


def test_success_makes_the_next_failure_a_first_one() -> None:
    avoidance = Avoidance[str](10.0, 60.0)
    avoidance.add("peer", 0.0)
    avoidance.add("peer", 0.0)
    avoidance.forgive("peer")
    assert avoidance.active(0.0) == {}
    avoidance.add("peer", 0.0)
    assert avoidance.active(9.9).keys() == {"peer"}
    assert avoidance.active(10.0) == {}


def test_a_longer_time_is_not_shortened_by_a_shorter_one() -> None:
    avoidance = Avoidance[str](10.0, 60.0)
    avoidance.add("peer", 0.0, 50.0)
    avoidance.add("peer", 0.0, 1.0)
    assert avoidance.active(49.0).keys() == {"peer"}


def test_forgiving_a_stranger_changes_nothing() -> None:
    avoidance = Avoidance[str](1.0, 2.0)
    avoidance.add("peer", 0.0)
    avoidance.forgive("nobody")
    assert avoidance.active(0.5).keys() == {"peer"}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 100.0), st.one_of(st.none(), st.floats(0, 90)))))
def test_nothing_is_avoided_for_ever(failures: list[tuple[str, float, float | None]]) -> None:
    avoidance = Avoidance[str](10.0, 300.0)
    for thing, now, seconds in failures:
        avoidance.add(thing, now, seconds)
    assert avoidance.active(100.0 + 300.1) == {}
