"""Which servers a session runs through. Pure: the directory's view and measurements in, a route out.

A shortest path by dynamic programming (Bellman 1957), one pass over the blocks, where a state is "block b was computed
by server s": either s also computed b - 1, or the hidden states come over the network from a server that did. The
states of a block are one array over all servers. Where two servers both have some blocks, what the change from one to
the other costs is linear in the block where it is made: it is made where the first ends or the second begins, unless
one is only there to avoid a link, or beside the client. (That a third shortens another way is not looked for.)
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from swarm.client.ways import Ways
from swarm.coordinates import Coordinate
from swarm.errors import MissingBlocks
from swarm.types import Hop, PeerId, Route, ServerRecord, ServerState, Span

HOP_OVERHEAD_MS = 1.0
"""Serialising, framing and waking up, once a hop."""
FULL_PENALTY_MS = 10_000.0
"""A server without room may find some, but only if nobody else has any."""
UNPROVEN_MS = 50.0
"""From one server that nobody has audited to another: two that know each other are harder to find out than one."""
LONGEST_MS = 1e12
"""More than any server may claim to need: sums stay finite, and so even the slowest server is better than none."""

SPREAD = 0.05
"""By how much more than the best route takes sessions may take another, for others not to meet them there."""

_STAYED = -1
_Floats = NDArray[np.float64]
_Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known beyond the records. `rtt_ms`: measured round trips from here; `positions`: KV cache that the
    session needs; `pins`: the fingerprint that each block must have; `avoid_links`: (from, to), not to be dialled;
    `apart`: in ms a block, what else it costs to be on a peer; `unproven`: of whom nobody knows whether they compute
    right; `here`: where the client is."""

    rtt_ms: Mapping[PeerId, float] = field(default_factory=dict)
    default_rtt_ms: float = 50.0
    avoid_peers: frozenset[PeerId] = frozenset()
    avoid_links: frozenset[tuple[PeerId, PeerId]] = frozenset()
    pins: Mapping[int, bytes] = field(default_factory=dict)
    positions: int = 0
    apart: Mapping[PeerId, float] = field(default_factory=dict)
    here: Coordinate | None = None
    unproven: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class _Costs:
    """In ms, one number a server: to compute a block there, and to come to it whatever it then computes; and what it
    costs to come from one to another where both are unproven."""

    block: _Floats
    arrival: _Floats
    unproven: _Floats


def find_route(
    records: Iterable[ServerRecord],
    span: Span,
    conditions: Conditions,
    before: ServerRecord | None = None,
    after: ServerRecord | None = None,
    rng: random.Random | None = None,
) -> Route:
    """The route over `span` with the least expected time per token. `before`, `after`: the servers that it lies
    between, where not the client. Raises MissingBlocks naming what nobody hosts.

    With `rng` it is one of those that take no more than `SPREAD` more, any of them: clients that look at the same time,
    and see the same, do not all go the same way.
    """
    servers = _usable(records, span, conditions)
    hosts, cuts = _hosts(servers, span, conditions.pins), _cuts(servers, span)
    missing = [span.first + int(row) for row in np.flatnonzero(~hosts.any(axis=1))]
    if missing:
        gaps = ranges(missing)
        raise MissingBlocks(f"no server hosts blocks {told(gaps)}", gaps)
    costs, ways = _costs(servers, conditions), _ways([*servers, *_given(before), *_given(after)], conditions)
    count = len(servers)
    first = ways.client[:count] if before is None else ways.between([count], range(count))[0]
    last = ways.client[:count] if after is None else ways.between([ways.count - 1], range(count))[0]
    relayed = _relayed(servers, conditions)

    def cheapest(costs: _Costs) -> Route:
        reached, sources = _search(hosts, cuts, costs, ways, first, relayed)
        whole = reached + last
        best = int(whole.argmin())
        route = with_relays(_unwind(best, sources, servers, span), conditions)
        return Route(route.hops, route.relayed_links, float(whole[best]))

    best = cheapest(costs)
    if rng is None:
        return best
    most = SPREAD * best.cost_ms / len(best.hops)
    return cheapest(replace(costs, arrival=costs.arrival + [rng.uniform(0.0, most) for _ in servers]))


def repair(route: Route, lost: Iterable[int], records: Sequence[ServerRecord], conditions: Conditions) -> Route:
    """Keep the hops that live, with what they hold, and route anew only over what the `lost` ones covered.

    Where a gap is best filled by a server that is already its neighbour, that server's hop is made anew over both: one
    replay is cheaper than one more way through the client with every token. Raises MissingBlocks when a gap cannot be
    filled.
    """
    gone = set(lost)
    while True:
        kept = [hop for index, hop in enumerate(route.hops) if index not in gone]
        hops = _fill(route, gone, records, conditions)
        doubled = {
            route.hops.index(hop)
            for one, other in itertools.pairwise(hops)
            if one.peer_id == other.peer_id and one.server.contract == other.server.contract
            for hop in (one, other)
            if hop in kept
        }
        if not doubled:
            return with_relays(tuple(hops), conditions)
        gone |= doubled


