"""Why a server does not fit, in words that name it; and when waiting is in vain."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.fitness import MOST_NAMES, MOST_REASONS, Misfit, explained, listed, misfit, name_of
from swarm.client.trust import Limits, Needs, Trust
from swarm.config import ClientConfig
from swarm.contract import Contract
from swarm.errors import ContextTooLong, LimitExceeded, MissingBlocks, NoServerFits
from swarm.types import ServerRecord, ServerState, Span

ASKED = Contract("m", Span(0, 8), dtype="float32", hidden_size=4, row_bytes=16)


WHOLE, NONE = Span(0, 8), Needs()


def record(peer: str = "alice", span: Span = WHOLE, **changes: object) -> ServerRecord:
    contract = replace(ASKED.on(span), fingerprints=(b"12345678",) * len(span))
    return replace(ServerRecord(peer, contract), **changes)  # type: ignore[arg-type]


def why(one: ServerRecord, needs: Needs = NONE, trust: Trust | None = None, now: float = 0.0) -> Misfit | None:
    return misfit(one, ASKED, needs, trust or Trust(ClientConfig()), dict.fromkeys(range(8), b"12345678"), now)


def test_a_server_in_order_fits() -> None:
    assert why(record()) is None
    assert why(record(span=Span(3, 5)), Needs(9, 99, 50)) is None


def test_what_lasts_and_what_passes() -> None:
    trust = Trust(ClientConfig())
    trust.limits["small"] = Limits(sequences=2)
    trust.peers.add("full", 0.0, 8.0, "has no room now: the KV cache is full")
    bfloat = replace(record().contract, dtype="bfloat16")
    other = replace(record().contract, fingerprints=(b"12345678",) * 7 + (b"87654321",))
    cases = [
        (record(contract=bfloat), "computes in bfloat16, not in float32", True),
        (record("small"), "takes at most 2 sequences in one session, not 3", True),
        (record("full"), "has no room now: the KV cache is full; tried again in 6 s", False),
        (record(state=ServerState.JOINING), "is still loading", False),
        (record(state=ServerState.DRAINING), "is leaving", False),
        (record(contract=other), "has other weights in blocks 7", False),
    ]
    for one, words, lasting in cases:
        found = why(one, Needs(3, 3, 1), trust, 2.0)
        assert found is not None
        assert (found.why, found.lasting) == (words, lasting)


MISSING = MissingBlocks("no server hosts blocks 0:4, 6:8", [(0, 4), (6, 8)])
OTHERWISE = Misfit(record("bob", Span(0, 4)), "computes in bfloat16, not in float32", lasting=True)
FULL = Misfit(record("carol", Span(2, 6)), "has no room now: full; tried again in 6 s")


def test_what_nobody_hosts_is_said_as_it_was() -> None:
    assert explained(MISSING, [], ASKED) is MISSING
    assert explained(MISSING, [Misfit(record("dan", Span(4, 6)), "is leaving")], ASKED) is MISSING


def test_waiting_is_in_vain_where_one_block_has_only_servers_that_never_fit() -> None:
    error = explained(MISSING, [OTHERWISE, FULL], ASKED)
    assert isinstance(error, NoServerFits)
    assert error.blocks == MISSING.blocks
    assert error.beyond is None
    for words in ("blocks 0:4", "in float32", "bob 0:4: computes in bfloat16", "carol 2:6: has no room now"):
        assert words in str(error)


def test_waiting_is_not_in_vain_where_every_block_may_have_a_server() -> None:
    error = explained(MISSING, [OTHERWISE, replace(FULL, record=record("carol", Span(0, 8)))], ASKED)
    assert type(error) is MissingBlocks
    assert "no server of blocks 0:4, 6:8 can be used now: bob 0:4: computes" in str(error)


def test_what_nobody_hosts_is_told_apart_from_what_somebody_does() -> None:
    error = explained(MISSING, [FULL], ASKED)
    assert str(error).startswith("no server hosts blocks 0:2, 6:8; no server of blocks 2:4 can be used now: carol 2:6")


@pytest.mark.parametrize(("name", "kind"), [("sequences", LimitExceeded), ("context", ContextTooLong)])
def test_too_much_for_everybody_is_an_error_of_its_own(name: str, kind: type) -> None:
    small = [
        Misfit(record(peer), f"takes at most {allowed}", lasting=True, beyond=(name, allowed, 9))
        for peer, allowed in (("alice", 4), ("bob", 7))
    ]
    error = explained(MISSING, small, ASKED)
    assert isinstance(error, NoServerFits)
    assert type(error.beyond) is kind
    assert "at most 7" in str(error.beyond)
    assert str(error.beyond).startswith("9 ")
    assert "alice 0:8" in str(error.beyond)
    mixed = explained(MISSING, [*small, replace(OTHERWISE, record=record("carol"))], ASKED)
    assert isinstance(mixed, NoServerFits)
    assert mixed.beyond is None


def test_names_are_shown_as_far_as_they_can_be_printed() -> None:
    assert name_of(record("12D3KooWabcdef")) == "12D3KooWabcdef"
    assert name_of(record("12D3KooWabcdef", name="alice")) == "alice (…abcdef)"
    assert name_of(record("12D3KooWabcdef", name="\x1b[31m\nal" + "x" * 99)) == f"?[31m?al{'x' * 32} (…abcdef)"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=60))
def test_every_reason_is_listed_until_there_are_too_many(pairs: list[tuple[int, int]]) -> None:
    misfits = [Misfit(record(f"peer{peer}."), f"reason {reason}.") for peer, reason in dict.fromkeys(pairs)]
    text, reasons = listed(misfits), {one.why for one in misfits}
    shown = [reason for reason in reasons if reason in text]
    assert len(shown) == min(len(reasons), MOST_REASONS)
    assert ("more reasons" in text) == (len(reasons) > MOST_REASONS)
    assert text.count("peer") <= MOST_REASONS * MOST_NAMES
