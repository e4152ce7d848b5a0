"""Chains of accounts: what two links prove, whatever happens between honest ones and whatever cheats sign."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.accounting.chain import End, Pair, contradiction, drafted, end_of, follows, pair_of
from swarm.accounting.entries import (
    bytes_of,
    check_accounting,
    check_head,
    digest_of,
    read_entry,
    sign_accounting,
    sign_entry,
    sign_head,
)
from swarm.errors import MalformedFrame
from swarm.net.identity import Identity
from swarm.wire import swarm_pb2 as pb

SESSION = bytes(16)


def someone(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


ME, BOB, CAROL = map(someone, ("me", "bob", "carol"))
STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from([BOB, CAROL]), st.integers(0, 1000)), min_size=2, max_size=12)


def chain(steps: list[tuple[bool, Identity, int]]) -> list[pb.Entry]:
    """What an honest account signs."""
    end, pairs, links = End(), {BOB.key: Pair(), CAROL.key: Pair()}, list[pb.Entry]()
    for gives, other, work in steps:
        answers = bytes(32) if gives else b""
        link = sign_entry(ME, drafted(end, pairs[other.key], other.key, work, SESSION, answers=answers))
        end, pairs[other.key] = end_of(link), pair_of(link)
        links.append(link)
    return links


@given(STEPS)
def test_nothing_that_an_honest_account_signs_contradicts_itself(steps: list[tuple[bool, Identity, int]]) -> None:
    links = chain(steps)
    assert all(contradiction(one, two) is None for one in links for two in links)
    assert all(follows(end_of(one), two) for one, two in itertools.pairwise(links))
    assert links[-1].given - links[-1].taken == sum(work if gives else -work for gives, _, work in steps)
    assert [read_entry(bytes_of(link)) for link in links] == links


@given(STEPS, st.data())
def test_whoever_signs_another_past_is_found_out_by_two_links(
    steps: list[tuple[bool, Identity, int]], data: st.DataObject
) -> None:
    links = chain(steps)
    at = data.draw(st.integers(0, len(links) - 1))
    gives, other, work = steps[at]
    other_past = chain([*steps[:at], (gives, other, work + 1), *steps[at + 1 :]])
    assert contradiction(links[at], other_past[at]) == "two links with one number"
    # The links behind it are others too: each of them is enough.
    assert all(contradiction(one, two) for one, two in zip(links[at:], other_past[at:], strict=True))


@given(STEPS, st.data())
def test_totals_that_do_not_add_up_are_found_out(steps: list[tuple[bool, Identity, int]], data: st.DataObject) -> None:
    links = chain(steps)
    at = data.draw(st.integers(1, len(links) - 1))
    forged = pb.Entry()
    forged.CopyFrom(links[at])
    for name in data.draw(st.sampled_from([("given",), ("taken",), ("given", "pair_given"), ("taken", "pair_taken")])):
        setattr(forged, name, getattr(forged, name) + data.draw(st.integers(1, 9)))
    forged = sign_entry(ME, forged)
    assert contradiction(links[at - 1], forged) == "a link that does not follow the one before"


def test_who_forgets_what_he_took_of_somebody_is_found_out_though_links_between_are_not_known() -> None:
    links = chain([(False, BOB, 100), (False, CAROL, 1), (False, CAROL, 1), (False, BOB, 1)])
    forged = pb.Entry()
    forged.CopyFrom(links[3])
    forged.pair_taken = 1
    assert contradiction(links[0], sign_entry(ME, forged)) == "totals of a pair that do not grow"
    forged.taken = 50
    assert contradiction(links[0], sign_entry(ME, forged)) == "totals that do not grow"


def test_links_of_two_accounts_prove_nothing() -> None:
    mine = chain([(False, BOB, 1)])[0]
    his = sign_entry(CAROL, drafted(End(), Pair(), BOB.key, 2, SESSION))
    assert contradiction(mine, his) is None


@given(st.binary(max_size=600))
def test_any_bytes_are_a_link_or_refused(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        read_entry(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": bytes(64)}, {"work": 2}, {"number": 0}, {"number": 2}, {"other": ME.key}, {"other": b"short"},
        {"session": b""}, {"gives": True}, {"answers": bytes(32)}, {"given": 1 << 63}, {"pair_given": 1},
    ],
)  # fmt: skip
def test_a_link_that_was_changed_is_refused(changes: dict[str, object]) -> None:
    link = chain([(False, BOB, 1)])[0]
    for name, value in changes.items():
        setattr(link, name, value)
    with pytest.raises(MalformedFrame):
        read_entry(bytes_of(link))


def test_a_link_has_few_bytes_and_a_head_fewer() -> None:
    link = chain([(False, BOB, 1 << 60)])[0]
    assert len(bytes_of(link)) < 320
    head = sign_head(ME, pb.Head(number=1 << 40, digest=digest_of(link), given=1 << 60, taken=1 << 60), "peer")
    assert len(head.SerializeToString()) <= 200
    assert check_head(head, "peer") is head
    with pytest.raises(MalformedFrame):
        check_head(head, "another peer")


def test_who_speaks_for_an_account_shows_it_for_this_session_and_these_peers() -> None:
    said = sign_accounting(ME, SESSION, "client", "server")
    assert check_accounting(said, SESSION, "client", "server") == ME.key
    for session, one, two in (
        (bytes(15) + b"1", "client", "server"),
        (SESSION, "thief", "server"),
        (SESSION, "client", "s"),
    ):
        with pytest.raises(MalformedFrame):
            check_accounting(said, session, one, two)
