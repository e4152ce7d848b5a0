"""What servers computed is computed once more by others, and who was wrong is found out.

A whole route is replayed from this client's own inputs, so that nobody's word counts for anything: what a server says
that it received or sent could be chosen to put another in the wrong. Where two routes differ a third one, of other
operators, decides; then each server of the wrong route stands in the right one, alone, to be found out.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from swarm.client.accusing import Accuser
from swarm.client.claim import Claim
from swarm.client.comparing import Comparison, Verdict, agreement, codec_floor, errors, judge
from swarm.client.integrity import Integrity
from swarm.client.operators import strangers
from swarm.client.replay import TELL_TALE, Past, Replays
from swarm.client.routing import find_route, with_relays
from swarm.client.standby import apart_from
from swarm.client.trust import Needs
from swarm.client.view import View
from swarm.errors import MissingBlocks, SwarmError
from swarm.net.base import Host
from swarm.types import Hop, PeerId, Route, ServerRecord, Span
from swarm.wire.codecs import Array, values_of

log = logging.getLogger(__name__)

SCATTER_MS = 5.0
"""A block: by so much at most, by chance, one server is preferred to another for an audit, so that nobody can arrange
to be the one that audits a friend."""


LEAD = 2
"""Two operators that collude are never by so much more than the one that they would have convicted, where there is a
fourth to be asked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of it. `first`: from which position on what was claimed is wrong; `wrong`: who is convicted of it;
    `undecided`: two routes differ, and there is no third; `against`: which of the two first ones are wrong."""

    first: int | None = None
    wrong: frozenset[PeerId] = field(default_factory=frozenset)
    undecided: bool = False
    against: tuple[int, ...] = ()


class Auditor:
    """Audits for one session. What it finds is in `view.trust.integrity`, for all.

    `noise`: what honest servers may be apart at any position; None: as was learned, the first position left out.
    """

    def __init__(
        self, host: Host, view: View, pins: Mapping[int, bytes], rng: random.Random, noise: float | None = None
    ) -> None:
        self._noise = noise
        self._view = view
        self._pins = pins
        self._random = rng
        self._replays = Replays(host, view, pins)
        self._accuser = Accuser(self._replays, view, pins)

    @property
    def _integrity(self) -> Integrity:
        return self._view.trust.integrity

    async def audit(self, claim: Claim) -> Finding:
        """Compare with what another route computes.

        Raises MissingBlocks where there is none, SwarmError or TimeoutError where it fails: nobody is the wiser then.
        """
        other = self._other(claim.route, claim.past)
        seen = await self._rows(other, claim)
        comparison = self._compare(claim, _rows_of(self._view, claim.outputs), seen, claim.route, other)
        log.debug("audit of %s by %s: %s", claim.route, other, comparison)
        if comparison.verdict is Verdict.PASS:
            self._credit(claim.route, other, comparison)
            return Finding()
        return await self.decide(claim, other, seen, comparison)

    async def arbitrate(self, one: Claim, other: Claim) -> Finding:
        """Which of two that differ is wrong."""
        ours, theirs = (_rows_of(self._view, claim.outputs) for claim in (one, other))
        return await self.decide(one, other.route, theirs, self._compare(one, ours, theirs, one.route, other.route))

    async def decide(self, claim: Claim, other: Route, seen: Array, comparison: Comparison) -> Finding:
        """Two routes differ: ask further ones, of other operators, until those that have come to the same are two more
        than any others that have; with nobody left to ask, one more."""
        heard = [(claim.route, _rows_of(self._view, claim.outputs)), (other, seen)]
        comparisons = {(0, 1): comparison}
        while (found := _agreed(comparisons, LEAD)) is None:
            try:
                route = self._stranger([route for route, _ in heard], claim.past)
                rows = await self._rows(route, claim)
            except (SwarmError, TimeoutError) as error:
                if (found := _agreed(comparisons, 1)) is not None:
                    break
                words = "%s and %s differ by %.3g, and nobody decides: %s"
                log.warning(words, claim.route, other, comparison.worst, error)
                return Finding(undecided=comparison.verdict is Verdict.FAIL)
            for index, (before, theirs) in enumerate(heard):
                comparisons[index, len(heard)] = self._compare(claim, theirs, rows, before, route)
            heard.append((route, rows))
        (one, two), against = found
        self._credit(heard[one][0], heard[two][0], comparisons[one, two])
        wrong = frozenset[PeerId]()
        for index, (route, _) in enumerate(heard):
            if index not in (one, two, *against) and comparisons[_pair(one, index)].verdict is not Verdict.PASS:
                sound = {hop.peer_id for hop in heard[one][0].hops}
                self._integrity.doubted({hop.peer_id for hop in route.hops} - sound, time.time())
        for index in against:
            route = heard[index][0]
            log.warning("%s differs by %.3g from %s", route, comparisons[_pair(one, index)].worst, heard[one][0])
            wrong |= await self._find_out(claim, route, *heard[one])
        first = comparisons[_pair(one, 0)].first if 0 in against else None
        return Finding(first, wrong, against=tuple(index for index in against if index < 2))

    # ---- who it was -------------------------------------------------------------------------------------------

    async def _find_out(self, claim: Claim, wrong: Route, right: Route, told: Array) -> frozenset[PeerId]:
        """Convict those servers of the wrong route that make the right one wrong; where none does, doubt all."""
        now, sound = time.time(), {hop.peer_id for hop in right.hops}
        suspects = [hop for hop in wrong.hops if hop.peer_id not in sound]
        guilty = suspects if len(wrong.hops) == 1 else [
            hop for hop in suspects if await self._spoils(hop, claim, right, told)
        ]  # fmt: skip
        for hop in guilty:
            try:
                # First, as sessions that used it end when it is convicted, and this audit with its own.
                await self._accuser.accuse(hop, claim, right)
            finally:
                self._integrity.convict(hop.peer_id, "computed wrong, as two others showed", now)
                log.warning("%s computes %s wrong and is not used any more", hop.peer_id, hop.span)
        if not guilty:
            self._integrity.doubted((hop.peer_id for hop in suspects), now)
        return frozenset(hop.peer_id for hop in guilty)

    async def _spoils(self, hop: Hop, claim: Claim, right: Route, told: Array) -> bool:
        """Whether the right route is wrong with this hop in it, generating as the claim was."""
        route = self._with(right, hop)
        last = min(claim.positions[0] + TELL_TALE, claim.past.length)
        tried = Claim(claim.sequence, claim.past.upto(last), [p for p in claim.positions if p < last], b"", route)
        try:
            rows = await self._rows(route, tried, one_by_one=True)
        except (SwarmError, TimeoutError) as error:
            log.info("%s could not be tried: %s", hop.peer_id, error)
            return False
        return self._compare(tried, told[: len(rows)], rows, right, route).verdict is Verdict.FAIL

    def _with(self, route: Route, hop: Hop) -> Route:
        """The route with this hop in the place of what it covers."""
        hops = [hop]
        for each in route.hops:
            before = each.span.first, min(each.span.last, hop.span.first)
            after = max(each.span.first, hop.span.last), each.span.last
            hops += [Hop(each.server, Span(*part)) for part in (before, after) if part[0] < part[1]]
        hops.sort(key=lambda each: each.span.first)
        return with_relays(tuple(hops), self._view.conditions(Needs(), self._pins))

    def _credit(self, one: Route, other: Route, comparison: Comparison) -> None:
        """Servers that came to the same, and are not in both, have passed."""
        ones, others = {hop.peer_id for hop in one.hops}, {hop.peer_id for hop in other.hops}
        self._integrity.passed(ones ^ others, comparison.usual, time.time())

    # ---- what is compared -------------------------------------------------------------------------------------

    async def _rows(self, route: Route, claim: Claim, *, one_by_one: bool = False) -> Array:
        """What the route makes of the claimed positions."""
        outputs = await self._replays.along(route, claim.past, one_by_one=one_by_one)
        rows = _rows_of(self._view, outputs)
        return rows[[position - claim.past.first for position in claim.positions]]

    def _compare(self, claim: Claim, ours: Array, theirs: Array, one: Route, other: Route) -> Comparison:
        """Outputs of two routes at the claimed positions."""
        inputs = _rows_of(self._view, claim.past.inputs)[list(claim.positions)]
        known = self._view.contract.dtype in FLOATS
        off = errors(inputs, ours, theirs) if known else np.where((ours == theirs).all(axis=1), 0.0, np.inf)
        floor = self._floor(inputs, ours, len(one.hops) + len(other.hops) + 2) if known else 0.0
        noise = self._integrity.noise if self._noise is None else self._noise
        return judge(off, claim.positions, noise, floor, also_first=self._noise is not None)

    def _floor(self, inputs: Array, outputs: Array, links: int) -> float:
        """What codecs on so many links are off together, relative to what blocks add."""
        if self._view.config.codec == "raw":
            return 0.0
        return codec_floor(inputs, outputs, links)

    # ---- routes -----------------------------------------------------------------------------------------------

    def _other(self, route: Route, past: Past) -> Route:
        """A route beside this one, whoever it may be. Raises MissingBlocks where there is nothing to compare with."""
        try:
            return self._stranger([route], past)
        except MissingBlocks:
            pass  # of some blocks at least there may be another server
        apart = apart_from(route, self._view.records)
        found = self._chosen(self._view.records, route.span, past, apart)
        if {hop.peer_id for hop in found.hops} <= {hop.peer_id for hop in route.hops}:
            raise MissingBlocks(f"nobody else hosts any of the blocks {route.span}")
        return found

    def _stranger(self, routes: Sequence[Route], past: Past) -> Route:
        """A route of peers and operators that are in none of these. Raises MissingBlocks."""
        known = [hop.server for route in routes for hop in route.hops]
        return self._chosen(strangers(self._view.records, known), routes[0].span, past, {})

    def _chosen(self, records: Iterable[ServerRecord], span: Span, past: Past, apart: Mapping[PeerId, float]) -> Route:
        scattered = {r.peer_id: self._random.uniform(0.0, SCATTER_MS) for r in self._view.records}
        costs = {peer: cost + apart.get(peer, 0.0) for peer, cost in scattered.items()}
        needs = Needs(1, past.length, past.length)
        return find_route(records, span, self._view.conditions(needs, self._pins, costs))


FLOATS = ("float32", "bfloat16", "float16")


def _agreed(comparisons: Mapping[tuple[int, int], Comparison], lead: int) -> tuple[tuple[int, int], list[int]] | None:
    return agreement({pair: each.verdict for pair, each in comparisons.items()}, lead)


def _pair(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


def _rows_of(view: View, rows: bytes) -> Array:
    """Rows as numbers, of a dtype that is none as bytes."""
    values = values_of(rows, view.contract.dtype, view.contract.row_bytes)
    return np.frombuffer(rows, np.uint8).reshape(-1, view.contract.row_bytes) if values is None else values
