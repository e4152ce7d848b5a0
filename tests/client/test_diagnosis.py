"""Who holds up a step: one situation a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.diagnosis import Fault, Moved, Report, find_suspect
from swarm.config import ClientConfig

SILENCE = 3.0
CONFIG = ClientConfig(stall=5.0, engine_stall=30.0, slowest_rate=1000.0)
NOW = 100.0
DONE = Moved(10, 10, 10)


def report(moved: Moved = DONE, quiet: float = 0.0, silent: float | None = None, heard: bool = True) -> Report:
    return Report(None if silent is None else NOW - silent, NOW - quiet, {0: moved}, heard)


def suspect(*reports: Report, frame_bytes: int = 0) -> tuple[Fault, int] | None:
    found = find_suspect(reports, {0: 10}, NOW, CONFIG, SILENCE, frame_bytes)
    return None if found is None else (found.fault, found.index)


def is_peer(index: int) -> tuple[Fault, int]:
    return Fault.PEER, index


def is_link(index: int) -> tuple[Fault, int]:
    return Fault.LINK, index


UNFED = Moved(9, 9, 9)
UNCOMPUTED = Moved(10, 9, 9)
UNSENT = Moved(10, 10, 9)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        pytest.param([report(silent=2.9), report()], None, id="an answer may take a while"),
        pytest.param([report(silent=3.1), report()], is_peer(0), id="silence is death"),
        pytest.param([report(), report(silent=3.1)], is_peer(1), id="of whoever is silent"),
        pytest.param([report(UNFED, quiet=99.0), report(silent=9.0)], is_peer(1), id="and says more than slowness"),
        pytest.param([report(), report(heard=False, quiet=99.0)], None, id="nobody is judged unheard"),
        pytest.param([report(UNFED, quiet=4.9)], None, id="the client may still be sending"),
        pytest.param([report(UNFED, quiet=5.1)], is_link(0), id="the link from the client is broken"),
        pytest.param([report(quiet=99.0), report(UNFED, quiet=5.1)], is_link(1), id="a link between hops is broken"),
        pytest.param([report(UNSENT, quiet=4.9), report(UNFED)], None, id="a send may take a while"),
        pytest.param([report(UNSENT, quiet=5.1), report(UNFED, quiet=9.0)], is_link(1), id="a hop cannot send on"),
        pytest.param([report(UNCOMPUTED, quiet=29.0)], None, id="computing takes as long as it takes"),
        pytest.param([report(UNCOMPUTED, quiet=30.1)], is_peer(0), id="unless the engine stands still"),
        pytest.param(
            [report(UNCOMPUTED, quiet=1.0), report(UNFED, quiet=99.0)], None, id="who waits for the slow is innocent"
        ),
        pytest.param([report(quiet=4.0), report(quiet=9.0)], None, id="results may be on their way"),
        pytest.param([report(quiet=5.1), report(quiet=9.0)], is_link(2), id="the results are lost"),
        pytest.param([report(UNSENT, quiet=5.1)], is_link(1), id="the last hop cannot send to the client"),
        pytest.param([], None, id="there is nobody"),
    ],
)
def test_who_is_suspected(reports: list[Report], expected: tuple[Fault, int] | None) -> None:
    assert suspect(*reports) == expected


def test_a_large_frame_over_a_slow_link_is_given_its_time() -> None:
    assert suspect(report(UNFED, quiet=14.9), frame_bytes=10_000) is None
    assert suspect(report(UNFED, quiet=15.1), frame_bytes=10_000) == is_link(0)


def test_what_was_said_before_the_last_outputs_is_old() -> None:
    """A hop is probed when a step is late; when the next one is, what it said then says nothing."""
    told = [report(UNFED, quiet=60.0)]
    assert find_suspect(told, {0: 10}, NOW, CONFIG, SILENCE, since=NOW - 5.1) is not None
    assert find_suspect(told, {0: 10}, NOW, CONFIG, SILENCE, since=NOW - 4.9) is None
    assert find_suspect([report(quiet=60.0)], {0: 10}, NOW, CONFIG, SILENCE, since=NOW - 4.9) is None


def test_any_sequence_that_is_behind_counts_and_one_never_seen_is_behind() -> None:
    both = Report(None, NOW - 6.0, {0: DONE, 1: UNFED})
    assert find_suspect([both], {0: 10, 1: 10}, NOW, CONFIG, SILENCE) is not None
    alone = Report(None, NOW - 6.0, {0: DONE})
    found = find_suspect([alone], {0: 10, 1: 1}, NOW, CONFIG, SILENCE)
    assert found is not None
    assert (found.fault, found.index) == is_link(0)


MOVED = st.integers(0, 12).flatmap(
    lambda r: st.integers(0, r).flatmap(lambda c: st.integers(0, c).map(lambda f: Moved(r, c, f)))
)
REPORTS = st.builds(report, MOVED, st.floats(0.0, 60.0), st.one_of(st.none(), st.floats(0.0, 10.0)), st.booleans())


@given(st.lists(REPORTS, min_size=1, max_size=4))
def test_whoever_is_suspected_gave_reason(reports: list[Report]) -> None:
    found = suspect(*reports)
    if found is None:
        return
    fault, index = found
    assert 0 <= index <= len(reports)
    if fault is Fault.PEER:
        accused = reports[index]
        silent = accused.unanswered_since is not None and NOW - accused.unanswered_since > SILENCE
        assert silent or (accused.moved[0].computed < 10 and NOW - accused.changed > CONFIG.engine_stall)
    else:
        ends = [r for r in (reports[index - 1] if index else None, *reports[index : index + 1]) if r is not None]
        assert any(NOW - end.changed > CONFIG.stall for end in ends)
        assert all(r.moved[0].forwarded >= 10 for r in reports[: max(index - 1, 0)])
