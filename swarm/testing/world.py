"""A whole swarm on the simulated network: real servers and real sessions, over blocks that are hashes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from swarm.accounting.account import Account
from swarm.client.matrices import NOTHING, Matrices
from swarm.client.paying import Payer
from swarm.client.session import Notice, Session
from swarm.client.training import Training
from swarm.client.view import View
from swarm.config import SCHEMES, ClientConfig, PeerLimits, ServerConfig
from swarm.contract import UNQUANTIZED, Contract
from swarm.net.guard import Guard, GuardedHost
from swarm.net.identity import Identity
from swarm.server.handler import Handler
from swarm.server.hosted import Hosted, Limits
from swarm.server.runner import Runner
from swarm.tasks import ended
from swarm.testing.conditions import LinkConditions
from swarm.testing.engine import InlineEngine
from swarm.testing.exact import ROW, Arithmetic, ExactRunner, embed, token_of
from swarm.testing.network import MemoryDirectory, MemoryHost, SimulatedNetwork
from swarm.types import ModelInfo, ServerRecord, ServerState, Span
from swarm.wire.codecs import offered

PARAMETERS = 1_000_000
"""Of a block, as far as receipts are concerned."""


@dataclass
class SimulatedServer:
    """A server as a process would be: host, engine, handler, announcements."""

    world: World
    name: str
    span: Span
    host: MemoryHost
    directory: MemoryDirectory
    handler: Handler
    record: ServerRecord
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def hosted(self) -> Hosted:
        """What it serves."""
        return self.handler.hosted[0]

    @property
    def runner(self) -> ExactRunner:
        """The runner of an exact simulation."""
        assert isinstance(self.hosted.engine.runner, ExactRunner)
        return self.hosted.engine.runner

    def bytes_held(self) -> int:
        """KV cache that is held for sessions: all that there is, but for what the prefix cache says that it owns."""
        return self.hosted.engine.runner.bytes_held() - self.hosted.prefixes.kv_bytes

    async def announce(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            busy = self.hosted.statistics()
            self.record = replace(self.record, expires=now + 60.0, free_tokens=busy.free_positions, queue=busy.queue)
            await self.directory.announce(self.record, self.world.model)
            await asyncio.sleep(20.0)

    async def drain(self, timeout: float = 60.0) -> None:
        await ended(self.tasks.pop(0))  # the announcing
        self.record = replace(self.record, state=ServerState.DRAINING)
        await self.directory.announce(self.record, self.world.model)
        await self.handler.drain(timeout)
        await self.directory.withdraw(self.record)
        await self.stop()

    async def stop(self) -> None:
        me = asyncio.current_task()  # of those, where it drains
        await ended(*(task for task in self.tasks if task is not me))
        for hosted in self.handler.hosted:
            await hosted.engine.close()
        await self.handler.close()
        await self.host.close()


class World:
    """A swarm of `blocks` blocks on a simulated network; all randomness from `seed`. `joined`: runs of blocks that must
    stay together."""

    def __init__(
        self,
        seed: int = 0,
        *,
        blocks: int = 9,
        conditions: LinkConditions | None = None,
        make_runner: Callable[[], Runner] = ExactRunner,
        arithmetic: Arithmetic | None = None,
        server_config: ServerConfig | None = None,
        peer_limits: PeerLimits | None = None,
        joined: tuple[Span, ...] = (),
        step_seconds: Callable[[int], float] = lambda positions: 0.002 + 0.0002 * positions,
    ) -> None:
        self.network = SimulatedNetwork(seed, conditions)
        self.random = random.Random(seed)
        self.servers: dict[str, SimulatedServer] = {}
        self.clients: list[MemoryHost] = []
        self.notices: list[Notice] = []
        self.runners: list[Runner] = []
        self.arithmetic = arithmetic or Arithmetic(ROW.size, embed, token_of, lambda span: make_runner())
        self.model = ModelInfo("model", "exact", blocks, self.arithmetic.hidden_size, 4096)
        self.joined = joined
        self.peer_limits = peer_limits
        self.server_config = server_config or ServerConfig()
        self.step_seconds = step_seconds
        self._sessions: list[Session] = []
        self._views: list[View] = []
        self._happenings: list[asyncio.Task[None]] = []

    @property
    def span(self) -> Span:
        return Span(0, self.model.blocks)

    @property
    def contract(self) -> Contract:
        return replace(self.model.contract(self.arithmetic.dtype, self.arithmetic.row_bytes), joined=self.joined)

    async def add(
        self,
        name: str,
        span: Span,
        *,
        fingerprint: bytes = b"",
        decode_ms: float = 1.0,
        codecs: tuple[str, ...] | None = None,
        max_positions: int = 4096,
        runner: Runner | None = None,
        addresses: tuple[str, ...] = (),
        account: Account | None = None,
        identity: Identity | None = None,
        **changes: Any,
    ) -> SimulatedServer:
        """Start a server and wait until it is announced.

        `codecs`: those that it offers; None: all it can; `max_positions`: of one sequence; `runner`: its own;
        `addresses`: beside its own; `account`: in whose name it serves; `identity`: signs what it sends, its peer id is
        `name`;
        `changes`: fields of its contract that differ from the others'.
        """
        host = self.network.host(name)
        directory = self.network.directory(host)
        prints = tuple(fingerprint.ljust(32, b"\0") or bytes(32) for _ in span)
        dtype, size = self.arithmetic.dtype, self.arithmetic.hidden_size
        codecs = offered(dtype, size) if codecs is None else codecs
        contract = replace(self.contract.on(span), fingerprints=prints, **changes)
        limits = Limits(directory.verify, max_positions, codecs, (PARAMETERS,) * len(span))
        self.runners.append(self.arithmetic.make_runner(span) if runner is None else runner)
        engine = InlineEngine(self.runners[-1], seconds=self.step_seconds)
        guard = Guard(self.peer_limits)
        door, config = GuardedHost(host, guard), self.server_config
        handler = Handler(host=door, config=config, flight=guard.flight, account=account, identity=identity)
        handler.add(
            Hosted(host=door, engine=engine, contract=contract, limits=limits, config=config, flight=guard.flight)
        )
        await handler.start()
        record = ServerRecord(
            name, contract.announced, addresses=(*host.addresses, *addresses),
            free_tokens=10_000, decode_ms=decode_ms, codecs=codecs, training=handler.hosted[0].trains,
        )  # fmt: skip
        server = SimulatedServer(self, name, span, host, directory, handler, record)
        self.servers[name] = server
        server.tasks.append(asyncio.ensure_future(server.announce()))
        await asyncio.sleep(0.02)
        return server

    async def kill(self, name: str) -> None:
        """As SIGKILL does; the record stays in the directory until it expires."""
        server = self.servers.pop(name)
        self.network.kill(name)
        await server.stop()

    def later(self, seconds: float, happening: Coroutine[Any, Any, Any]) -> None:
        """Let something happen in `seconds`."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            await happening

        self._happenings.append(asyncio.ensure_future(wait()))

    def session(
        self,
        config: ClientConfig | None = None,
        name: str = "",
        view: View | None = None,
        payer: Payer | None = None,
        matrices: Matrices = NOTHING,
    ) -> Session:
        """A session of a client of its own, or of the one of this name, with what it knows in `view`; `payer`: who
        signs for it; `matrices`: of its adapter."""
        host = next((client for client in self.clients if client.peer_id == name and client.alive), None)
        if host is None:
            host = self.network.host(name or f"client{len(self.clients)}")
            self.clients.append(host)
        config = config or ClientConfig()
        contract = replace(self.contract, quantization=SCHEMES[config.quantization or UNQUANTIZED])
        view = view or View(self.network.directory(host), self.model, contract, config, payer=payer)
        session = Session(
            host, view, self.span, config=config, on_notice=self.notices.append,
            rng=random.Random(self.random.random()), matrices=matrices,
        )  # fmt: skip
        self._sessions.append(session)
        return session

    def training(self, config: ClientConfig | None = None) -> Training:
        """What a client of its own computes whole sequences and gradients through."""
        host = self.network.host(f"client{len(self.clients)}")
        self.clients.append(host)
        config = config or ClientConfig()
        view = View(self.network.directory(host), self.model, self.contract, config)
        self._views.append(view)
        return Training(host, view, self.span, config=config, on_notice=self.notices.append)

    async def close(self) -> None:
        """Stop everything. Raises what escaped from any handler."""
        await asyncio.gather(*self._happenings)
        for session in self._sessions:
            await session.close()
            await session.view.close()
        for view in self._views:
            await view.close()
        for server in list(self.servers.values()):
            await server.stop()
        for host in [*self.network.hosts.values()]:
            await host.close()
            if host.failures:
                raise host.failures[0]