def _fill(route: Route, gone: set[int], records: Sequence[ServerRecord], conditions: Conditions) -> list[Hop]:
    """The hops that stay, and the best route over every run of those that are gone."""
    hops: list[Hop] = []
    for index, hop in enumerate(route.hops):
        if index not in gone:
            hops.append(hop)
        elif index - 1 not in gone:
            last = index
            while last + 1 in gone:
                last += 1
            before = route.hops[index - 1].server if index else None
            after = route.hops[last + 1].server if last + 1 < len(route.hops) else None
            span = Span(hop.span.first, route.hops[last].span.last)
            hops.extend(find_route(records, span, conditions, before, after).hops)
    return hops


def with_relays(hops: tuple[Hop, ...], conditions: Conditions) -> Route:
    """A route of these hops; links that are to be avoided, or lead from a peer to itself, go through the client."""
    pairs = itertools.pairwise(hops)
    relayed = [
        i
        for i, (one, next_) in enumerate(pairs)
        if one.peer_id == next_.peer_id or (one.peer_id, next_.peer_id) in conditions.avoid_links
    ]
    return Route(hops, frozenset(relayed))


def agreed_fingerprints(records: Iterable[ServerRecord], pins: Mapping[int, bytes]) -> dict[int, bytes]:
    """The fingerprint of each block: the pinned one, else the one that most servers announce."""
    votes: Counter[tuple[int, bytes]] = Counter()
    for record in records:
        votes.update(zip(record.span, record.fingerprints, strict=False))
    # In rising order of votes, then of the fingerprint: what is written last stays.
    agreed = {
        block: fingerprint for (block, fingerprint), _ in sorted(votes.items(), key=lambda item: (item[1], item[0]))
    }
    return {**agreed, **pins}


def _usable(records: Iterable[ServerRecord], span: Span, conditions: Conditions) -> list[ServerRecord]:
    """Who takes sessions on part of `span`, by peer id and span.

    A peer may host several spans; what it said before it was started anew counts no more.
    """
    records, newest = list(records), dict[PeerId, ServerRecord]()
    for record in records:
        known = newest.get(record.peer_id)
        if known is None or (known.expires, known.span) < (record.expires, record.span):
            newest[record.peer_id] = record
    last = {(record.peer_id, record.span): record for record in sorted(records, key=lambda record: record.expires)}
    return [
        record
        for (peer_id, _), record in sorted(last.items(), key=lambda item: item[0])
        if record.state is ServerState.ONLINE
        and record.instance == newest[peer_id].instance
        and (record.instance or record is newest[peer_id])
        and peer_id not in conditions.avoid_peers
        and record.span.first < span.last
        and span.first < record.span.last
    ]


def _hosts(servers: Sequence[ServerRecord], span: Span, pins: Mapping[int, bytes]) -> NDArray[np.bool_]:
    """(blocks, servers): whether a server has the block, with the weights that are meant, and all that must stay
    together with it."""
    agreed = agreed_fingerprints(servers, pins)
    hosts = np.zeros((len(span), len(servers)), dtype=bool)
    for column, record in enumerate(servers):
        first, last = max(record.span.first, span.first), min(record.span.last, span.last)
        prints = record.fingerprints[first - record.span.first : last - record.span.first]
        right = [fingerprint == agreed[block] for block, fingerprint in enumerate(prints, first)]
        for run in record.contract.joined:
            part = slice(max(run.first - first, 0), max(run.last - first, 0))
            if not (first <= run.first and run.last <= last and all(right[part])):
                right[part] = [False] * len(right[part])
        hosts[first - span.first : first - span.first + len(right), column] = right
    return hosts


def _cuts(servers: Sequence[ServerRecord], span: Span) -> NDArray[np.bool_]:
    """(blocks, servers): whether hidden states may come to a server at the block, or leave it there."""
    cuts = np.ones((len(span), len(servers)), dtype=bool)
    for column, record in enumerate(servers):
        for run in record.contract.joined:
            cuts[max(run.first + 1 - span.first, 0) : max(run.last - span.first, 0), column] = False
    return cuts


def _given(server: ServerRecord | None) -> list[ServerRecord]:
    return [] if server is None else [server]


def _ways(servers: Sequence[ServerRecord], conditions: Conditions) -> Ways:
    return Ways.of(servers, conditions.rtt_ms, conditions.here, conditions.default_rtt_ms)


