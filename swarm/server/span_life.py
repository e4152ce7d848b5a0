"""The life of one span that a server hosts: choose blocks, say so, load them, announce them, withdraw them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from swarm._version import __version__
from swarm.config import NetworkConfig
from swarm.contract import FINGERPRINT_BYTES
from swarm.errors import InvalidInput, SwarmError
from swarm.net.addresses import FORWARDED, way_to
from swarm.net.base import Directory
from swarm.net.locator import Locator
from swarm.server.ends import HostedEnds
from swarm.server.engine import Engine
from swarm.server.handler import Handler
from swarm.server.hosted import Hosted, Limits
from swarm.server.nearby import Nearby
from swarm.server.plan import Loaded, Plan
from swarm.server.runner import Runner
from swarm.tasks import until_first
from swarm.types import PeerId, ServerRecord, ServerState, Span
from swarm.wire.codecs import RAW, offered

log = logging.getLogger(__name__)

SETTLE = 1.0
"""Seconds between saying which blocks one takes and looking whether somebody said the same at the same time."""
SETTLE_ROUNDS = 3
MAX_ADDRESSES = 16
"""A record holds no more; the host names the most useful first."""
MOVED = 1.0
"""How often the host's addresses are looked at: where others find this server now, they should hear at once."""
LOOK_AROUND = 120.0
"""How often those near it are measured, in s, more or less; first after a tenth of that."""
RETRY = 5.0
"""Seconds until a record is announced again after the directory did not take it."""


