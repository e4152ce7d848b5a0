"""Whom a client keeps away from, and for how long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.client.trust import Avoidance, Process


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


def test_who_was_not_there_and_is_started_again_is_tried_at_once() -> None:
    avoidance, before, after = Avoidance[str](10.0, 60.0), Process(1, 100.0), Process(2, 130.0)
    avoidance.add("peer", 0.0, process=before)
    avoidance.started("peer", before)
    avoidance.started("peer", Process(1, 130.0))
    avoidance.started("peer", Process(7, 90.0))
    assert "peer" in avoidance.active(1.0), "the same process, or a record of an older one"
    avoidance.started("peer", after)
    assert "peer" not in avoidance.active(1.0)
    avoidance.add("peer", 2.0, process=after)
    assert avoidance.active(2.0)["peer"].until == 22.0, "it failed before"


def test_who_was_not_there_is_spared_for_the_first_time_alone_where_there_is_nobody_else() -> None:
    avoidance, now = Avoidance[str](10.0, 300.0), 0.0
    for _ in range(6):
        avoidance.add("absent", now, process=Process(1, 100.0))
        avoidance.add("wrong", now)
        avoidance.add("busy", now, 200.0, process=Process(1, 100.0))
        now += 5.0
    assert avoidance.spared(now).keys() == {"absent", "wrong", "busy"}
    assert avoidance.spared(now + 10.0).keys() == {"wrong", "busy"}
    assert avoidance.active(now + 200.0).keys() == {"absent", "wrong"}


def test_who_did_wrong_is_avoided_also_when_it_is_started_again() -> None:
    avoidance = Avoidance[str](10.0, 60.0)
    avoidance.add("peer", 0.0, 30.0)
    avoidance.add("peer", 1.0, 50.0, process=Process(1, 100.0))
    avoidance.started("peer", Process(2, 130.0))
    assert "peer" in avoidance.active(29.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 100.0), st.one_of(st.none(), st.floats(0, 90)))))
def test_nothing_is_avoided_for_ever(failures: list[tuple[str, float, float | None]]) -> None:
    avoidance = Avoidance[str](10.0, 300.0)
    for thing, now, seconds in failures:
        avoidance.add(thing, now, seconds)
    assert avoidance.active(100.0 + 300.1) == {}
