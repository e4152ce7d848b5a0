"""Routes: against every route there is in swarms small enough to try them all, and a slow search in larger ones."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.client.routing import (
    FULL_PENALTY_MS,
    HOP_OVERHEAD_MS,
    Conditions,
    agreed_fingerprints,
    find_route,
    repair,
    with_relays,
)
from swarm.contract import Contract
from swarm.errors import MissingBlocks
from swarm.span import is_inside
from swarm.types import Hop, Route, ServerRecord, ServerState, Span


def server(name: str, first: int, last: int, **more: object) -> ServerRecord:
    prints = tuple(b"%08d" % block for block in range(first, last))
    contract = Contract("model", Span(first, last), more.pop("fingerprints", prints))  # type: ignore[arg-type]
    return replace(ServerRecord(name, contract, free_tokens=1000), **more)  # type: ignore[arg-type]


def described(route: Route) -> list[str]:
    return [f"{hop.peer_id} {hop.span}" for hop in route.hops]


# ---- against brute force --------------------------------------------------------------------------------------


def cost_of(chosen: Sequence[ServerRecord], conditions: Conditions) -> float:
    """Milliseconds for one token when block i is computed by `chosen[i]`, as the module's text says it."""

    def rtt(record: ServerRecord) -> float:
        return conditions.rtt_ms.get(record.peer_id, conditions.default_rtt_ms)

    cost, before = rtt(chosen[-1]) / 2, None
    for record in chosen:
        if before is None:
            cost += rtt(record) / 2
        elif before is not record:
            relayed = (before.peer_id, record.peer_id) in conditions.avoid_links
            cost += (rtt(before) + rtt(record)) / (2 if relayed else 4)
        if before is not record:
            cost += HOP_OVERHEAD_MS + record.queue * record.decode_ms * len(record.span)
            cost += FULL_PENALTY_MS if record.free_tokens < conditions.positions else 0.0
        cost += record.decode_ms
        before = record
    return cost


def cheapest(records: Sequence[ServerRecord], span: Span, conditions: Conditions) -> float:
    hosts = [[record for record in records if block in record.span] for block in span]
    return min(cost_of(chosen, conditions) for chosen in itertools.product(*hosts))


@st.composite
def swarms(draw: st.DrawFn, links: bool) -> tuple[list[ServerRecord], Conditions]:
    count = draw(st.integers(1, 3))
    names = [f"p{i}" for i in range(count)]
    records = [server("all", 0, 4, decode_ms=draw(st.sampled_from([1.0, 20.0])))]
    for name in names:
        first = draw(st.integers(0, 3))
        last = draw(st.integers(first + 1, 4))
        numbers = {
            "decode_ms": draw(st.sampled_from([0.5, 1.0, 2.5, 7.0])),
            "queue": draw(st.integers(0, 3)),
            "free_tokens": draw(st.sampled_from([0, 1000])),
        }
        records.append(server(name, first, last, **numbers))
    pairs = list(itertools.permutations(["all", *names], 2))
    return records, Conditions(
        rtt_ms=draw(st.dictionaries(st.sampled_from(["all", *names]), st.sampled_from([1.0, 10.0, 80.0]))),
        avoid_links=frozenset(draw(st.sets(st.sampled_from(pairs))) if links else ()),
        positions=draw(st.sampled_from([0, 100])),
    )


def holds_together(route: Route, span: Span, conditions: Conditions) -> None:
    assert route.span == span
    assert all(hop.server.span.covers(hop.span) for hop in route.hops)
    for i, (one, other) in enumerate(itertools.pairwise(route.hops)):
        assert one.span.last == other.span.first
        assert one.peer_id != other.peer_id
        assert (i in route.relayed_links) == ((one.peer_id, other.peer_id) in conditions.avoid_links)


@given(swarms(links=False))
def test_no_route_is_faster(swarm: tuple[list[ServerRecord], Conditions]) -> None:
    records, conditions = swarm
    route = find_route(records, Span(0, 4), conditions)
    holds_together(route, Span(0, 4), conditions)
    chosen = [hop.server for hop in route.hops for _ in hop.span]
    assert route.cost_ms == pytest.approx(cost_of(chosen, conditions))
    assert route.cost_ms == pytest.approx(cheapest(records, Span(0, 4), conditions))


