"""Accounts of two sides: whatever is lost on the way between them, and whatever one of them claims."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.accounting.account import Account, account_of, checked
from swarm.accounting.book import Book
from swarm.accounting.chain import End, Pair, drafted
from swarm.accounting.entries import check_entry, sign_entry
from swarm.accounting.stream import of_friends
from swarm.accounting.weight import UNIT
from swarm.errors import MalformedFrame
from swarm.testing.clock import run
from swarm.wire import swarm_pb2 as pb
from tests.accounting.test_chain import BOB, CAROL, ME, SESSION

LOST_TAKEN, LOST_ANSWER, WELL = "the receipt is lost", "the answer is lost", "all comes"
WINDOWS = st.lists(st.tuples(st.sampled_from([LOST_TAKEN, LOST_ANSWER, WELL]), st.integers(1, 100), st.booleans()))


def accounts() -> tuple[Account, Account]:
    return Account(BOB, Book(), now=lambda: 5.0), Account(CAROL, Book(), now=lambda: 5.0)


async def window(taker: Account, giver: Account, work: int, what: str = WELL) -> None:
    """One window, of which what is sent may be lost."""
    taken = check_entry(await taker.take(giver.key, work, SESSION))
    if what == LOST_TAKEN:
        return
    given_ = check_entry(await giver.answer(taken))
    if what == WELL:
        await taker.answered(taken, given_)


@given(WINDOWS)
@settings(max_examples=30)
def test_both_books_agree_but_for_the_last_window(windows: list[tuple[str, int, bool]]) -> None:
    """Whatever is lost, the next receipt that comes makes up for it, in both directions."""

    async def go() -> None:
        bob, carol = accounts()
        truth, last = {True: 0, False: 0}, {True: 0, False: 0}
        for what, work, turned in windows:
            taker, giver = (carol, bob) if turned else (bob, carol)
            await window(taker, giver, work, what)
            truth[turned] += work
            last[turned] = last[turned] + work if what == LOST_TAKEN else 0
        for turned, taker, giver in ((False, bob, carol), (True, carol, bob)):
            assert taker.book.pair(taker.key, giver.key).taken == truth[turned]
            assert giver.book.pair(giver.key, taker.key).given == truth[turned] - last[turned]
        for one in (bob, carol):
            assert one.book.end(one.key).given == sum(pair.given for _, pair, _ in one.book.others(one.key))
            assert not one.book.proofs()

    run(go())


def test_receipts_of_two_sessions_may_overtake_each_other() -> None:
    async def go() -> None:
        bob, carol = accounts()
        first, second = [await bob.take(carol.key, work, SESSION) for work in (5, 7)]
        answers = [await carol.answer(second), await carol.answer(first)]
        assert [answer.work for answer in answers] == [12, 0]
        for taken, answer in ((second, answers[0]), (first, answers[1])):
            await bob.answered(taken, answer)
        assert carol.book.pair(carol.key, bob.key).given == bob.book.pair(bob.key, carol.key).taken == 12

    run(go())


def test_nobody_is_credited_by_his_own_word() -> None:
    async def go() -> None:
        bob, carol = accounts()
        boast = sign_entry(BOB, drafted(End(0, b"", 10**9, 0), Pair(10**9, 0), carol.key, 5, SESSION))
        with pytest.raises(MalformedFrame, match="has not given so much"):
            await carol.answer(check_entry(boast))
        assert await carol.weight_of(bob.key) == 1.0 and carol.statistics().refused == 1
        taken = await bob.take(carol.key, 5, SESSION)
        forged = sign_entry(
            CAROL, drafted(End(0, b"", 10**9, 0), Pair(10**9, 0), bob.key, 5, SESSION, answers=b"x" * 32)
        )
        with pytest.raises(MalformedFrame, match="something else"):
            await bob.answered(taken, check_entry(forged))

    run(go())


def test_who_signs_two_links_with_one_number_is_worth_nothing_to_whoever_sees_both() -> None:
    async def go() -> None:
        bob, carol = accounts()
        await window(carol, bob, 200 * UNIT)
        assert await carol.weight_of(bob.key) > 7.0
        # Bob begins anew, with a number that he has used.
        me = Account(ME, Book(), now=lambda: 5.0)
        again = check_entry(await Account(BOB, Book(), now=lambda: 5.0).take(carol.key, 6, SESSION))
        with pytest.raises(MalformedFrame, match="contradicts"):
            await carol.answer(again)
        assert await carol.weight_of(bob.key) == 1.0
        # Whoever is shown the proof knows it, too, without believing Carol: if he has to do with Bob at all.
        shown = [each for proof in carol.book.proofs() for each in proof]
        await me.convinced(shown)
        assert not me.book.cheats(bob.key)
        await window(bob, me, 1)
        await me.convinced([each for proof in carol.book.proofs() for each in proof])
        assert me.book.cheats(bob.key) and not me.book.cheats(carol.key)
        with pytest.raises(MalformedFrame):
            await me.convinced([b"one"])

    run(go())


def test_a_friend_of_whom_i_owe_is_a_friend() -> None:
    async def go() -> None:
        bob, carol = accounts()
        me = Account(ME, Book(), now=lambda: 5.0)
        await window(me, bob, 100 * UNIT)
        await window(bob, carol, 3 * UNIT)
        assert await me.creditors(5) == [bob.key]
        await me.learn([*_entries(bob, carol)])
        assert me.credit_of(carol.key) == 3 * UNIT and await me.weight_of(carol.key) == 3.0
        assert await me.weight_of(me.key) == 8.0

    run(go())


def _entries(taker: Account, giver: Account) -> list[pb.Entry]:
    last = taker.book.last(taker.key, giver.key)
    assert last is not None
    return checked([last])


def test_an_account_is_kept_in_a_folder_and_a_broken_one_is_no_account(tmp_path: Path) -> None:
    one = Account.open(tmp_path / "state")
    asyncio.run(one.take(BOB.key, 5, SESSION))
    one.close()
    two = account_of(str(tmp_path / "state"))
    assert two is not None and two.key == one.key and two.statistics().taken == 5
    two.close()
    (tmp_path / "state" / "receipts.sqlite").write_bytes(b"broken" * 1000)
    assert account_of(str(tmp_path / "state")) is None and account_of(None) is None


def test_a_stranger_cannot_fill_the_book_with_accounts_that_he_has_made_up() -> None:
    async def go() -> None:
        bob, carol = accounts()
        me = Account(ME, Book(), now=lambda: 5.0)
        await window(bob, carol, 5)
        await window(carol, bob, 3)
        links = checked([*bob.book.links(bob.key, 1, 10), *carol.book.links(carol.key, 1, 10)])
        # Of what Carol shows, only what Bob has signed, whom I owe, and what goes with it.
        kept = of_friends(links, carol.key, [bob.key])
        assert [(link.account, link.other, link.gives) for link in kept] == [
            (bob.key, carol.key, False), (carol.key, bob.key, False),
        ]  # fmt: skip
        assert of_friends(links, carol.key, [me.key]) == []
        forged = [link for link in links if link.account == carol.key]
        assert of_friends(forged, carol.key, [bob.key]) == []

    run(go())
