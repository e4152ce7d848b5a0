"""Credit: what was really done for me, by somebody or by those who owe him, and never more, however many share it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.accounting.flow import credit, debts, owed
from swarm.accounting.weight import ANONYMOUS, HIGHEST, UNIT, weight

ME, K, C, D = b"me", b"k", b"c", b"d"
NAMES = [ME, K, C, D, b"e", b"f"]
FLOWS = st.dictionaries(st.tuples(*[st.sampled_from(NAMES)] * 2).filter(lambda p: p[0] != p[1]), st.integers(0, 1000))


def credit_of(flows: dict[tuple[bytes, bytes], int], account: bytes) -> int:
    return credit(flows, debts(ME, flows, NAMES), account)


def test_direct_balance_and_one_friend_between() -> None:
    flows = {(K, ME): 100, (C, K): 60, (D, ME): 10}
    assert (credit_of(flows, K), credit_of(flows, C), credit_of(flows, D)) == (100, 60, 10)
    # Two are too many between: that K owes C says nothing of who is owed by C.
    assert credit_of({**flows, (D, C): 1000}, D) == 10


def test_what_was_given_back_is_no_credit() -> None:
    assert credit_of({(C, ME): 50, (ME, C): 50}, C) == 0
    assert credit_of({(C, ME): 50, (ME, C): 80}, C) == 0
    assert owed({(C, ME): 50, (ME, C): 20}, ME, C) == 30


def test_a_ring_that_signs_for_itself_has_nothing_here() -> None:
    ring = {(one, two): 10**15 for one in (C, D, K) for two in (C, D, K) if one != two}
    assert all(credit_of(ring, account) == 0 for account in (C, D, K))
    # With one of them that did something, all of them together have that.
    flows = {**ring, (K, C): 0, (K, D): 0, (K, ME): 100}
    assert credit_of(flows, C) == 100
    flows[ME, C] = 70
    assert (credit_of(flows, C), credit_of(flows, D), credit_of(flows, K)) == (30, 30, 30)


@given(FLOWS, st.lists(st.tuples(st.sampled_from(NAMES[1:]), st.integers(1, 300)), max_size=40))
def test_all_that_is_had_on_credit_is_at_most_what_was_done_for_me(
    flows: dict[tuple[bytes, bytes], int], wishes: list[tuple[bytes, int]]
) -> None:
    done = sum(owed(flows, ME, other) for other in NAMES[1:])
    had = 0
    for account, work in wishes:
        on_credit = min(work, credit_of(flows, account))
        flows[ME, account] = flows.get((ME, account), 0) + on_credit
        had += on_credit
    assert had <= done


@given(FLOWS, st.sampled_from(NAMES[1:]), st.integers(0, 500))
def test_to_do_more_for_me_is_never_worth_less(flows: dict[tuple[bytes, bytes], int], who: bytes, more: int) -> None:
    before = credit_of(flows, who)
    assert credit_of({**flows, (who, ME): flows.get((who, ME), 0) + more}, who) >= before


@given(FLOWS, st.sampled_from(NAMES[1:]), st.sampled_from(NAMES[1:]), st.integers(0, 1000))
def test_what_others_say_of_each_other_never_exceeds_what_i_owe(
    flows: dict[tuple[bytes, bytes], int], giver: bytes, taker: bytes, lie: int
) -> None:
    if giver != taker:
        flows[giver, taker] = lie
    assert credit_of(flows, giver) <= sum(owed(flows, ME, other) for other in NAMES[1:])


@pytest.mark.parametrize(
    ("amount", "share"), [(-5, 1.0), (0, 1.0), (UNIT, 2.0), (3 * UNIT, 3.0), (127 * UNIT, 8.0), (10**30, 8.0)]
)
def test_each_doubling_is_one_more(amount: int, share: float) -> None:
    assert weight(amount) == share
    assert ANONYMOUS <= weight(amount) <= HIGHEST
