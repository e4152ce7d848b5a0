"""What a session is billed: never more open than a window, or four steps, whatever comes when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.accounting.tab import Tab
from swarm.accounting.work import QUARTERS, WINDOW, weighed, work_of

PARAMETERS = 1000
COUNTS = st.lists(st.integers(1, 600), min_size=1, max_size=3)


def test_a_token_counts_whole_and_a_position_of_a_prompt_a_quarter() -> None:
    assert work_of([1], PARAMETERS) == 1000
    assert work_of([1, 1, 16], PARAMETERS) == 18_000
    assert work_of([512], PARAMETERS) == 128_000
    assert work_of([], PARAMETERS) == 0


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_more_positions_never_count_for_less(count: int, more: int) -> None:
    assert weighed(count) <= weighed(count + more) <= QUARTERS * (count + more)


@given(st.lists(st.tuples(COUNTS, st.booleans())))
def test_at_most_a_window_is_open(steps: list[tuple[list[int], bool]]) -> None:
    """The session stops where the tab is full; whoever signs for each claim is never stopped."""
    prompt, lazy = Tab(PARAMETERS), Tab(PARAMETERS)
    for counts, signs in steps:
        assert not prompt.is_full
        prompt.add(counts)
        if prompt.is_due:
            total, signed = prompt.claim()
            prompt.sign(total - signed)
        if lazy.is_full:
            continue
        lazy.add(counts)
        assert lazy.computed - lazy.signed <= lazy.window + work_of(counts, PARAMETERS)
        if signs:
            total, signed = lazy.claim()
            lazy.sign(total - signed)
            assert not lazy.is_open and lazy.signed == lazy.computed
    assert prompt.window >= WINDOW * PARAMETERS // QUARTERS


def test_who_signs_for_more_has_nothing_of_it_and_who_signs_for_less_is_stopped() -> None:
    tab = Tab(PARAMETERS)
    for _ in range(64):
        tab.add([1])
    tab.claim()
    tab.claim()
    assert tab.awaited == 1
    tab.sign(1)
    tab.add([1])
    assert tab.is_full
    tab.sign(10**9)
    assert tab.signed == tab.computed and not tab.is_full
