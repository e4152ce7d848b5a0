"""Where each hop goes on: carried out on abstract chains, from whatever they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.resume import Holding, HopState, ResumePlan, plan_resume


class AbstractHop:
    """One hop and one sequence: which positions it holds, may send again, and has to compute."""

    def __init__(self, holding: Holding) -> None:
        self.held = holding.length
        self.history = holding.history
        self.reach = holding.reach
        self.computed: list[int] = []

    def cut(self, position: int) -> None:
        assert position < self.held, "nothing is cut that is not there"
        assert position == 0 or position >= self.reach, "its states do not go back so far"
        self.held = position
        self.history = min(self.history, position)

    def pass_on(self, inputs: Sequence[int], replay: int | None) -> list[int]:
        """The positions that go to the next hop when these come in."""
        outputs: list[int] = []
        if replay is not None:
            assert self.history <= replay < self.held, "the history does not reach back to there"
            outputs += range(replay, self.held)
        for position in inputs:
            assert position <= self.held, "a gap"
            if position == self.held:
                self.computed.append(position)
                outputs.append(position)
                self.held += 1
        return outputs


def carry_out(
    states: Sequence[HopState], plan: ResumePlan, sequence: int, issued: int
) -> tuple[list[AbstractHop], list[int]]:
    """The hops after the plan for one sequence, and the positions that reach the client."""
    hops = [AbstractHop(state.held.get(sequence, Holding())) for state in states]
    for hop, todo in zip(hops, plan.hops, strict=True):
        if sequence in todo.cuts:
            hop.cut(todo.cuts[sequence])
    positions = list(range(plan.client_from[sequence], issued))
    for hop, todo in zip(hops, plan.hops, strict=True):
        positions = hop.pass_on(positions, todo.replays.get(sequence))
    return hops, positions


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[HopState], dict[int, int], dict[int, int]]:
    """Hops that hold anything, what is wanted, and what was issued."""
    issued = draw(st.dictionaries(st.integers(0, 3), st.integers(1, 9), min_size=1))
    wanted = {sequence: draw(st.integers(0, length)) for sequence, length in issued.items()}
    states = []
    for _ in range(draw(st.integers(1, 5))):
        held: dict[int, Holding] = {}
        for sequence, most in issued.items():
            if draw(st.booleans()):
                length = draw(st.integers(0, most))
                held[sequence] = Holding(length, draw(st.integers(0, length)), draw(st.integers(0, length)))
        states.append(HopState(held))
    return states, wanted, issued


@given(situations())
def test_every_hop_ends_with_everything_and_the_client_with_what_it_wants(
    situation: tuple[list[HopState], dict[int, int], dict[int, int]],
) -> None:
    states, wanted, issued = situation
    plan = plan_resume(states, wanted)
    for sequence, length in issued.items():
        hops, outputs = carry_out(states, plan, sequence, length)
        assert all(hop.held == length for hop in hops)
        first = outputs[0] if outputs else length
        assert outputs == list(range(first, length)), "in order, without gap or double"
        assert first <= wanted[sequence]


@given(situations())
def test_nothing_is_computed_that_history_could_give(
    situation: tuple[list[HopState], dict[int, int], dict[int, int]],
) -> None:
    states, wanted, issued = situation
    plan = plan_resume(states, wanted)
    for sequence, length in issued.items():
        hops, _ = carry_out(states, plan, sequence, length)
        needed = wanted[sequence]
        for state, hop in zip(reversed(states), reversed(hops), strict=True):
            holding = state.held.get(sequence, Holding())
            if holding.history <= needed or holding.length <= needed:
                assert hop.computed == list(range(holding.length, length)), "it keeps all that it has"
                needed = holding.length
            elif holding.reach <= needed:
                assert hop.computed == list(range(needed, length)), "it goes back to where it is needed, not further"
            else:
                assert hop.computed == list(range(length))
                needed = 0
        assert plan.client_from[sequence] == needed, "the client sends what the first hop lacks, and no more"


FULL = Holding(10, 0)
NO_HISTORY = Holding(10, 10)


@pytest.mark.parametrize(
    ("held", "wanted", "cuts", "replays", "client_from"),
    [
        pytest.param([FULL, FULL, FULL], 10, [None] * 3, [None] * 3, 10, id="all have all: nothing moves"),
        pytest.param([FULL, Holding(), FULL], 10, [None] * 3, [0, None, None], 10, id="only the new hop computes"),
        pytest.param([NO_HISTORY, Holding(), FULL], 10, [0, None, None], [None] * 3, 0, id="the client replays"),
        pytest.param([FULL, Holding(6, 0), FULL], 10, [None] * 3, [6, None, None], 10, id="from where it ends"),
        pytest.param([FULL, FULL, FULL], 9, [None] * 3, [None, None, 9], 10, id="a lost result is sent again"),
        pytest.param([FULL, FULL, NO_HISTORY], 9, [None, None, 9], [None, 9, None], 10, id="or computed again"),
        pytest.param([NO_HISTORY] * 3, 9, [9, 9, 9], [None] * 3, 9, id="by all, if nobody remembers"),
        pytest.param([Holding()] * 3, 0, [None] * 3, [None] * 3, 0, id="a beginning"),
        pytest.param([Holding()] * 3, 10, [None] * 3, [None] * 3, 0, id="all died between two steps"),
        pytest.param([FULL, Holding(4, 2), FULL], 3, [None] * 3, [4, None, 3], 10, id="the last one remembers enough"),
    ],
)
def test_the_plan_for_one_sequence(
    held: list[Holding], wanted: int, cuts: list[int | None], replays: list[int | None], client_from: int
) -> None:
    plan = plan_resume([HopState({7: holding}) for holding in held], {7: wanted})

    def only(todo: Mapping[int, int]) -> int | None:
        assert set(todo) <= {7}
        return todo.get(7)

    assert [only(hop.cuts) for hop in plan.hops] == cuts
    assert [only(hop.replays) for hop in plan.hops] == replays
    assert plan.client_from == {7: client_from}


def test_blocks_that_cannot_roll_back_are_cut_to_nothing_and_pull_everything_before_them() -> None:
    states = [HopState({0: NO_HISTORY}), HopState({0: Holding(10, 10, reach=9)}), HopState({0: FULL})]
    plan = plan_resume(states, {0: 10})
    assert [hop.cuts for hop in plan.hops] == [{}, {}, {}]
    plan = plan_resume([states[0], states[1], HopState({0: Holding(8, 8)})], {0: 10})
    assert [hop.cuts for hop in plan.hops] == [{0: 0}, {0: 0}, {}]
    assert plan.client_from == {0: 0}


def test_what_a_hop_holds_of_sequences_that_ended_is_no_part_of_the_plan() -> None:
    plan = plan_resume([HopState({0: FULL, 1: FULL})], {1: 3})
    assert plan.hops[0].replays == {1: 3}
    assert plan.client_from == {1: 10}


def test_blocks_that_can_go_back_some_positions_are_cut_to_there_and_no_further() -> None:
    states = [HopState({0: FULL}), HopState({0: Holding(10, 10, reach=8)}), HopState({0: Holding(8, 8)})]
    plan = plan_resume(states, {0: 10})
    assert [hop.cuts for hop in plan.hops] == [{}, {0: 8}, {}]
    assert [hop.replays for hop in plan.hops] == [{0: 8}, {}, {}]
    assert plan.client_from == {0: 10}
