"""A server's process: what it hosts on one host in the network, and how it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from swarm.accounting.account import Account
from swarm.config import NetworkConfig, ServerConfig
from swarm.errors import InvalidInput, SwarmError
from swarm.net.base import Directory, Host
from swarm.net.guard import Guard
from swarm.net.identity import Identity
from swarm.net.locator import Locator
from swarm.server.engine import Engine, Pass
from swarm.server.handler import Handler
from swarm.server.plan import Plan
from swarm.server.runner import Runner
from swarm.server.span_life import SpanLife
from swarm.server.thread_engine import ThreadEngine
from swarm.tasks import first_of, until_first
from swarm.types import check_name

log = logging.getLogger(__name__)

WITHDRAW_PATIENCE = 5.0
"""Seconds that saying goodbye may take."""


class Server:
    """Hosts the spans of `plans` on a host that has joined the network, each with an engine and a budget of its own.

    `lost` ends with an error when the host has lost its network for good; `on_state` hears of each span's states, each
    when the directory has taken it; `guard`: what stands before `host`'s handlers; `locator`: knows where this peer is;
    `account`: in whose name it serves; `identity`: signs what sessions are sent, where clients want that.
    Raises InvalidInput where there is no plan, or two are for the same.
    """

    def __init__(
        self,
        *,
        host: Host,
        directory: Directory,
        plans: Sequence[Plan],
        config: ServerConfig | None = None,
        network: NetworkConfig | None = None,
        name: str = "",
        engine: Callable[[Runner], Engine] | None = None,
        lost: Callable[[], Awaitable[None]] | None = None,
        on_state: Callable[[SpanLife], None] = lambda life: None,
        now: Callable[[], float] = time.time,
        guard: Guard | None = None,
        rng: random.Random | None = None,
        locator: Locator | None = None,
        account: Account | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.host = host
        self.guard = guard = guard or Guard()
        self.config = config or ServerConfig()
        self.handler = Handler(host=host, config=self.config, flight=guard.flight, account=account, identity=identity)
        self._lost = lost
        self._make_engine = engine or self._thread_engine
        self.on_pass: Callable[[Pass], None] | None = None
        """Hears of forward passes, if it is set before `run`."""
        self._leaving = asyncio.Event()
        if not plans:
            raise InvalidInput("a server hosts at least one span")
        make = functools.partial(
            SpanLife,
            self.handler,
            directory,
            engine=self._engine,
            network=network or NetworkConfig(),
            name=check_name(name),
            on_state=on_state,
            now=now,
            rng=rng or random.Random(),
            locator=locator,
        )
        self.spans = [make(plan=plan) for plan in plans]

    def leave(self) -> None:
        """Ask the server to leave; `run` returns when its sessions have moved on."""
        self._leaving.set()

    async def run(self) -> None:
        """Live from joining to leaving.

        Returns after `leave`, when every session is gone or the drain timeout has passed. Raises what broke the
        server: SwarmError when a model does not load or the directory cannot be reached at the start, and what
        `lost` raises. In every case the records are withdrawn and all sessions are ended.
        """
        try:
            await self.handler.start()
            await until_first(self._leaving.wait(), self._live(), self._watch())
            await self._drain()
        finally:
            await self._withdraw()
            await self._close()

    async def _live(self) -> None:
        """All spans, until the first cannot go on. They choose in turn, so that each sees what the others took."""
        for index, life in enumerate(self.spans):
            await life.join([other.record for other in self.spans[:index] if other.record is not None])
        await until_first(*(life.run() for life in self.spans))

    async def _watch(self) -> None:
        await (self._lost() if self._lost is not None else asyncio.Event().wait())

    def _engine(self, runner: Runner) -> Engine:
        engine = self._make_engine(runner)
        if self.on_pass is not None:
            engine.on_pass = self.on_pass
        return engine

    def _thread_engine(self, runner: Runner) -> Engine:
        config = self.config
        return ThreadEngine(
            runner,
            batch_positions=config.batch_positions,
            chunk_positions=config.chunk_positions,
            prefill_slice=config.prefill_slice,
        )

    # ---- leaving ----------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Say that this server leaves, and serve on until its sessions are elsewhere."""
        sessions, patience = self.handler.statistics().sessions, self.config.drain_timeout
        log.info("leaving: %d sessions have %.0f s to move on", sessions, patience)
        draining = [life.drain() for life in self.spans if life.hosted is not None] if sessions else []
        await first_of(self.handler.drain(patience), *draining)

    async def _withdraw(self) -> None:
        # Who cannot say goodbye is missed soon enough: the records expire.
        with contextlib.suppress(SwarmError, TimeoutError):
            async with asyncio.timeout(WITHDRAW_PATIENCE):
                await asyncio.gather(*(life.withdraw() for life in self.spans))

    async def _close(self) -> None:
        await self.handler.close()
        for hosted in self.handler.hosted:
            await hosted.engine.close()
