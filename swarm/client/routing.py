"""Which servers a session runs through. Pure: the directory's view and measurements in, a route out.

A shortest path (Bellman's principle, one pass over the blocks) where a state is "block b was computed by server s":
either s also computed b - 1, or the hidden states come from the best server that did, over the network.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from swarm.errors import MissingBlocks
from swarm.types import Hop, PeerId, Route, ServerRecord, ServerState, Span

HOP_OVERHEAD_MS = 1.0
"""Serialising, framing and waking up, once a hop."""
FULL_PENALTY_MS = 10_000.0
"""A server without room may find some, but only if nobody else has any."""
KEPT_PREDECESSORS = 3


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known beyond the records. `rtt_ms`: measured round trips from here; `positions`: KV cache that the
    session needs; `pins`: the fingerprint that each block must have; `avoid_links`: (from, to), not to be dialled."""

    rtt_ms: Mapping[PeerId, float] = field(default_factory=dict)
    default_rtt_ms: float = 50.0
    avoid_peers: frozenset[PeerId] = frozenset()
    avoid_links: frozenset[tuple[PeerId, PeerId]] = frozenset()
    pins: Mapping[int, bytes] = field(default_factory=dict)
    positions: int = 0


@dataclass(slots=True)
class _State:
    """The cheapest way to have a block computed by `server`, who entered at block `entered`, after `before`."""

    cost: float
    server: ServerRecord
    entered: int
    before: _State | None


def find_route(records: Iterable[ServerRecord], span: Span, conditions: Conditions) -> Route:
    """The route over `span` with the least expected time per token. Raises MissingBlocks naming what nobody hosts."""
    hosts = _hosts(records, span, conditions)
    missing = [block for block in span if not hosts[block]]
    if missing:
        gaps = _ranges(missing)
        text = ", ".join(f"{first}:{last}" for first, last in gaps)
        raise MissingBlocks(f"no server hosts blocks {text}", gaps)
    states: dict[PeerId, _State] = {}
    for block in span:
        states = _advance(block, hosts[block], states, conditions, start=block == span.first)
    best = min(states.values(), key=lambda s: (s.cost + _rtt(s.server, conditions) / 2, s.server.peer_id))
    return _unwind(best, span, conditions)


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
            if one.peer_id == other.peer_id
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
            hops.extend(find_route(records, Span(hop.span.first, route.hops[last].span.last), conditions).hops)
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
    votes: dict[int, Counter[bytes]] = defaultdict(Counter)
    for record in records:
        for block, fingerprint in zip(record.span, record.fingerprints, strict=False):
            votes[block][fingerprint] += 1
    agreed = {block: max(count.items(), key=lambda item: (item[1], item[0]))[0] for block, count in votes.items()}
    return {**agreed, **pins}


def _hosts(records: Iterable[ServerRecord], span: Span, conditions: Conditions) -> dict[int, list[ServerRecord]]:
    """Per block the servers that can compute it, in a fixed order."""
    usable = [r for r in records if r.state is ServerState.ONLINE and r.peer_id not in conditions.avoid_peers]
    agreed = agreed_fingerprints(usable, conditions.pins)
    hosts: dict[int, list[ServerRecord]] = {block: [] for block in span}
    for record in sorted(usable, key=lambda r: r.peer_id):
        for block, fingerprint in zip(record.span, record.fingerprints, strict=False):
            if block in hosts and fingerprint == agreed[block]:
                hosts[block].append(record)
    return hosts


def _advance(
    block: int, hosts: list[ServerRecord], before: dict[PeerId, _State], conditions: Conditions, *, start: bool
) -> dict[PeerId, _State]:
    """The states after `block` from those before it."""
    ranked = sorted(before.values(), key=lambda s: s.cost + _rtt(s.server, conditions) / 4)[:KEPT_PREDECESSORS]
    after: dict[PeerId, _State] = {}
    for server in hosts:
        state = _enter_first(server, block, conditions) if start else _enter(server, block, ranked, conditions)
        staying = before.get(server.peer_id)
        if staying is not None and staying.cost <= state.cost:
            state = _State(staying.cost, server, staying.entered, staying.before)
        state.cost += server.decode_ms
        after[server.peer_id] = state
    return after


def _enter_first(server: ServerRecord, block: int, conditions: Conditions) -> _State:
    return _State(_rtt(server, conditions) / 2 + _arrival(server, conditions), server, block, None)


def _enter(server: ServerRecord, block: int, ranked: list[_State], conditions: Conditions) -> _State:
    return min((_come(state, server, block, conditions) for state in ranked), key=lambda state: state.cost)


def _come(before: _State, server: ServerRecord, block: int, conditions: Conditions) -> _State:
    """From one server to another: straight, or through the client, which is twice the way."""
    pair = before.server.peer_id, server.peer_id
    relayed = pair[0] == pair[1] or pair in conditions.avoid_links
    travel = (_rtt(before.server, conditions) + _rtt(server, conditions)) / (2 if relayed else 4)
    return _State(before.cost + travel + _arrival(server, conditions), server, block, before)


def _arrival(server: ServerRecord, conditions: Conditions) -> float:
    """What it costs in ms to come to a server, whatever it then computes."""
    full = FULL_PENALTY_MS if server.free_tokens < conditions.positions else 0.0
    return HOP_OVERHEAD_MS + full + server.queue * server.decode_ms * len(server.span)


def _rtt(server: ServerRecord, conditions: Conditions) -> float:
    return conditions.rtt_ms.get(server.peer_id, conditions.default_rtt_ms)


def _unwind(best: _State, span: Span, conditions: Conditions) -> Route:
    hops: list[Hop] = []
    state: _State | None = best
    last = span.last
    while state is not None:
        hops.append(Hop(state.server, Span(state.entered, last)))
        last, state = state.entered, state.before
    route = with_relays(tuple(reversed(hops)), conditions)
    return Route(route.hops, route.relayed_links, best.cost + _rtt(best.server, conditions) / 2)


def _ranges(blocks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Sorted blocks as half-open ranges."""
    ranges: list[tuple[int, int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block:
            ranges[-1] = (ranges[-1][0], block + 1)
        else:
            ranges.append((block, block + 1))
    return tuple(ranges)
