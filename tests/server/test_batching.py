"""Which work shares a pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.server.batching import Grant, Waiting, choose, serve_fairly, slice_of
from swarm.types import Span

A, B = Span(0, 4), Span(2, 4)
WORK = st.lists(st.builds(Waiting, st.sampled_from([A, B]), st.integers(1, 700)), min_size=1, max_size=12)


def granted(*positions: int, budget: int = 100, chunk: int = 25) -> list[int]:
    grants = {grant.index: grant.positions for grant in choose([Waiting(A, n) for n in positions], budget, chunk)}
    return [grants.get(i, 0) for i in range(len(positions))]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        pytest.param([1], [1], id="one alone"),
        pytest.param([500], [100], id="a long prompt alone has the whole pass"),
        pytest.param([500, 1], [25, 1], id="but not beside somebody's next token"),
        pytest.param([1, 500, 500], [1, 25, 0], id="beside a decode step prompts share one chunk"),
        pytest.param([500, 500], [25, 25], id="prompts go on beside each other"),
        pytest.param([500] * 5, [25, 25, 25, 25, 0], id="as long as there is room"),
        pytest.param([500, 500, 500, 500, 1], [25, 0, 0, 0, 1], id="decode steps go before other prompts"),
        pytest.param([16, 500, 16], [16, 25, 16], id="windows of guesses are decode steps"),
        pytest.param([1] * 120, [1] * 100 + [0] * 20, id="the budget is for all"),
        pytest.param([], [], id="nothing"),
    ],
)
def test_who_gets_how_much(positions: list[int], expected: list[int]) -> None:
    assert granted(*positions) == expected


def test_a_prompt_alone_leaves_room_for_those_who_will_be_back() -> None:
    assert choose([Waiting(A, 500)], 100, 25, decoding=True) == [Grant(0, 25)]


@pytest.mark.parametrize(
    ("per_position", "expected"),
    [
        pytest.param(0.0, 256, id="not measured"),
        pytest.param(0.002, 50, id="a laptop"),
        pytest.param(0.00002, 256, id="a fast card"),
        pytest.param(0.5, 16, id="never less than what the weights cost anyhow"),
    ],
)
def test_a_slice_is_what_fits_in_a_moment(per_position: float, expected: int) -> None:
    assert slice_of(0.1, per_position, 256) == expected


def test_clients_are_served_alike_whatever_they_ask() -> None:
    """One asks for a hundred at a time, one for ten; a third comes late and has saved up nothing."""
    served: dict[str, float] = {}
    total = dict.fromkeys("abc", 0)
    for turn in range(1000):
        served = serve_fairly(served, "ab" if turn < 500 else "abc")
        client = min("ab" if turn < 500 else "abc", key=lambda name: (served[name], name))
        amount = 100 if client == "a" else 10
        served[client] += amount
        total[client] += amount
        if turn == 499:
            assert abs(total["a"] - total["b"]) <= 110
            before = dict(total)
    gained = [total[name] - before[name] for name in "abc"]
    assert max(gained) - min(gained) <= 220


def test_leaving_for_a_moment_does_not_clear_the_account() -> None:
    served = serve_fairly({"a": 500.0, "b": 40.0}, "b")
    assert serve_fairly(served, "ab") == {"a": 500.0, "b": 40.0}
    assert serve_fairly({"a": 500.0, "b": 900.0}, "bc") == {"b": 900.0, "c": 900.0}


def test_other_blocks_wait_for_a_pass_of_their_own() -> None:
    waiting = [Waiting(A, 3), Waiting(B, 3), Waiting(A, 2)]
    assert choose(waiting, 100, 25) == [Grant(0, 3), Grant(2, 2)]
    assert choose(waiting[1:], 100, 25) == [Grant(0, 3)]


@given(WORK, st.integers(1, 600), st.integers(1, 300))
def test_a_pass_keeps_its_budget_and_feeds_the_oldest(waiting: list[Waiting], budget: int, chunk: int) -> None:
    grants = choose(waiting, budget, chunk)
    assert grants[0].index == 0
    assert [grant.index for grant in grants] == sorted({grant.index for grant in grants})
    assert sum(grant.positions for grant in grants) <= budget
    assert all(0 < grant.positions <= waiting[grant.index].positions for grant in grants)
    assert {waiting[grant.index].span for grant in grants} == {waiting[0].span}
    if sum(work.span == waiting[0].span for work in waiting) > 1:
        assert all(grant.positions <= chunk for grant in grants)


@given(WORK, st.integers(1, 600), st.integers(1, 300))
def test_everybody_is_done_after_as_many_passes_as_it_takes(waiting: list[Waiting], budget: int, chunk: int) -> None:
    """Those who had something go behind those who had nothing, as the engine does it: nobody starves."""
    queue = dict(enumerate(waiting))
    passes_without = dict.fromkeys(queue, 0)
    while queue:
        order = list(queue)
        grants = {order[grant.index]: grant.positions for grant in choose(list(queue.values()), budget, chunk)}
        for name in order:
            passes_without[name] = 0 if name in grants else passes_without[name] + 1
            assert passes_without[name] < len(waiting)
        for name, positions in grants.items():
            work = queue.pop(name)
            if work.positions > positions:
                queue[name] = Waiting(work.span, work.positions - positions)


@given(st.lists(st.tuples(st.integers(17, 2000), st.sampled_from([1.0, 2.0, 8.0])), min_size=2, max_size=20))
def test_prompts_share_a_pass_by_the_weights_of_their_clients(waiting: list[tuple[int, float]]) -> None:
    """Also where all fit into it: else who has given would get no more of it than others."""
    prompts = [Waiting(Span(0, 2), 5000, weight) for _, weight in waiting]
    grants = {grant.index: grant.positions for grant in choose(prompts, 10**6, 64)}
    whole = sum(weight for _, weight in waiting)
    assert set(grants) == set(range(len(prompts)))
    for index, (_, weight) in enumerate(waiting):
        assert abs(grants[index] - 64 * len(prompts) * weight / whole) <= 1
    # All together get what they got.
    assert 64 * len(prompts) - len(prompts) <= sum(grants.values()) <= 64 * len(prompts)
    same = [Waiting(Span(0, 2), positions) for positions, _ in waiting]
    assert all(grant.positions == min(same[grant.index].positions, 64) for grant in choose(same, 10**6, 64))
