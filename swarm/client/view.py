"""The swarm as this client last saw it: records, round trips, and what to keep away from for a while."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from swarm.client.beginnings import Beginnings
from swarm.client.betterment import Paces
from swarm.client.fitness import Misfit, explained, misfit
from swarm.client.paying import Payer
from swarm.client.routing import Conditions, agreed_fingerprints, find_route, repair
from swarm.client.standings import load, save
from swarm.client.surroundings import explore
from swarm.client.trust import Limits, Needs, Process, Trust
from swarm.config import ClientConfig
from swarm.contract import Contract
from swarm.errors import DaemonFailed, InvalidInput, MissingBlocks, NetworkError, NoServerFits
from swarm.net.base import Directory
from swarm.net.locator import Locator
from swarm.net.record_book import Introducers
from swarm.span import parted
from swarm.tasks import ended, first_of
from swarm.types import LONGEST_NAME, ModelInfo, PeerId, Route, ServerRecord, ServerState, Span, is_called, printable

log = logging.getLogger(__name__)

NOTHING_YET = Needs(1, 1, 1)
FORGETFUL = 60.0
"""Seconds after the directory could not be read in which a reading without any server is not believed: who keeps it may
have begun anew, and servers have not announced themselves yet."""
MOST_MEASURED = 96
"""Servers whose round trips are known, when no more are looked for."""
MOST_NAMES = 8
"""Of models that are told of."""


class View:
    """One model in the swarm, shared by all sessions of a client on it.

    `contract`: what they ask of servers; `locator`: knows where the client is, and how far others are; `introducers`:
    tell of servers before the directory is read; `rng`: sessions spread over routes nearly as good as the best;
    `payer`: signs for what servers do; None: they do it for nobody.
    """

    def __init__(
        self,
        directory: Directory,
        model: ModelInfo,
        contract: Contract,
        config: ClientConfig,
        locator: Locator | None = None,
        introducers: Introducers | None = None,
        rng: random.Random | None = None,
        payer: Payer | None = None,
    ) -> None:
        self.directory = directory
        self.payer = payer
        self.model = model
        self.contract = contract
        self.config = config
        self._locator = locator
        self._introducers = introducers
        self._exploring: asyncio.Task[None] | None = None
        self._rng = rng
        self.rtt_ms: dict[PeerId, float] = {}
        self.trust = Trust(config, contract.dtype)
        if config.standings is not None:
            self.trust.integrity.standings.update(load(config.standings))
        self.records: list[ServerRecord] = []
        """Servers of this model that compute as is asked."""
        self.found: list[ServerRecord] = []
        """All servers of this model, by the last record of each."""
        self.beginnings = Beginnings()
        """Of prompts that were sent before."""
        self._paces = Paces()
        self.has_run = False
        """Whether there has been a route that a session ran on."""
        self.others: list[ModelInfo] = []
        """What the swarm serves instead, if nobody serves this model."""
        self._read_at = self._doubted_until = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    @property
    def usable_payer(self) -> Payer | None:
        """Who signs for what servers do, as long as that can be kept."""
        return self.payer if self.payer is not None and self.payer.usable else None

    async def refresh(self, max_age: float, patience: float | None = None) -> None:
        """Read the directory again unless the last reading is at most `max_age` seconds old; readers share one.

        After `patience` seconds it goes on without this one if something is known: peers of the directory that do not
        answer any more, as one that has just been lost, hold up a reading by seconds. So it does where the directory
        cannot be read: the servers may be there all the same. Raises NetworkError where nothing is known.
        """
        if asyncio.get_running_loop().time() - self._read_at <= max_age:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())
            self._reading.add_done_callback(_retrieve)
        if not self.found and self._introducers is not None:
            await first_of(asyncio.wait({self._reading}), self._be_introduced(self._introducers))
            if self.records and not self._reading.done():
                return
        done, _ = await asyncio.wait({self._reading}, timeout=patience if self.records else None)
        for reading in done:
            try:
                reading.result()
            except DaemonFailed:
                raise
            except NetworkError as error:
                if not self.records:
                    raise
                log.info("going on with the servers that were known: %s", error)

    async def _be_introduced(self, introducers: Introducers) -> None:
        """Take what another peer knows, if that is enough for a route; else wait for the directory, which says all."""
        found = await introducers.servers(self.model.key, self.model.blocks)
        records = [record for record in found if self._fits(record) and record.state is ServerState.ONLINE]
        covered = {block for record in records for block in record.span}
        if len(covered) < self.model.blocks:
            await asyncio.Event().wait()
        if not self.found:
            self._take(found)

    async def _read(self) -> None:
        try:
            found = await self.directory.lookup(self.model.key, self.model.blocks)
        except NetworkError:
            self._doubted_until = asyncio.get_running_loop().time() + FORGETFUL
            raise
        if not found and self.records and asyncio.get_running_loop().time() < self._doubted_until:
            raise NetworkError("the directory, which could not be read before, has no servers")
        self.others = [] if found else await self._others()
        self._take(found)
        self._read_at = asyncio.get_running_loop().time()
        self._look_around()

    def _look_around(self) -> None:
        """Measure servers that may be near, beside whatever goes on."""
        there = {record.peer_id for record in self.records}
        for gone in self.rtt_ms.keys() - there:
            del self.rtt_ms[gone]
        if len(self.rtt_ms) >= MOST_MEASURED or self._locator is None:
            return
        if self._exploring is None or self._exploring.done():
            work = explore(self._locator, self.records, self.rtt_ms, self.measured, self._rng or random.Random())
            self._exploring = asyncio.ensure_future(work)
            self._exploring.add_done_callback(_retrieve)

    def _take(self, found: Sequence[ServerRecord]) -> None:
        self.found = list({(r.peer_id, r.span): r for r in sorted(found, key=lambda r: r.expires)}.values())
        self.records = [record for record in found if self._fits(record)]
        for record in self.found:
            self.trust.peers.started(record.peer_id, Process(record.instance, record.expires))

    async def _others(self) -> list[ModelInfo]:
        """The other models of the swarm; none where somebody has announced this one of late."""
        models = await self.directory.models()
        return [] if any(info.key == self.model.key for info in models) else models

    def conditions(
        self,
        needs: Needs,
        pins: Mapping[int, bytes],
        apart: Mapping[PeerId, float] = MappingProxyType({}),
        *,
        needy: bool = False,
    ) -> Conditions:
        """`needy`: there is no route without whom one would rather keep away from."""
        now = asyncio.get_running_loop().time()
        small = [peer for peer, limits in self.trust.limits.items() if limits.exceeded(needs) is not None]
        small += [record.peer_id for record in self.records if record.contract.places < needs.places]
        small += [record.peer_id for record in self.records if needs.adapted and not record.training]
        careful = self.config.audits or self.config.compare == 2
        if careful:
            doubts = self.trust.integrity.costs({record.peer_id for record in self.records}, time.time())
            apart = {peer: apart.get(peer, 0.0) + doubts.get(peer, 0.0) for peer in {*apart, *doubts}}
        return Conditions(
            rtt_ms=self.rtt_ms,
            default_rtt_ms=min(self.rtt_ms.values(), default=50.0),
            avoid_peers=frozenset([*self._avoided(now, needy=needy), *small]),
            avoid_links=frozenset(self.trust.links.active(now)),
            pins=pins,
            positions=needs.positions,
            apart=apart,
            unproven=self.trust.integrity.unproven(record.peer_id for record in self.records)
            if careful
            else frozenset(),
            here=None if self._locator is None else self._locator.coordinate,
        )

    def keep(self) -> None:
        """Write down who computes right, if that is wanted and anything is new; a disk that is full ends no session."""
        if self.config.standings is not None and self.trust.integrity.changed:
            self.trust.integrity.changed = False
            try:
                save(self.config.standings, self.trust.integrity.standings)
            except InvalidInput as error:
                log.warning("%s", error)

    def _avoided(self, now: float, *, needy: bool = False) -> frozenset[PeerId]:
        peers = self.trust.peers
        return self.trust.integrity.convicted.union(peers.spared(now) if needy else peers.active(now))

    def route(
        self,
        span: Span,
        needs: Needs = NOTHING_YET,
        pins: Mapping[int, bytes] = MappingProxyType({}),
        apart: Mapping[PeerId, float] = MappingProxyType({}),
    ) -> Route:
        """The best route now. `needs`: what it must hold; `pins`: fingerprints that blocks must have; `apart`: in ms a
        block, what else it costs to be on a peer.

        Raises MissingBlocks with what is known of the servers that there are, NoServerFits where waiting is in vain.
        """
        try:
            with contextlib.suppress(MissingBlocks):
                return find_route(self.seen(), span, self.conditions(needs, pins, apart), rng=self._rng)
            return find_route(self.seen(), span, self.conditions(needs, pins, apart, needy=True), rng=self._rng)
        except MissingBlocks as missing:
            narrower = self._narrower(span, needs, pins)
            if narrower is not None:
                return narrower
            if self.others:
                raise self._mistaken(missing) from None
            misfits = self.misfits(needs, pins)
            raise explained(missing, misfits, self.contract) from None

    def _narrower(self, span: Span, needs: Needs, pins: Mapping[int, bytes]) -> Route | None:
        """A route on which servers that give one session so much on a part of their blocks only have one such part."""
        limits = self.trust.limits
        if not any(each.most_blocks(needs) for each in limits.values()):
            return None
        parts = [part for record in self.records for part in parts_of(record, limits.get(record.peer_id), needs)]
        unfit = (record.peer_id for record in self.records if record.contract.places < needs.places)
        avoided = self._avoided(asyncio.get_running_loop().time()).union(unfit)
        try:
            route = find_route(parts, span, replace(self.conditions(needs, pins), avoid_peers=avoided))
        except MissingBlocks:
            return None
        # Two parts of one server take as much of its cache as both together.
        return route if len({hop.peer_id for hop in route.hops}) == len(route.hops) else None

    def repair(
        self,
        route: Route,
        lost: Iterable[int],
        needs: Needs,
        pins: Mapping[int, bytes],
        apart: Mapping[PeerId, float] = MappingProxyType({}),
    ) -> Route:
        """`route` with the hops at `lost` replaced. Raises MissingBlocks."""
        return repair(route, lost, self.seen(), self.conditions(needs, pins, apart))

    def _fits(self, record: ServerRecord) -> bool:
        return record.contract.difference(self.contract.on(record.span)) is None

    def misfits(self, needs: Needs, pins: Mapping[int, bytes]) -> list[Misfit]:
        """The servers that cannot be used now, and why."""
        now, prints = asyncio.get_running_loop().time(), agreed_fingerprints(self.records, pins)
        judged = (misfit(record, self.contract, needs, self.trust, prints, now) for record in self.found)
        return [one for one in judged if one is not None]

    def _mistaken(self, missing: MissingBlocks) -> NoServerFits:
        """Nobody serves this model, but others."""
        name, key = self.model.name, self.model.key[:12]
        namesakes = sorted(info.key[:12] for info in self.others if is_called(info.name, name))
        if namesakes:
            text = f"nobody serves these very files of {name}, key {key}; under that name there are others, of key"
            return NoServerFits(f"{text} {', '.join(namesakes[:MOST_NAMES])}", missing.blocks)
        names = ", ".join(sorted({printable(info.name)[:LONGEST_NAME] for info in self.others})[:MOST_NAMES])
        return NoServerFits(f"nobody serves {name}, key {key}, in this swarm; there are: {names}", missing.blocks)

    async def close(self) -> None:
        """Read no more; a reading that nobody waited for is over then."""
        await ended(*(task for task in (self._reading, self._exploring) if task is not None))

    def observed(self, record: ServerRecord, decode_ms: float) -> None:
        """A session found that a block takes so long at a server, with all the waiting there."""
        self._paces.note(record, decode_ms, asyncio.get_running_loop().time())

    def seen(self) -> Sequence[ServerRecord]:
        """The servers that compute as is asked, as fast as sessions found them of late."""
        return self._paces.corrected(self.records, asyncio.get_running_loop().time())

    def newest(self, record: ServerRecord) -> ServerRecord:
        """The server's record as last read; the one given where the directory has none (any more)."""
        own = [each for each in self.records if each.peer_id == record.peer_id and each.span.covers(record.span)]
        return min(own, key=lambda each: len(each.span), default=record)

    def measured(self, peer_id: PeerId, rtt_ms: float) -> None:
        """Fold one measured round trip into the running estimate."""
        self.rtt_ms[peer_id] = 0.7 * self.rtt_ms.get(peer_id, rtt_ms) + 0.3 * rtt_ms


def _retrieve(reading: asyncio.Task[None]) -> None:
    """Nobody may wait any more for a reading that fails."""
    if not reading.cancelled():
        reading.exception()


def parts_of(record: ServerRecord, limits: Limits | None, needs: Needs) -> list[ServerRecord]:
    """The record, or one for each run of so many of its blocks as the server gives a session that needs this much."""
    blocks = None if limits is None else limits.most_blocks(needs)
    if blocks is None or blocks >= len(record.span):
        return [record]
    firsts = range(record.span.first, record.span.last - blocks + 1) if blocks else ()
    parts = [Span(first, first + blocks) for first in firsts]
    whole = [part for part in parts if parted(part, record.contract.joined) is None]
    return [replace(record, contract=record.contract.on(part)) for part in whole]
