"""How far to guess ahead: against the plain sum, and against machines with known times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.speculation.pacer import MOST, PRIOR, Acceptance, Costs, WindowTime, accepted, best_depth


@given(st.floats(0.0, 1.0), st.integers(0, 60))
def test_accepted_is_the_sum_of_the_powers(rate: float, count: int) -> None:
    assert accepted(rate, count) == pytest.approx(sum(rate**i for i in range(count + 1)))


@given(st.floats(0.0, 1.0), st.floats(1e-3, 1.0), st.floats(0.0, 0.5))
def test_best_depth_is_that_of_trying_all(rate: float, base: float, per_token: float) -> None:
    speeds = [accepted(rate, n) / (base + n * per_token) for n in range(MOST + 1)]
    assert speeds[best_depth(rate, Costs(base, per_token))] == pytest.approx(max(speeds))


@pytest.mark.parametrize(
    ("rate", "base", "per_token", "least", "most"),
    [
        pytest.param(0.0, 0.3, 0.001, 0, 0, id="never right: nothing is sent"),
        pytest.param(0.05, 0.1, 0.02, 0, 0, id="rarely right and dear: not worth it"),
        pytest.param(0.3, 0.3, 0.001, 2, 6, id="sometimes right over a slow link: a few"),
        pytest.param(0.98, 0.3, 0.001, 40, 48, id="almost always right over a slow link: many"),
        pytest.param(0.9, 0.03, 0.03, 0, 0, id="a row costs as much as a pass: plain decoding"),
    ],
)
def test_depth_of_named_situations(rate: float, base: float, per_token: float, least: int, most: int) -> None:
    assert least <= best_depth(rate, Costs(base, per_token)) <= most


@given(st.floats(0.01, 1.0), st.floats(0.0, 0.2), st.lists(st.integers(1, 20), min_size=10, max_size=30))
def test_window_time_finds_the_line(base: float, share: float, rows: list[int]) -> None:
    time = WindowTime()
    for count in [1, 20, *rows, 1, 20, 1, 20, 1, 20]:
        time.note(count, base * (1 + (count - 1) * share))
    assert time.per_row == pytest.approx(base * share, abs=0.02 * base)
    assert time.expect(10) == pytest.approx(base * (1 + 9 * share), rel=0.1)


def test_one_slow_window_changes_little() -> None:
    time = WindowTime()
    for _ in range(20):
        time.note(1, 0.1)
    time.note(1, 30.0)
    assert time.expect(1) < 0.13


def test_nothing_measured_is_nothing_claimed() -> None:
    assert (WindowTime().base, WindowTime().per_row) == (0.0, 0.0)


def test_acceptance_follows_what_happens_and_forgets_what_is_passed_over() -> None:
    acceptance = Acceptance()
    assert acceptance.rate("a") == PRIOR
    for _ in range(50):
        acceptance.note("a", right=False)
        acceptance.note("b", right=True)
    assert acceptance.rate("a") < 0.1
    assert acceptance.rate("b") > 0.9
    for _ in range(300):
        acceptance.pass_over("a")
    assert acceptance.rate("a") == pytest.approx(PRIOR, abs=0.05)