def _costs(servers: Sequence[ServerRecord], conditions: Conditions) -> _Costs:
    block = np.array([server.decode_ms + conditions.apart.get(server.peer_id, 0.0) for server in servers])
    return _Costs(
        np.minimum(block, LONGEST_MS),
        np.minimum([_arrival(server, conditions) for server in servers], LONGEST_MS),
        np.array([server.peer_id in conditions.unproven for server in servers], dtype=np.float64),
    )


def _arrival(server: ServerRecord, conditions: Conditions) -> float:
    """What it costs in ms to come to a server, whatever it then computes."""
    full = FULL_PENALTY_MS if server.free_tokens < conditions.positions else 0.0
    return HOP_OVERHEAD_MS + full + server.queue * server.decode_ms * len(server.span)


def _relayed(servers: Sequence[ServerRecord], conditions: Conditions) -> dict[int, list[int]]:
    """For each server those from which nothing may come to it directly, as places in `servers`."""
    places: dict[PeerId, list[int]] = defaultdict(list)
    for place, server in enumerate(servers):
        places[server.peer_id].append(place)
    relayed: dict[int, list[int]] = defaultdict(list)
    for source, target in conditions.avoid_links:
        for place in places.get(target, ()):
            relayed[place].extend(places.get(source, ()))
    return relayed


def _search(
    hosts: NDArray[np.bool_],
    cuts: NDArray[np.bool_],
    costs: _Costs,
    ways: Ways,
    first: _Floats,
    relayed: Mapping[int, list[int]],
) -> tuple[_Floats, list[_Indices]]:
    """The least cost of having the last block computed by each server, and for every block but the first, and every
    server, where the hidden states then come from: `_STAYED`, or another server."""
    reached = np.where(hosts[0], first + costs.arrival + costs.block, np.inf)
    sources = []
    awry = np.zeros(len(reached), dtype=bool)
    awry[list(relayed)] = True
    free = [block for block in range(1, len(hosts)) if cuts[block].any()]
    for block, (before, here) in enumerate(itertools.pairwise(hosts), 1):
        entered, source = np.full(len(reached), np.inf), np.full(len(reached), _STAYED, dtype=np.intp)
        ends, cut = block in (*free[:1], *free[-1:]), cuts[block]
        for left, into in ((before & (~here | ends), here), (before & here, here & (~before | awry))):
            places, targets = np.flatnonzero(left & cut), np.flatnonzero(into & cut)
            _enter(entered, source, reached, places, targets, costs, ways, relayed)
        sources.append(np.where(reached <= entered, _STAYED, source))
        reached = np.where(here, np.minimum(reached, entered) + costs.block, np.inf)
    return reached, sources


def _enter(
    entered: _Floats,
    source: _Indices,
    reached: _Floats,
    places: _Indices,
    targets: _Indices,
    costs: _Costs,
    ways: Ways,
    relayed: Mapping[int, list[int]],
) -> None:
    """Where coming to one of `targets` from one of `places` costs less than `entered`, write down what, and from which.

    A link that is to be avoided leads through the client.
    """
    if not (places.size and targets.size):
        return
    left = reached[places][:, None] + ways.between(places, targets)
    left += UNPROVEN_MS * np.outer(costs.unproven[places], costs.unproven[targets])
    for column, target in enumerate(targets if relayed else ()):
        if avoided := relayed.get(int(target)):
            rows = np.flatnonzero(np.isin(places, avoided))
            left[rows, column] = reached[places[rows]] + ways.client[places[rows]] + ways.client[target]
    best = left.argmin(axis=0)
    costing = left[best, np.arange(len(targets))] + costs.arrival[targets]
    less = costing < entered[targets]
    entered[targets[less]] = costing[less]
    source[targets[less]] = places[best[less]]


def _unwind(best: int, sources: Sequence[_Indices], servers: Sequence[ServerRecord], span: Span) -> tuple[Hop, ...]:
    """The hops that end at server `best`."""
    hops: list[Hop] = []
    last = span.last
    for block in range(span.last - 1, span.first, -1):
        source = int(sources[block - span.first - 1][best])
        if source != _STAYED:
            hops.append(Hop(servers[best], Span(block, last)))
            last, best = block, source
    hops.append(Hop(servers[best], Span(span.first, last)))
    return tuple(reversed(hops))


def ranges(blocks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Sorted blocks as half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block:
            ranges[-1] = (ranges[-1][0], block + 1)
        else:
            ranges.append((block, block + 1))
    return tuple(ranges)


def told(ranges: Iterable[tuple[int, int]]) -> str:
    """Half-open ranges in words."""
    return ", ".join(f"{first}:{last}" for first, last in ranges)