class SpanLife:
    """From choosing to withdrawing. `on_state` hears of each state that the directory has taken.

    `span`, once it is chosen; `hosted`, once it is loaded; `record`, as it was last announced.
    """

    def __init__(
        self,
        handler: Handler,
        directory: Directory,
        *,
        plan: Plan,
        engine: Callable[[Runner], Engine],
        network: NetworkConfig,
        name: str,
        on_state: Callable[[SpanLife], None],
        now: Callable[[], float],
        rng: random.Random,
        locator: Locator | None,
    ) -> None:
        self.plan = plan
        self.state = ServerState.JOINING
        self.moving = False
        """Whether it drains to host other blocks."""
        self.span: Span | None = None
        self.hosted: Hosted | None = None
        self.record: ServerRecord | None = None
        self._contract = plan.contract or plan.model.contract("float32")
        self._handler = handler
        self._host = handler.host
        self._directory = directory
        self._make_engine = engine
        self._network = network
        self._name = name
        self._on_state = on_state
        self._now = now
        self._rng = rng
        self._locator = locator
        self._nearby = None if locator is None else Nearby(locator, rng)
        self._loaded: Loaded | None = None
        self._changed = asyncio.Event()
        self._tried: tuple[str, ...] = ()
        """The addresses of the last record that the directory was given, whether it took it or not."""

    # ---- joining ----------------------------------------------------------------------------------------------

    async def join(self, own: Sequence[ServerRecord] = ()) -> None:
        """Take a span and say so; give way when a peer took the same blocks at the same time.

        `own`: what this server hosts besides. Raises what `choose` raises, and NetworkError.
        """
        others = await self._others(own)
        await self._take(self.plan.choose(others), own)
        for _ in range(SETTLE_ROUNDS if self.plan.settle else 0):
            await asyncio.sleep(SETTLE * self._rng.uniform(0.5, 1.5))
            seen, others = {other.peer_id for other in others}, await self._others(own)
            if not any(self._gives_way(other, seen) for other in others):
                return
            before = self.span
            await self._take(self.plan.choose(others), own)
            log.info("a peer took some of blocks %s at the same time; taking %s instead", before, self.span)

    async def _others(self, own: Sequence[ServerRecord]) -> list[ServerRecord]:
        model = self.plan.model
        records = await self._directory.lookup(model.key, model.blocks)
        others = [record for record in records if record.peer_id != self._host.peer_id]
        return [*others, *(record for record in own if record.model == model.key)]

    def _gives_way(self, other: ServerRecord, seen: set[PeerId]) -> bool:
        """Of two that join the same blocks unseen by each other, the one with the smaller peer id stays."""
        assert self.span is not None
        overlap = other.span.first < self.span.last and self.span.first < other.span.last
        newcomer = other.state is ServerState.JOINING and other.peer_id not in seen
        return overlap and newcomer and other.peer_id < self._host.peer_id

    async def _take(self, span: Span, own: Sequence[ServerRecord]) -> None:
        if span == self.span and self.record is not None and self.record.state is self.state:
            return
        # Of one peer the directory keeps one record of a model for each block at which a span begins.
        if any(record.model == self.plan.model.key and record.span.first == span.first for record in own):
            raise InvalidInput(
                f"this server hosts two spans of {self.plan.model.name} that begin at block {span.first}"
            )
        before, self.span = self.record, span  # from now on nobody announces the old one again
        if before is not None and span.first != before.span.first:
            await self._directory.withdraw(before)
        await self._announce()

    # ---- serving ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Load the span that was taken, and serve it. Ends by an error alone: what `load` raises."""
        await until_first(self._renew(), self._serve(), self._look_around())

    async def _serve(self) -> None:
        while True:
            assert self.span is not None
            self._open(await self.plan.load(self.span))
            self._enter(ServerState.ONLINE)
            await self._until_needed_elsewhere()
            await self._leave_span()
            await self.join(await self._own())

    async def _until_needed_elsewhere(self) -> None:
        """For ever, where the plan knows no other blocks."""
        loop, config = asyncio.get_running_loop(), self._handler.config
        began = loop.time()
        while True:
            await asyncio.sleep(config.rebalance_every * self._rng.uniform(0.5, 1.5))
            if self.plan.better is None or self.record is None:
                continue
            try:
                others = await self._others(await self._own())
            except SwarmError as error:
                log.info("the directory does not say which blocks are needed: %s", error)
                continue
            there = self.plan.better(self.record, others)
            if there is None or (loop.time() - began < config.residence and not _alone(there, others)):
                continue
            if await self._may_go():
                log.info("blocks %s need this server more than blocks %s", there, self.span)
                return

    async def _may_go(self) -> bool:
        """Say that these blocks are given up, and look whether that still is right: others may have said the same."""
        assert self.plan.better is not None and self.record is not None
        self.moving = True
        self._enter(ServerState.DRAINING)
        await asyncio.sleep(SETTLE * self._rng.uniform(1.0, 2.0))
        try:
            others = await self._others(await self._own())
        except SwarmError:
            others = []
        if self.plan.better(self.record, others) is not None:
            return True
        self.moving = False
        self._enter(ServerState.ONLINE)
        return False

    async def _leave_span(self) -> None:
        """Let sessions move to other servers, and the blocks go."""
        assert self.hosted is not None
        await self._handler.release(self.hosted, self._handler.config.drain_timeout)
        self.hosted = self._loaded = None
        self.state = ServerState.JOINING
        self.moving = False

    async def _own(self) -> list[ServerRecord]:
        """What this peer hosts besides, as the directory has it."""
        model = self.plan.model
        records = await self._directory.lookup(model.key, model.blocks)
        mine = [record for record in records if record.peer_id == self._host.peer_id]
        return [record for record in mine if self.record is None or record.span.first != self.record.span.first]

    def _open(self, loaded: Loaded) -> None:
        self._loaded, config = loaded, self._handler.config
        codecs = (RAW,) if loaded.exact_rows else offered(loaded.contract.dtype, loaded.contract.hidden_size)
        if loaded.cache_bytes is not None:
            config = replace(config, cache_bytes=loaded.cache_bytes)
        self.hosted = Hosted(
            flight=self._handler.flight,
            host=self._host,
            engine=self._make_engine(loaded.runner),
            contract=loaded.contract,
            limits=Limits(self._directory.verify, loaded.max_positions, codecs, loaded.parameters),
            config=config,
            offered=loaded.offered,
            ends=None if loaded.ends is None else HostedEnds(loaded.ends),
        )
        self._handler.add(self.hosted)

    async def _look_around(self) -> None:
        """Measure how far those are that can follow, now and then."""
        pause = LOOK_AROUND / 10
        while self._nearby is not None:
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))
            pause = LOOK_AROUND
            try:
                others = await self._others(())
            except SwarmError as error:
                log.info("the directory does not say who is near: %s", error)
                continue
            if self.span is not None and self.state is ServerState.ONLINE:
                await self._nearby.look(self.span, others)
        await asyncio.Event().wait()

    # ---- announcing -------------------------------------------------------------------------------------------

    def _enter(self, state: ServerState) -> None:
        self.state = state
        self._changed.set()

    async def drain(self) -> None:
        """Say that this span is about to go, until it is cancelled."""
        self._enter(ServerState.DRAINING)
        await self._renew()

    async def _renew(self) -> None:
        """Announce again when the state changes, else every `record_renewal` s, more or less."""
        while True:
            pause = self._network.record_renewal * self._rng.uniform(0.8, 1.2)
            self._changed.clear()
            try:
                await self._announce()
            except SwarmError as error:
                log.warning("the directory did not take the record of blocks %s: %s", self.span, error)
                pause = min(pause, RETRY)
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._until_due()

    async def _until_due(self) -> None:
        """Until the state has changed, or where this server is reached."""
        while not self._changed.is_set() and self._tried == self._addresses:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MOVED):
                    await self._changed.wait()

    @property
    def _addresses(self) -> tuple[str, ...]:
        return tuple(self._host.addresses)[:MAX_ADDRESSES]

    async def _announce(self) -> None:
        before, record = self.record, self._describe()
        self._tried = record.addresses
        self.record = await self._directory.announce(record, self.plan.model)
        log.debug("announced blocks %s as %s, %d tokens free", record.span, record.state.value, record.free_tokens)
        if before is None or before.state is not record.state:
            self._on_state(self)

    def _describe(self) -> ServerRecord:
        """This span's record as of now."""
        assert self.span is not None
        addresses = self._addresses
        unknown = (bytes(FINGERPRINT_BYTES),) * len(self.span)
        record = ServerRecord(
            peer_id=self._host.peer_id,
            contract=replace(self._contract.on(self.span), fingerprints=unknown),
            state=self.state,
            addresses=addresses,
            relayed=way_to(addresses) == FORWARDED,
            version=__version__,
            name=self._name,
            expires=self._now() + self._network.record_lifetime,
            coordinate=None if self._locator is None else self._locator.coordinate,
            near=() if self._nearby is None else self._nearby.told(),
            account=self._handler.head(),
        )
        if self._loaded is None or self.hosted is None:
            return record
        return _with_load(record, self._loaded, self.hosted)

    async def withdraw(self) -> None:
        """Say that nothing of it is here any more. Raises NetworkError."""
        if self.record is not None:
            await self._directory.withdraw(self.record)


def _alone(span: Span, others: Sequence[ServerRecord]) -> bool:
    """Whether nobody serves or loads some of these blocks."""
    staying = [other.span for other in others if other.state is not ServerState.DRAINING]
    return any(all(block not in span for span in staying) for block in span)


def _with_load(record: ServerRecord, loaded: Loaded, hosted: Hosted) -> ServerRecord:
    busy = hosted.statistics()
    return replace(
        record,
        contract=loaded.contract.announced,
        codecs=hosted.limits.codecs,
        free_tokens=busy.free_positions,
        queue=busy.queue,
        decode_ms=loaded.throughput.decode_ms,
        prefill_rate=loaded.throughput.prefill_rate,
        prefill_positions=loaded.throughput.prefill_positions,
        training=hosted.trains,
        ends=None if hosted.ends is None else hosted.ends.announced,
    )
