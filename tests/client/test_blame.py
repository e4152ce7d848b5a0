"""Who is avoided for what, and for how long: plain reports in, a verdict out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from swarm.client.blame import Blame, Parting, Verdict
from swarm.client.diagnosis import Fault, Suspect
from swarm.client.trust import Limits, Needs, Process, Trust
from swarm.config import ClientConfig
from swarm.contract import Contract
from swarm.errors import (
    ComputeFailed,
    ContextTooLong,
    ContractMismatch,
    FrameRejected,
    Gap,
    GenerationFailed,
    LimitExceeded,
    MalformedFrame,
    PeerUnreachable,
    ServerBusy,
    SessionNotFound,
    StreamClosed,
    SwarmError,
)
from swarm.types import Hop, Route, ServerRecord, Span

CONFIG = ClientConfig()
HOPS = tuple(
    Hop(ServerRecord(name, Contract("m", Span(3 * i, 3 * i + 3), (bytes(8),) * 3)), Span(3 * i, 3 * i + 3))
    for i, name in enumerate("abc")
)
ROUTE = Route(HOPS)
A, B, C = (hop.key for hop in HOPS)


def begun() -> tuple[Blame, Trust]:
    trust = Trust(CONFIG)
    return Blame(trust, CONFIG), trust


# ---- what is plain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "parting", "seconds"),
    [
        (ServerBusy("full", retry_after=3.0), Parting.CLOSED, 3.0),
        (ComputeFailed("no such kernel"), Parting.DROPPED, CONFIG.avoid_peer),
        (ContractMismatch("other weights"), Parting.DROPPED, CONFIG.avoid_peer),
        (SwarmError("who knows"), Parting.DROPPED, CONFIG.avoid_peer),
    ],
)
def test_what_a_server_says_has_it_avoided(error: SwarmError, parting: Parting, seconds: float) -> None:
    blame, trust = begun()
    verdict = blame.failed(HOPS, 1, error, 100.0)
    assert verdict == Verdict({B: parting})
    (avoided,) = trust.peers.active(100.0).values()
    assert avoided.until == 100.0 + seconds
    assert str(error) in avoided.why


@pytest.mark.parametrize("error", [Gap("gap"), SessionNotFound("restarted"), StreamClosed("cut"), FrameRejected("bug")])
def test_what_may_be_chance_or_our_own_fault_has_nobody_avoided(error: SwarmError) -> None:
    blame, trust = begun()
    blame.stream_failed(HOPS, 1, error, 0.0)
    blame.judge(0.0)
    assert not trust.peers.active(0.0)


def test_a_context_that_is_too_long_ends_the_step() -> None:
    blame, trust = begun()
    error = ContextTooLong("4097")
    assert blame.failed(HOPS, 0, error, 0.0) == Verdict(ends=error)
    assert not trust.peers.active(0.0)


def test_a_session_that_is_not_known_is_forgotten_and_only_then_its_peer_doubted() -> None:
    blame, _ = begun()
    assert blame.failed(HOPS, 2, SessionNotFound("restarted"), 0.0) == Verdict({C: Parting.FORGOTTEN})
    assert blame.refused(HOPS[2], SessionNotFound("restarted"), 0.0) == Verdict({C: Parting.FORGOTTEN})


def test_busy_is_avoided_for_longer_than_the_next_attempts_wait() -> None:
    blame, trust = begun()
    for _ in range(6):
        blame.attempt()
    blame.refused(HOPS[0], ServerBusy("full", retry_after=0.0), 0.0)
    assert trust.peers.active(0.0)["a"].until == CONFIG.retry_base * 2**6


def test_who_leaves_is_avoided_for_as_long_as_it_says_within_reason() -> None:
    for deadline, seconds in ((-5.0, 1.0), (30.0, 30.0), (1e9, 600.0)):
        blame, trust = begun()
        blame.leaves(HOPS[1], deadline, 0.0)
        assert trust.peers.active(0.0)["b"].until == seconds


def test_who_was_not_there_is_used_again_once_it_is_started_and_who_did_wrong_is_not() -> None:
    blame, trust = begun()
    blame.leaves(HOPS[0], 30.0, 0.0)
    blame.refused(HOPS[1], StreamClosed("gone"), 0.0)
    blame.failed(HOPS, 2, ComputeFailed("no such kernel"), 0.0)
    assert trust.peers.active(0.0).keys() == {hop.peer_id for hop in HOPS[:3]}
    for hop in HOPS:
        trust.peers.started(hop.peer_id, Process(hop.server.instance + 1, hop.server.expires + 1))
    assert trust.peers.active(0.0).keys() == {HOPS[2].peer_id}


# ---- doubts ----------------------------------------------------------------------------------------------------


def test_the_second_doubt_without_an_output_is_no_chance() -> None:
    blame, trust = begun()
    assert blame.judge(0.0) == Verdict()
    for expected in (Verdict(), Verdict({A: Parting.DROPPED})):
        blame.doubt(HOPS[0])
        blame.doubt(HOPS[0])
        assert blame.judge(0.0) == expected
    assert set(trust.peers.active(0.0)) == {"a"}


def test_an_output_clears_all_doubts() -> None:
    blame, trust = begun()
    for _ in range(5):
        blame.attempt()
        blame.doubt(HOPS[0])
        assert blame.judge(0.0) == Verdict()
        blame.works(HOPS)
    assert not trust.peers.active(0.0)


def test_a_doubt_that_something_else_explains_is_none() -> None:
    blame, _ = begun()
    for _ in range(3):
        blame.doubt(HOPS[0])
        blame.refused(HOPS[0], PeerUnreachable("gone"), 0.0)
        assert blame.judge(0.0) == Verdict()


def test_the_hop_before_a_gap_has_more_patience() -> None:
    blame, _ = begun()
    verdicts = []
    for _ in range(3):
        blame.failed(HOPS, 1, Gap("gap"), 0.0)
        verdicts.append(blame.judge(0.0).partings)
    assert verdicts == [{}, {B: Parting.DROPPED}, {A: Parting.DROPPED}]


# ---- links -----------------------------------------------------------------------------------------------------


def test_a_link_that_fails_twice_is_avoided_and_its_ends_are_not() -> None:
    blame, trust = begun()
    blame.link_down(ROUTE, 0, 0.0, closed_here=False)
    assert not trust.links.active(0.0)
    blame.link_down(ROUTE, 0, 0.0, closed_here=False)
    assert set(trust.links.active(0.0)) == {("a", "b")}
    assert not trust.peers.active(0.0)


@pytest.mark.parametrize(("route", "index"), [(ROUTE, 2), (Route(HOPS, frozenset({0})), 0)])
def test_a_link_to_this_client_that_fails_is_a_doubt_unless_it_was_closed_here(route: Route, index: int) -> None:
    for closed_here, expected in ((True, {}), (False, {HOPS[index].key: Parting.DROPPED})):
        blame, trust = begun()
        for _ in range(2):
            blame.link_down(route, index, 0.0, closed_here=closed_here)
            verdict = blame.judge(0.0)
        assert verdict.partings == expected
        assert not trust.links.active(0.0)


@pytest.mark.parametrize(
    ("suspect", "relayed", "partings", "links"),
    [
        (Suspect(Fault.PEER, 1, "silent"), (), {B}, set()),
        (Suspect(Fault.LINK, 1, "nothing comes"), (), set(), {("a", "b")}),
        (Suspect(Fault.LINK, 1, "nothing comes"), (0,), {A, B}, {("a", "b")}),
        (Suspect(Fault.LINK, 0, "nothing comes"), (), {A}, set()),
        (Suspect(Fault.LINK, 3, "no results"), (), {C}, set()),
    ],
)
def test_whom_a_late_step_is_held_against(
    suspect: Suspect, relayed: tuple[int, ...], partings: set[object], links: set[object]
) -> None:
    blame, trust = begun()
    verdict = blame.suspect(Route(HOPS, frozenset(relayed)), suspect, 0.0)
    assert set(verdict.partings) == partings
    assert set(trust.links.active(0.0)) == links
    assert {peer for peer, _ in verdict.partings} == set(trust.peers.active(0.0))


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("relayed", [True, False])
def test_who_is_silent_behind_a_forwarder_is_soon_tried_again(relayed: bool, silent: bool) -> None:
    """The way may be gone and not the peer: each failure doubles what it is avoided for, up to what others are."""
    hops = tuple(replace(hop, server=replace(hop.server, relayed=relayed)) for hop in HOPS)
    blame, trust = begun()
    seconds = []
    for now in (0.0, 100.0, 200.0, 300.0, 400.0, 500.0):
        verdict = blame.suspect(Route(hops), Suspect(Fault.PEER, 1, "no answer", silent), now)
        assert verdict == Verdict({B: Parting.DROPPED})
        seconds.append(trust.peers.active(now)["b"].until - now)
    if relayed and silent:
        assert seconds[0] < 1.0
        assert max(seconds) == CONFIG.avoid_peer
    else:
        assert seconds[0] == CONFIG.avoid_peer


# ---- steps that fail everywhere --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ComputeFailed("no such kernel"), FrameRejected("malformed")])
def test_a_step_that_fails_again_and_again_ends(error: SwarmError) -> None:
    blame, _ = begun()
    ends = [blame.failed(HOPS, i % 3, error, 0.0).ends for i in range(CONFIG.max_step_failures)]
    assert ends[:-1] == [None] * (CONFIG.max_step_failures - 1)
    assert isinstance(ends[-1], GenerationFailed)
    assert ends[-1].__cause__ is error
    blame.step_begins()
    assert blame.failed(HOPS, 0, error, 0.0).ends is None


# ---- more than a server allows ---------------------------------------------------------------------------------


def test_who_is_too_small_is_not_avoided_and_what_it_allows_is_remembered() -> None:
    blame, trust = begun()
    blame.needs = Needs(5, 5, 1)
    for ask in (lambda e: blame.failed(HOPS, 0, e, 0.0), lambda e: blame.refused(HOPS[0], e, 0.0)):
        trust.limits["a"] = Limits(sequences=8, longest=100)
        assert ask(LimitExceeded("too many", "sequences", 4, 5)).partings == {A: Parting.CLOSED}
        assert trust.limits["a"] == Limits(sequences=4, longest=100, blocks=3)
        assert not trust.peers.active(0.0)


def test_a_limit_by_another_measure_counts_for_whoever_needs_as_much() -> None:
    blame, trust = begun()
    blame.needs = Needs(3, 300, 200)
    error = LimitExceeded("too many bytes", "cache_bytes", 4000, 5000)
    assert blame.refused(HOPS[0], error, 0.0) == Verdict({A: Parting.CLOSED})
    blame.opened(HOPS[0], Limits(sequences=8))
    limits = trust.limits["a"]
    assert limits.exceeded(Needs(3, 300, 200)) == limits.exceeded(Needs(4, 400, 300)) == ("cache_bytes", 4000, 5000)
    assert limits.exceeded(Needs(2, 300, 200)) is limits.exceeded(Needs(3, 299, 200)) is None
    assert limits.exceeded(Needs(9, 1, 1)) == ("sequences", 8, 9)


@pytest.mark.parametrize("error", [LimitExceeded("x"), LimitExceeded("x", "sequences", 9, 3)])
def test_a_limit_that_teaches_nothing_is_a_failure_like_any_other(error: LimitExceeded) -> None:
    blame, trust = begun()
    assert blame.refused(HOPS[0], error, 0.0) == Verdict({A: Parting.DROPPED})
    assert "a" in trust.peers.active(0.0)


# ---- whatever happens ------------------------------------------------------------------------------------------

ERRORS: list[SwarmError] = [
    ServerBusy("full"), ComputeFailed("x"), FrameRejected("x"), ContextTooLong("x"), SessionNotFound("x"), Gap("x"),
    ContractMismatch("x"), StreamClosed("x"), MalformedFrame("x"), PeerUnreachable("x"),
    LimitExceeded("x", "sequences", 4, 5), LimitExceeded("x"),
]  # fmt: skip


class WhateverHappens(RuleBasedStateMachine):
    """Nobody is avoided who did nothing, nobody for ever; every parting is of a hop of the route."""

    @initialize()
    def begin(self) -> None:
        self.blame, self.trust = begun()
        self.blame.needs = Needs(5, 5, 1)
        self.now = 0.0
        self.named: set[str] = set()

    def note(self, verdict: Verdict) -> None:
        assert set(verdict.partings) <= {A, B, C}
        assert {peer for peer, _ in verdict.partings} <= self.named
        for (peer, _), parting in verdict.partings.items():
            learned = self.trust.limits.get(peer, Limits()).exceeded(self.blame.needs)
            assert parting is Parting.FORGOTTEN or learned or peer in self.trust.peers.active(self.now)

    @rule(index=st.integers(0, 2), error=st.sampled_from(ERRORS), how=st.sampled_from(["said", "stream", "refused"]))
    def fails(self, index: int, error: SwarmError, how: str) -> None:
        self.named |= {hop.peer_id for hop in HOPS[max(index - 1, 0) if isinstance(error, Gap) else index : index + 1]}
        if how == "said":
            self.note(self.blame.failed(HOPS, index, error, self.now))
        elif how == "stream":
            self.note(self.blame.stream_failed(HOPS, index, error, self.now))
        else:
            self.note(self.blame.refused(HOPS[index], error, self.now))

    @rule(index=st.integers(0, 3), fault=st.sampled_from(Fault), relayed=st.sets(st.integers(0, 1)))
    def is_late(self, index: int, fault: Fault, relayed: set[int]) -> None:
        self.named |= {hop.peer_id for hop in HOPS[max(min(index, 2) - 1, 0) : index + 1]}
        self.note(self.blame.suspect(Route(HOPS, frozenset(relayed)), Suspect(fault, index, "late"), self.now))

    @rule(index=st.integers(0, 2), relayed=st.sets(st.integers(0, 1)), closed_here=st.booleans())
    def link_down(self, index: int, relayed: set[int], closed_here: bool) -> None:
        self.named.add(HOPS[index].peer_id)
        self.blame.link_down(Route(HOPS, frozenset(relayed)), index, self.now, closed_here=closed_here)

    @rule()
    def judge(self) -> None:
        self.note(self.blame.judge(self.now))

    @rule()
    def attempt(self) -> None:
        self.blame.attempt()

    @rule()
    def works(self) -> None:
        tried = self.blame.setbacks > 0
        self.blame.works(HOPS)
        assert self.blame.setbacks == 0
        assert not tried or not self.trust.peers.active(self.now)

    @rule(seconds=st.floats(0.0, 200.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def only_who_was_named_is_avoided(self) -> None:
        avoided = self.trust.peers.active(self.now)
        assert set(avoided) <= self.named
        assert all(one.until <= self.now + max(CONFIG.max_avoid, 600.0) for one in avoided.values())
        assert all(one.why for one in avoided.values())

    @invariant()
    def only_links_between_hops_are_avoided(self) -> None:
        pairs = {(one.peer_id, other.peer_id) for one, other in itertools.pairwise(HOPS)}
        assert set(self.trust.links.active(self.now)) <= pairs


TestWhateverHappens = WhateverHappens.TestCase
TestWhateverHappens.settings = settings(max_examples=100, stateful_step_count=30)


@given(st.lists(st.sampled_from(ERRORS[:1] + ERRORS[6:10]), min_size=1, max_size=8))
def test_nobody_who_fails_for_good_reasons_is_tried_again_at_once(errors: list[SwarmError]) -> None:
    blame, trust = begun()
    for error in errors:
        blame.attempt()
        blame.refused(HOPS[0], error, 0.0)
        assert "a" in trust.peers.active(0.0)
