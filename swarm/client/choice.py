"""Which route a session takes: at first, when hops go, beside another route, and when there is a faster one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from swarm.client.betterment import is_worth
from swarm.client.chunks import best_chunk, pipeline_seconds, stage
from swarm.client.fitness import Misfit
from swarm.client.routing import find_route, told
from swarm.client.standby import SAME_PEER_MS
from swarm.client.trust import Needs
from swarm.client.view import View
from swarm.errors import MissingBlocks, NoServerFits, SwarmError
from swarm.types import PeerId, Route, ServerRecord, Span


class Choice:
    """What decides it, for one session. `pins`: fingerprints that blocks must have; `only`: the route, and no other.

    `apart`: what it costs to be on a peer, for a standby; `wholly_apart`: on none of them.
    """

    def __init__(
        self,
        view: View,
        span: Span,
        pins: Mapping[int, bytes],
        apart: Callable[[], Mapping[PeerId, float]] | None = None,
        only: Route | None = None,
        *,
        wholly_apart: bool = False,
    ) -> None:
        self._view = view
        self._span = span
        self._pins = pins
        self._apart = apart
        self._only = only
        self._wholly_apart = wholly_apart

    def look(self, needs: Needs) -> None:
        """Whether there is a route. Raises MissingBlocks, and LimitExceeded where more is asked than anybody gives."""
        try:
            self._view.route(self._span, needs, self._pins)
        except NoServerFits as unfit:
            if unfit.beyond is not None:
                raise unfit.beyond from None
            raise

    def misfits(self, needs: Needs) -> list[Misfit]:
        """The servers that cannot be used now, and why."""
        return self._view.misfits(needs, self._pins)

    def next(self, route: Route | None, lost: set[int], leaving: set[int], needs: Needs) -> Route:
        """What follows `route`, whose hops at `lost` are gone: keep what lives; fill the gaps; else begin anew. A hop
        that leaves is kept only if nobody can follow it. Raises MissingBlocks, NoServerFits."""
        if self._only is not None:
            return self._only
        apart = self._keep_away()
        if route is not None:
            for gone in (lost | leaving, lost) if leaving else (lost,):
                try:
                    return self._checked(self._view.repair(route, gone, needs, self._pins, apart))
                except MissingBlocks:
                    continue
        return self._checked(self._view.route(self._span, needs, self._pins, apart))

    def _checked(self, route: Route) -> Route:
        """Raises MissingBlocks where a standby would be nowhere else than what it stands by for, or, where that is not
        enough, not wholly elsewhere."""
        apart = self._keep_away()
        shared = [apart.get(hop.peer_id, 0.0) >= SAME_PEER_MS for hop in route.hops]
        if any(shared) and self._wholly_apart:
            gaps = tuple((hop.span.first, hop.span.last) for hop, same in zip(route.hops, shared, strict=True) if same)
            raise MissingBlocks(f"no second server hosts blocks {told(gaps)}", gaps)
        if apart and all(shared):
            span = self._span
            raise MissingBlocks(f"no other server hosts any of the blocks {span}", ((span.first, span.last),))
        return route

    # ---- beside another route ---------------------------------------------------------------------------------

    def _keep_away(self) -> Mapping[PeerId, float]:
        return self._apart() if self._apart is not None else {}

    def shared(self, route: Route) -> set[PeerId]:
        """The peers on a route that are to be kept away from."""
        apart = self._keep_away()
        return {hop.peer_id for hop in route.hops if apart.get(hop.peer_id, 0.0) >= SAME_PEER_MS}

    def spared(self, route: Route, needs: Needs) -> set[PeerId]:
        """Those of them that others can follow by now."""
        try:
            other = self._view.route(self._span, needs, self._pins, self._keep_away())
        except SwarmError:
            return set()
        return self.shared(route) - {hop.peer_id for hop in other.hops}

    # ---- a faster route ---------------------------------------------------------------------------------------

    def outdone(self, route: Route, needs: Needs, steps: int, positions: int) -> set[PeerId]:
        """The peers of a route to leave for a faster one, after so many steps, with so many positions to replay; none
        where that is not worth it."""
        best = self._best(route, needs)
        if best is None:
            return set()
        seen = {record.peer_id: record for record in self._view.seen()}
        own = [replace(hop.server, contract=hop.server.contract.on(hop.span), queue=0) for hop in route.hops]
        own = [replace(each, decode_ms=seen.get(each.peer_id, each).decode_ms) for each in own]
        try:
            now = find_route(own, self._span, self._view.conditions(needs, self._pins))
        except SwarmError:
            return set()
        stages = [stage(hop) for hop in best.hops]
        replay = pipeline_seconds(positions, best_chunk(positions, stages), stages)
        if not is_worth(now.cost_ms, best.cost_ms, steps, replay):
            return set()
        return {hop.peer_id for hop in route.hops} - {hop.peer_id for hop in best.hops}

    def _best(self, route: Route, needs: Needs) -> Route | None:
        """The best route as if `route` were not there: what it makes servers wait for is no reason to leave them."""
        if self._only is not None or self._keep_away():
            return None
        mine = {hop.peer_id for hop in route.hops}
        records: list[ServerRecord] = [replace(r, queue=0) if r.peer_id in mine else r for r in self._view.seen()]
        try:
            return find_route(records, self._span, self._view.conditions(needs, self._pins))
        except SwarmError:
            return None
