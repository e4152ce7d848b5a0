"""Whether a session goes where the beginning of its prompt was computed, though another route is faster. Pure.

Routes are compared by what the whole session takes: its prompt, less what the hops keep of it, and an answer, of which
nobody knows how long it will be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from swarm.client.beginnings import Holding, Match
from swarm.client.chunks import Stage, best_chunk, pipeline_seconds, stage
from swarm.client.routing import Conditions, find_route, repair
from swarm.errors import MissingBlocks
from swarm.types import Hop, HopKey, Route, ServerRecord

ANSWER = 128
"""Tokens that an answer is taken to have."""
MOST_ROUTES = 2
"""Of earlier prompts, that are looked at."""
MOST_GOING = 4
"""Hops of each, the slowest, that are tried to be done without."""


def holdings(matches: Sequence[Match]) -> dict[HopKey, Holding]:
    """The most that each hop keeps of a prompt."""
    found: dict[HopKey, Holding] = {}
    for match in matches:
        for hop, holding in match.held.items():
            if hop not in found or found[hop].positions < holding.positions:
                found[hop] = holding
    return found


def preferred(
    plain: Route, matches: Sequence[Match], positions: int, records: Sequence[ServerRecord], conditions: Conditions
) -> Route:
    """`plain`, or a route over the same blocks on which a prompt of `positions` and its answer take less time, as hops
    keep what `matches` say.

    Of each earlier prompt's route those hops stay that keep something; then those go, one by one, without which it is
    faster. What is left open is filled as after a failure.
    """
    prints = {block: one for hop in plain.hops for block, one in _fingerprints(hop)}
    conditions, held = replace(conditions, pins={**prints, **conditions.pins}), holdings(matches)
    best, least = plain, session_seconds(plain, positions, held, records, conditions)
    routes = {tuple(hop.key for hop in match.route.hops): match.route for match in matches}
    for old in list(routes.values())[:MOST_ROUTES] if math.isfinite(least) else ():
        hops = [_now(hop, records) for hop in old.hops]
        going = {index for index, hop in enumerate(hops) if hop is None or hop.key not in held}
        now = Route(tuple(hop or was for hop, was in zip(hops, old.hops, strict=True)))
        for index in (None, *_slowest(now, going)):
            lost = going if index is None else going | {index}
            route = _without(now, lost, records, conditions)
            seconds = math.inf if route is None else session_seconds(route, positions, held, records, conditions)
            if route is not None and seconds < least:
                best, least, going = route, seconds, lost
    return best


def session_seconds(
    route: Route,
    positions: int,
    held: Mapping[HopKey, Holding],
    records: Sequence[ServerRecord],
    conditions: Conditions,
) -> float:
    """Until a prompt and its answer are there; infinite on a route that cannot be used."""
    own = [
        replace(record, contract=record.contract.on(hop.span))
        for hop in route.hops
        for record in records
        if record.peer_id == hop.peer_id and record.span == hop.server.span
    ]
    try:
        token_ms = find_route(own, route.span, conditions).cost_ms
    except MissingBlocks:
        return math.inf
    stages = [_left(stage(hop), held.get(hop.key), positions) for hop in route.hops]
    return pipeline_seconds(positions, best_chunk(positions, stages), stages) + ANSWER * token_ms / 1000.0


def _left(whole: Stage, holding: Holding | None, positions: int) -> Stage:
    """The passes of a hop, where what it keeps costs none."""
    rest = 1.0 if holding is None else max(positions - holding.positions, 0) / positions
    return Stage(whole.base * rest, whole.per_position * rest)


def _now(hop: Hop, records: Sequence[ServerRecord]) -> Hop | None:
    """The hop, by its server's newest record; None where that does not host it any more."""
    own = [record for record in records if record.peer_id == hop.peer_id and record.span.covers(hop.span)]
    return Hop(min(own, key=lambda record: (len(record.span), -record.expires)), hop.span) if own else None


def _slowest(route: Route, but: set[int]) -> list[int]:
    """The hops without which a route may be faster, as places in it."""
    left = (index for index in range(len(route.hops)) if index not in but)
    return sorted(left, key=lambda index: stage(route.hops[index]).base, reverse=True)[:MOST_GOING]


def _without(route: Route, lost: set[int], records: Sequence[ServerRecord], conditions: Conditions) -> Route | None:
    """The route with others in place of some hops; None where nobody can be, or nothing of it is left."""
    if len(lost) == len(route.hops):
        return None
    try:
        return repair(route, lost, records, conditions) if lost else route
    except MissingBlocks:
        return None


def _fingerprints(hop: Hop) -> list[tuple[int, bytes]]:
    return list(zip(hop.span, hop.server.contract.on(hop.span).fingerprints, strict=True))
