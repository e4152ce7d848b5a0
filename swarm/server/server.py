"""A server's life: choose blocks, say so, load them, serve, leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from swarm._version import __version__
from swarm.config import NetworkConfig, ServerConfig
from swarm.contract import FINGERPRINT_BYTES, Contract
from swarm.errors import SwarmError
from swarm.net.addresses import is_relayed
from swarm.net.base import Directory, Host
from swarm.server.engine import Engine, Pass
from swarm.server.handler import Handler, Offer
from swarm.server.runner import Runner
from swarm.server.thread_engine import ThreadEngine
from swarm.server.throughput import Throughput
from swarm.types import ModelInfo, PeerId, ServerRecord, ServerState, Span, check_name
from swarm.wire.codecs import offered

log = logging.getLogger(__name__)

SETTLE = 1.0
"""Seconds between saying which blocks one takes and looking whether somebody said the same at the same time."""
SETTLE_ROUNDS = 3
MAX_ADDRESSES = 16
"""A record holds no more; the host names the most useful first."""
WITHDRAW_PATIENCE = 5.0
"""Seconds that saying goodbye may take."""
RETRY = 5.0
"""Seconds until a record is announced again after the directory did not take it."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A span that is ready to compute.

    `contract`: with fingerprints of 32 bytes a block; `max_positions`: 0 for no limit; `cache_bytes`: for KV cache and
    history, when it depends on the span.
    """

    runner: Runner
    contract: Contract
    throughput: Throughput
    max_positions: int = 0
    cache_bytes: int | None = None


Choose = Callable[[Sequence[ServerRecord]], Span]
"""Which blocks to host, given the records of all others."""

Load = Callable[[Span], Awaitable[Loaded]]
"""Load a span, off the event loop; a cancelled load may finish in the background but holds up nothing."""


class Server:
    """Hosts one span of one model on a host that has joined the network.

    `choose` and `load` say what to host and how, `contract` in which numbers, of the whole model; without `settle` the
    first choice stands, whoever else joins; `lost` ends with an error when the host has lost its network for good;
    `on_state` hears of each state when the directory has taken it.
    """

    def __init__(
        self,
        *,
        host: Host,
        directory: Directory,
        model: ModelInfo,
        choose: Choose,
        load: Load,
        config: ServerConfig | None = None,
        network: NetworkConfig | None = None,
        settle: bool = True,
        name: str = "",
        contract: Contract | None = None,
        engine: Callable[[Runner], Engine] | None = None,
        lost: Callable[[], Awaitable[None]] | None = None,
        on_state: Callable[[ServerState], None] = lambda state: None,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.host = host
        self.directory = directory
        self.model = model
        self.config = config or ServerConfig()
        self.network = network or NetworkConfig()
        self.name = check_name(name)
        self.contract = contract or model.contract("float32")
        self.state = ServerState.JOINING
        self.span: Span | None = None
        self.handler: Handler | None = None
        self._choose, self._load, self._lost = choose, load, lost
        self._rounds = SETTLE_ROUNDS if settle else 0
        self._make_engine = engine or self._thread_engine
        self._on_state = on_state
        self.on_pass: Callable[[Pass], None] | None = None
        """Hears of forward passes, if it is set before `run`."""
        self._now = now
        self._rng = rng or random.Random()
        self._loaded: Loaded | None = None
        self._record: ServerRecord | None = None
        self._changed = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Ask the server to leave; `run` returns when its sessions have moved on."""
        self._leaving.set()

    async def run(self) -> None:
        """Live from joining to leaving.

        Returns after `leave`, when every session is gone or the drain timeout has passed. Raises what broke the
        server: SwarmError when the model does not load or the directory cannot be reached at the start, and what
        `lost` raises. In every case the record is withdrawn and all sessions are ended.
        """
        tasks = [asyncio.ensure_future(work) for work in (self._leaving.wait(), self._live(), self._watch())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            await self._drain()
        finally:
            await self._withdraw(tasks)
            await self._close()

    async def _live(self) -> None:
        await self._join()
        renewing = asyncio.ensure_future(self._renew())
        try:
            assert self.span is not None
            await self._open(self.span, await self._load(self.span))
            self._enter(ServerState.ONLINE)
            await renewing
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _watch(self) -> None:
        await (self._lost() if self._lost is not None else asyncio.Event().wait())

    # ---- joining ----------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        """Take a span and say so; give way when a peer took the same blocks at the same time."""
        others = await self._others()
        await self._take(self._choose(others))
        for _ in range(self._rounds):
            await asyncio.sleep(SETTLE * self._rng.uniform(0.5, 1.5))
            seen, others = {other.peer_id for other in others}, await self._others()
            if not any(self._gives_way(other, seen) for other in others):
                return
            before = self.span
            await self._take(self._choose(others))
            log.info("a peer took some of blocks %s at the same time; taking %s instead", before, self.span)

    async def _others(self) -> list[ServerRecord]:
        records = await self.directory.lookup(self.model.key, self.model.blocks)
        return [record for record in records if record.peer_id != self.host.peer_id]

    def _gives_way(self, other: ServerRecord, seen: set[PeerId]) -> bool:
        """Of two that join the same blocks unseen by each other, the one with the smaller peer id stays."""
        assert self.span is not None
        overlap = other.span.first < self.span.last and self.span.first < other.span.last
        newcomer = other.state is ServerState.JOINING and other.peer_id not in seen
        return overlap and newcomer and other.peer_id < self.host.peer_id

    async def _take(self, span: Span) -> None:
        if span == self.span:
            return
        # A record is stored under its first block: the new one does not replace the old one elsewhere.
        if self._record is not None and span.first != self._record.span.first:
            await self.directory.withdraw(self._record)
        self.span = span
        await self._announce()

    async def _open(self, span: Span, loaded: Loaded) -> None:
        self._loaded = loaded
        offer = Offer(
            contract=loaded.contract,
            verify=self.directory.verify,
            max_positions=loaded.max_positions,
            codecs=offered(loaded.contract.dtype, loaded.contract.hidden_size),
        )
        if loaded.cache_bytes is not None:
            self.config = replace(self.config, cache_bytes=loaded.cache_bytes)
        engine = self._make_engine(loaded.runner)
        if self.on_pass is not None:
            engine.on_pass = self.on_pass
        self.handler = Handler(host=self.host, engine=engine, offer=offer, config=self.config)
        await self.handler.start()

    def _thread_engine(self, runner: Runner) -> Engine:
        config = self.config
        return ThreadEngine(
            runner,
            batch_positions=config.batch_positions,
            chunk_positions=config.chunk_positions,
            prefill_slice=config.prefill_slice,
        )

    # ---- announcing -------------------------------------------------------------------------------------------

    def _enter(self, state: ServerState) -> None:
        self.state = state
        self._changed.set()

    async def _renew(self) -> None:
        """Announce again when the state changes, else every `record_renewal` s, more or less."""
        while True:
            pause = self.network.record_renewal * self._rng.uniform(0.8, 1.2)
            try:
                await self._announce()
            except SwarmError as error:
                log.warning("the directory did not take the record of blocks %s: %s", self.span, error)
                pause = min(pause, RETRY)
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            self._changed.clear()

    async def _announce(self) -> None:
        before, record = self._record, self._describe()
        self._record = await self.directory.announce(record, self.model)
        log.debug("announced blocks %s as %s, %d tokens free", record.span, record.state.value, record.free_tokens)
        if before is None or before.state is not record.state:
            self._on_state(record.state)

    def _describe(self) -> ServerRecord:
        """This server's record as of now."""
        assert self.span is not None
        addresses = tuple(self.host.addresses)[:MAX_ADDRESSES]
        record = ServerRecord(
            peer_id=self.host.peer_id,
            contract=replace(self.contract.on(self.span), fingerprints=(bytes(FINGERPRINT_BYTES),) * len(self.span)),
            state=self.state,
            addresses=addresses,
            relayed=is_relayed(addresses),
            version=__version__,
            name=self.name,
            expires=self._now() + self.network.record_lifetime,
        )
        return record if self._loaded is None else self._with_load(record, self._loaded)

    def _with_load(self, record: ServerRecord, loaded: Loaded) -> ServerRecord:
        load = self.handler.load() if self.handler is not None else None
        return replace(
            record,
            contract=loaded.contract.announced,
            codecs=offered(loaded.contract.dtype, loaded.contract.hidden_size),
            free_tokens=load.free_tokens if load is not None else 0,
            queue=load.queue if load is not None else 0,
            decode_ms=loaded.throughput.decode_ms,
            prefill_rate=loaded.throughput.prefill_rate,
        )

    # ---- leaving ----------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Say that this server leaves, and serve on until its sessions are elsewhere."""
        if self.handler is None:
            return
        self._enter(ServerState.DRAINING)
        sessions = self.handler.load().sessions
        log.info("leaving: %d sessions have %.0f s to move on", sessions, self.config.drain_timeout)
        await self.handler.drain(self.config.drain_timeout)

    async def _withdraw(self, tasks: Sequence[asyncio.Future[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._record is not None:
            # Who cannot say goodbye is missed soon enough: the record expires.
            with contextlib.suppress(SwarmError, TimeoutError):
                async with asyncio.timeout(WITHDRAW_PATIENCE):
                    await self.directory.withdraw(self._record)

    async def _close(self) -> None:
        if self.handler is not None:
            await self.handler.close()
            await self.handler.engine.close()