@given(swarms(links=True))
def test_links_to_be_avoided_cost_the_way_through_the_client(swarm: tuple[list[ServerRecord], Conditions]) -> None:
    records, conditions = swarm
    route = find_route(records, Span(0, 4), conditions)
    holds_together(route, Span(0, 4), conditions)
    chosen = [hop.server for hop in route.hops for _ in hop.span]
    assert route.cost_ms == pytest.approx(cost_of(chosen, conditions))
    assert route.cost_ms == pytest.approx(cheapest(records, Span(0, 4), conditions))


@given(swarms(links=True), st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(swarm: tuple[list[ServerRecord], Conditions], rng: object) -> None:
    records, conditions = swarm
    shuffled = list(records)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert find_route(records, Span(0, 4), conditions) == find_route(shuffled, Span(0, 4), conditions)


@st.composite
def joined_swarms(draw: st.DrawFn) -> tuple[list[ServerRecord], Conditions, tuple[Span, ...]]:
    """Of which every server's span is cut where it may be."""
    edges = draw(st.sampled_from([(0, 2, 3, 4), (0, 1, 3, 4), (0, 1, 4), (0, 2, 4)]))
    joined = tuple(Span(*pair) for pair in itertools.pairwise(edges) if pair[1] - pair[0] > 1)
    records = [server("all", 0, 4, decode_ms=draw(st.sampled_from([1.0, 20.0])))]
    for place in range(draw(st.integers(1, 3))):
        first, last = sorted(draw(st.lists(st.sampled_from(edges), min_size=2, max_size=2, unique=True)))
        records.append(server(f"p{place}", first, last, decode_ms=draw(st.sampled_from([0.5, 1.0, 7.0]))))
    records = [
        replace(
            record, contract=replace(record.contract, joined=tuple(run for run in joined if record.span.covers(run)))
        )
        for record in records
    ]
    rtt = draw(st.dictionaries(st.sampled_from(["all", "p0", "p1", "p2"]), st.sampled_from([1.0, 10.0, 80.0])))
    return records, Conditions(rtt_ms=rtt), joined


@given(joined_swarms())
def test_no_route_is_cut_where_blocks_must_stay_together(
    swarm: tuple[list[ServerRecord], Conditions, tuple[Span, ...]],
) -> None:
    records, conditions, joined = swarm
    route = find_route(records, Span(0, 4), conditions)
    holds_together(route, Span(0, 4), conditions)
    assert not any(is_inside(hop.span.first, joined) for hop in route.hops)
    hosts = [[record for record in records if block in record.span] for block in range(4)]
    every = [
        chosen
        for chosen in itertools.product(*hosts)
        if all(len({id(chosen[block]) for block in run}) == 1 for run in joined)
    ]
    assert route.cost_ms == pytest.approx(min(cost_of(chosen, conditions) for chosen in every))


def test_a_server_with_a_part_of_what_must_stay_together_has_none_of_it() -> None:
    def part(name: str, first: int, last: int, joined: tuple[Span, ...]) -> ServerRecord:
        record = server(name, first, last)
        return replace(record, contract=replace(record.contract, joined=joined))

    whole, other = part("whole", 0, 4, (Span(1, 3),)), part("other", 3, 6, (Span(4, 6),))
    with pytest.raises(MissingBlocks, match="1:2"):
        find_route([whole, other], Span(0, 2), Conditions())
    pins = {2: b"another!"}
    with pytest.raises(MissingBlocks, match="1:3"):
        find_route([whole, other], Span(0, 6), Conditions(pins=pins))


# ---- against the slow search ----------------------------------------------------------------------------------


def random_swarm(rng: random.Random) -> tuple[list[ServerRecord], Span, Conditions]:
    """Up to twenty servers of up to sixteen blocks, with all that may speak against one."""
    blocks = rng.randint(1, 16)
    names = [f"p{i}" for i in range(rng.randint(1, 20))]
    first = rng.randrange(blocks)
    base = server("all", 0, blocks, fingerprints=tuple(b"base%04d" % block for block in range(blocks)), decode_ms=30.0)
    return (
        [random_server(rng, name, blocks) for name in names] + [base],
        Span(first, rng.randint(first + 1, blocks)),
        Conditions(
            rtt_ms={name: rng.choice([1.0, 10.0, 80.0, rng.uniform(1.0, 200.0)]) for name in names[::2]},
            default_rtt_ms=rng.choice([2.0, 50.0]),
            avoid_peers=frozenset(name for name in names if rng.random() < 0.1),
            avoid_links=frozenset(pair for pair in itertools.permutations(names, 2) if rng.random() < 0.2),
            pins={block: rng.choice([b"base%04d"] * 9 + [b"tune%04d"]) % block for block in range(0, blocks, 5)},
            positions=rng.choice([0, 100]),
        ),
    )


def random_server(rng: random.Random, name: str, blocks: int) -> ServerRecord:
    first = rng.randrange(blocks)
    last = rng.randint(first + 1, blocks)
    prints = tuple((b"tune%04d" if rng.random() < 0.2 else b"base%04d") % block for block in range(first, last))
    return server(
        name,
        first,
        last,
        fingerprints=prints[: rng.choice([None, None, None, 1])],
        state=rng.choice([ServerState.ONLINE] * 8 + [ServerState.JOINING, ServerState.DRAINING]),
        decode_ms=rng.choice([0.5, 1.0, 2.5, 7.0, rng.uniform(0.1, 50.0)]),
        queue=rng.choice([0, 0, 1, 3]),
        free_tokens=rng.choice([0, 1000]),
    )


def hosts_slowly(records: Sequence[ServerRecord], conditions: Conditions) -> dict[int, list[ServerRecord]]:
    """For each block who has it with the weights that are meant."""
    usable = [r for r in records if r.state is ServerState.ONLINE and r.peer_id not in conditions.avoid_peers]
    hosts = {}
    for block in range(16):
        having = [(r, r.fingerprints[i]) for r in usable if 0 <= (i := block - r.span.first) < len(r.fingerprints)]
        votes = Counter(fingerprint for _, fingerprint in having)
        most = max(votes, key=lambda fingerprint: (votes[fingerprint], fingerprint), default=b"")
        hosts[block] = [r for r, fingerprint in having if fingerprint == conditions.pins.get(block, most)]
    return hosts


def search_slowly(hosts: Mapping[int, list[ServerRecord]], span: Span, conditions: Conditions) -> float | None:
    """The least cost of a route, trying every server after every other at every block; None where there is none."""

    def added(before: ServerRecord, record: ServerRecord) -> float:
        """What `record` adds when it computes the block after one that `before` computed."""
        return cost_of([before, record], conditions) - cost_of([before], conditions)

    costs = {record.peer_id: (cost_of([record], conditions), record) for record in hosts[span.first]}
    for block in range(span.first + 1, span.last):
        costs = {
            record.peer_id: (min(cost + added(before, record) for cost, before in costs.values()), record)
            for record in hosts[block]
            if costs
        }
    return min((cost for cost, _ in costs.values()), default=None)


@settings(max_examples=1500)
@given(st.integers(0, 2**40))
def test_the_fast_search_finds_what_the_slow_one_does(seed: int) -> None:
    records, span, conditions = random_swarm(random.Random(seed))
    hosts = hosts_slowly(records, conditions)
    least = search_slowly(hosts, span, conditions)
    if least is None:
        with pytest.raises(MissingBlocks) as caught:
            find_route(records, span, conditions)
        assert {b for gap in caught.value.blocks for b in range(*gap)} == {b for b in span if not hosts[b]}
        return
    route = find_route(records, span, conditions)
    holds_together(route, span, conditions)
    chosen = [hop.server for hop in route.hops for _ in hop.span]
    assert all(record in hosts[block] for block, record in zip(span, chosen, strict=True))
    assert route.cost_ms == pytest.approx(cost_of(chosen, conditions))
    assert route.cost_ms == pytest.approx(least)


# ---- who may take part ----------------------------------------------------------------------------------------


def test_joining_and_draining_servers_take_no_part() -> None:
    records = [
        server("j", 0, 4, state=ServerState.JOINING, decode_ms=0.01),
        server("d", 0, 4, state=ServerState.DRAINING, decode_ms=0.01),
        server("o", 0, 4),
    ]
    assert described(find_route(records, Span(0, 4), Conditions())) == ["o 0:4"]


def test_avoided_peers_take_no_part() -> None:
    records = [server("a", 0, 4, decode_ms=0.01), server("b", 0, 4)]
    assert described(find_route(records, Span(0, 4), Conditions(avoid_peers=frozenset({"a"})))) == ["b 0:4"]


@pytest.mark.parametrize(
    ("spans", "missing"),
    [
        ([], ((0, 8),)),
        ([(0, 3)], ((3, 8),)),
        ([(0, 3), (5, 8)], ((3, 5),)),
        ([(2, 3), (4, 5)], ((0, 2), (3, 4), (5, 8))),
        ([(1, 8)], ((0, 1),)),
        ([(0, 7)], ((7, 8),)),
    ],
)
def test_what_nobody_hosts_is_named(spans: list[tuple[int, int]], missing: tuple[tuple[int, int], ...]) -> None:
    records = [server(f"p{i}", *span) for i, span in enumerate(spans)]
    with pytest.raises(MissingBlocks) as caught:
        find_route(records, Span(0, 8), Conditions())
    assert caught.value.blocks == missing
    assert all(f"{first}:{last}" in str(caught.value) for first, last in missing)


def test_blocks_with_other_weights_are_no_hosts() -> None:
    tuned = server("tuned", 0, 4, fingerprints=tuple(b"othertun" for _ in range(4)), decode_ms=0.01)
    base = [server("a", 0, 4), server("b", 0, 4)]
    assert described(find_route([tuned, *base], Span(0, 4), Conditions()))[0] in ("a 0:4", "b 0:4")
    pinned = Conditions(pins=dict.fromkeys(range(4), b"othertun"))
    assert described(find_route([tuned, *base], Span(0, 4), pinned)) == ["tuned 0:4"]
    with pytest.raises(MissingBlocks):
        find_route(base, Span(0, 4), pinned)


def test_a_record_with_too_few_fingerprints_hosts_only_those_blocks() -> None:
    short = server("short", 0, 4, fingerprints=(b"%08d" % 0,))
    assert described(find_route([short, server("b", 1, 4)], Span(0, 4), Conditions())) == ["short 0:1", "b 1:4"]


def test_most_servers_decide_which_weights_are_meant_unless_a_route_has() -> None:
    one = server("a", 0, 1, fingerprints=(b"one",))
    two = [server(name, 0, 1, fingerprints=(b"two",)) for name in "bc"]
    assert agreed_fingerprints([one, *two], {}) == {0: b"two"}
    assert agreed_fingerprints([one, *two], {0: b"one", 5: b"x"}) == {0: b"one", 5: b"x"}


def test_a_full_server_is_the_last_resort() -> None:
    full = server("full", 0, 4, free_tokens=5, decode_ms=0.01)
    room = server("room", 0, 4, decode_ms=100.0)
    assert described(find_route([full, room], Span(0, 4), Conditions(positions=6))) == ["room 0:4"]
    assert described(find_route([full, room], Span(0, 4), Conditions(positions=5))) == ["full 0:4"]
    assert described(find_route([full], Span(0, 4), Conditions(positions=6))) == ["full 0:4"]


def test_of_two_records_of_a_peer_the_later_counts() -> None:
    moved = [server("a", 0, 4, expires=2.0), server("a", 4, 8, expires=1.0), server("b", 0, 8, decode_ms=9.0)]
    assert described(find_route(moved, Span(0, 8), Conditions(default_rtt_ms=1.0))) == ["a 0:4", "b 4:8"]


def test_a_server_of_unearthly_slowness_is_better_than_none() -> None:
    route = find_route(
        [server("a", 0, 4, decode_ms=1e308, queue=2**32 - 1), server("b", 4, 8)], Span(0, 8), Conditions()
    )
    assert described(route) == ["a 0:4", "b 4:8"]


# ---- repair ---------------------------------------------------------------------------------------------------


THREE = {"a": server("a", 0, 3), "b": server("b", 3, 6), "c": server("c", 6, 9)}
ROUTE = Route(tuple(Hop(record, record.span) for record in THREE.values()))


def repaired(lost: set[int], records: list[ServerRecord], **more: object) -> Route:
    return repair(ROUTE, lost, records, Conditions(**more))  # type: ignore[arg-type]


def test_a_repair_keeps_the_hops_that_live_even_where_others_are_faster() -> None:
    fast = server("fast", 0, 9, decode_ms=0.001)
    route = repaired({1}, [fast, *THREE.values()], avoid_peers=frozenset({"b"}))
    assert described(route) == ["a 0:3", "fast 3:6", "c 6:9"]


def test_a_run_of_lost_hops_is_routed_as_one() -> None:
    wide = server("wide", 3, 9)
    assert described(repaired({1, 2}, [wide])) == ["a 0:3", "wide 3:9"]


def test_two_gaps_apart_are_filled_each() -> None:
    records = [server("x", 0, 3), server("y", 6, 9)]
    assert described(repaired({0, 2}, records)) == ["x 0:3", "b 3:6", "y 6:9"]


def test_a_gap_may_be_filled_by_several() -> None:
    records = [server("x", 3, 5), server("y", 4, 6)]
    route = repaired({1}, records)
    assert [hop.peer_id for hop in route.hops] == ["a", "x", "y", "c"]
    assert route.span == Span(0, 9)


def test_a_neighbour_that_fills_the_gap_becomes_one_hop() -> None:
    wide = server("a", 0, 6)
    route = repair(Route((Hop(wide, Span(0, 3)), *ROUTE.hops[1:])), {1}, [wide], Conditions())
    assert described(route) == ["a 0:6", "c 6:9"]
    assert not route.relayed_links


def test_both_neighbours_become_one_hop() -> None:
    whole = server("w", 0, 9)
    route = Route((Hop(whole, Span(0, 3)), ROUTE.hops[1], Hop(whole, Span(6, 9))))
    assert described(repair(route, {1}, [whole], Conditions())) == ["w 0:9"]


def test_nothing_lost_means_the_same_hops() -> None:
    assert repaired(set(), []).hops == ROUTE.hops


def test_a_gap_without_servers_is_missing() -> None:
    with pytest.raises(MissingBlocks) as caught:
        repaired({1}, list(THREE.values()), avoid_peers=frozenset({"b"}))
    assert caught.value.blocks == ((3, 6),)


def test_a_repair_around_a_link_relays_it() -> None:
    route = repaired(set(), [], avoid_links=frozenset({("b", "c"), ("b", "a")}))
    assert route.relayed_links == {1}


@given(st.sets(st.integers(0, 3)), st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8)), max_size=6))
def test_a_repaired_route_is_whole_and_keeps_who_has_no_better_self(
    lost: set[int], spans: list[tuple[int, int]]
) -> None:
    hops = tuple(Hop(server(f"h{i}", 2 * i, 2 * i + 2), Span(2 * i, 2 * i + 2)) for i in range(4))
    records = [server(f"r{i}", first, min(first + count, 8)) for i, (first, count) in enumerate(spans)]
    conditions = Conditions()
    try:
        route = repair(Route(hops), lost, records, conditions)
    except MissingBlocks:
        return
    holds_together(route, Span(0, 8), conditions)
    assert [hop for i, hop in enumerate(hops) if i not in lost] == [hop for hop in route.hops if hop in hops]


def test_a_server_cannot_dial_itself() -> None:
    twice = (Hop(server("a", 0, 9), Span(0, 3)), Hop(server("a", 0, 9), Span(3, 9)))
    assert with_relays(twice, Conditions()).relayed_links == {0}


def test_measured_round_trips_decide_between_equals() -> None:
    records = [server(name, 0, 4) for name in "abc"]
    rtts: Mapping[str, float] = {"a": 90.0, "b": 20.0}
    assert described(find_route(records, Span(0, 4), Conditions(rtt_ms=rtts))) == ["b 0:4"]
