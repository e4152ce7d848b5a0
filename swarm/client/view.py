"""The swarm as this client last saw it: records, round trips, and what to keep away from for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from swarm.client.routing import Conditions, find_route, repair
from swarm.client.trust import Trust
from swarm.config import ClientConfig
from swarm.contract import Contract
from swarm.errors import MissingBlocks
from swarm.net.base import Directory
from swarm.types import ModelInfo, PeerId, Route, ServerRecord, Span

log = logging.getLogger(__name__)


class View:
    """One model in the swarm, shared by all sessions of a client on it. `contract`: what they ask of servers."""

    def __init__(self, directory: Directory, model: ModelInfo, contract: Contract, config: ClientConfig) -> None:
        self.directory = directory
        self.model = model
        self.contract = contract
        self.config = config
        self.rtt_ms: dict[PeerId, float] = {}
        self.trust = Trust(config)
        self.records: list[ServerRecord] = []
        self.others = 0
        """Servers of this model that compute otherwise."""
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def refresh(self, max_age: float, patience: float | None = None) -> None:
        """Read the directory again unless the last reading is at most `max_age` seconds old; readers share one.

        After `patience` seconds it goes on without this one if something is known: peers of the directory that do not
        answer any more, as one that has just been lost, hold up a reading by seconds.
        """
        if asyncio.get_running_loop().time() - self._read_at <= max_age:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(self._read())
            self._reading.add_done_callback(_retrieve)
        done, _ = await asyncio.wait({self._reading}, timeout=patience if self.records else None)
        for reading in done:
            reading.result()

    async def _read(self) -> None:
        found = await self.directory.lookup(self.model.key, self.model.blocks)
        self.records = [record for record in found if self._fits(record)]
        self.others = len(found) - len(self.records)
        self._read_at = asyncio.get_running_loop().time()

    def _fits(self, record: ServerRecord) -> bool:
        return record.contract.difference(self.contract.on(record.span)) is None

    def conditions(self, positions: int, pins: Mapping[int, bytes]) -> Conditions:
        now = asyncio.get_running_loop().time()
        return Conditions(
            rtt_ms=self.rtt_ms,
            default_rtt_ms=min(self.rtt_ms.values(), default=50.0),
            avoid_peers=frozenset(self.trust.peers.active(now)),
            avoid_links=frozenset(self.trust.links.active(now)),
            pins=pins,
            positions=positions,
        )

    def route(self, span: Span, positions: int, pins: Mapping[int, bytes] = MappingProxyType({})) -> Route:
        """The best route now. `positions`: KV cache that it must hold; `pins`: fingerprints that blocks must have.

        Raises MissingBlocks.
        """
        try:
            return find_route(self.records, span, self.conditions(positions, pins))
        except MissingBlocks as missing:
            if not self.others:
                raise
            text = f"{missing} in {self.contract.numbers}; {self.others} servers compute otherwise"
            raise MissingBlocks(text, missing.blocks) from None

    def repair(self, route: Route, lost: Iterable[int], positions: int, pins: Mapping[int, bytes]) -> Route:
        """`route` with the hops at `lost` replaced. Raises MissingBlocks."""
        return repair(route, lost, self.records, self.conditions(positions, pins))

    def newest(self, record: ServerRecord) -> ServerRecord:
        """The server's record as last read; the one given where the directory has none (any more)."""
        return next((r for r in self.records if r.peer_id == record.peer_id), record)

    def measured(self, peer_id: PeerId, rtt_ms: float) -> None:
        """Fold one measured round trip into the running estimate."""
        self.rtt_ms[peer_id] = 0.7 * self.rtt_ms.get(peer_id, rtt_ms) + 0.3 * rtt_ms


def _retrieve(reading: asyncio.Task[None]) -> None:
    """Nobody may wait any more for a reading that fails."""
    if not reading.cancelled():
        reading.exception()
