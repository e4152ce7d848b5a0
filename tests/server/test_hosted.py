"""Several spans and models in one server: each has its own engine and budget, and is found by what is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from swarm.client.session import Session
from swarm.client.view import View
from swarm.config import ClientConfig, ServerConfig
from swarm.errors import InvalidInput
from swarm.server.plan import Loaded, Plan
from swarm.server.server import Server
from swarm.server.throughput import Throughput
from swarm.testing import ROW, ExactRunner, InlineEngine, MemoryHost, SimulatedNetwork, generate, reference, run
from swarm.types import ModelInfo, ServerState, Span

PROMPT = [3, 1, 4, 1, 5]
LARGE = ModelInfo("large", "large", 9, 1, 4096)
SMALL = ModelInfo("small", "small", 4, 1, 4096)


def plan(info: ModelInfo, span: str) -> Plan:
    contract = info.contract("exact", ROW.size)

    async def load(taken: Span) -> Loaded:
        prints = tuple(f"{info.key} {block}".encode().ljust(32, b"\0") for block in taken)
        return Loaded(ExactRunner(), replace(contract.on(taken), fingerprints=prints), Throughput(1.0, 1000.0), 4096)

    return Plan(info, lambda others: Span.parse(span), load, contract, settle=False)


class Swarm:
    """A simulated network, the servers on it, and clients."""

    def __init__(self) -> None:
        self.network = SimulatedNetwork()
        self.living: dict[str, tuple[Server, asyncio.Task[None]]] = {}

    async def serve(self, name: str, *plans: Plan, config: ServerConfig | None = None) -> Server:
        host, now = self.network.host(name), asyncio.get_running_loop().time
        directory = self.network.directory(host)
        make = lambda runner: InlineEngine(runner, seconds=lambda positions: 0.01)  # noqa: E731
        server = Server(host=host, directory=directory, plans=plans, config=config, engine=make, now=now)
        self.living[name] = server, asyncio.ensure_future(server.run())
        while any(life.state is not ServerState.ONLINE for life in server.spans):
            await asyncio.sleep(0.1)
        return server

    def session(self, info: ModelInfo, host: MemoryHost | None = None) -> Session:
        host = host or self.network.host(f"client{len(self.network.hosts)}")
        config = ClientConfig(max_wait=20.0)
        view = View(self.network.directory(host), info, info.contract("exact", ROW.size), config)
        return Session(host, view, Span(0, info.blocks), config=config)

    async def end(self) -> None:
        for server, living in self.living.values():
            server.leave()
            await living
            for hosted in server.handler.hosted:
                assert hosted.engine.runner.bytes_held() == hosted.prefixes.kv_bytes


def simulate(main: Any) -> None:
    async def scenario() -> None:
        swarm = Swarm()
        await main(swarm)
        await swarm.end()

    run(scenario())


def test_two_spans_of_one_model_and_another_model_in_one_server() -> None:
    async def main(swarm: Swarm) -> None:
        server = await swarm.serve("both", plan(LARGE, "0:4"), plan(LARGE, "4:9"), plan(SMALL, "0:4"))
        large, small = swarm.session(LARGE), swarm.session(SMALL)
        texts = await asyncio.gather(generate(large, PROMPT, 12), generate(small, PROMPT, 12))
        assert texts == [reference(PROMPT, 12, 9), reference(PROMPT, 12, 4)]
        assert [str(hop.span) for hop in large.route.hops] == ["0:4", "4:9"]  # type: ignore[union-attr]
        assert large.route.relayed_links == {0}, "a server does not dial itself"  # type: ignore[union-attr]
        held = [hosted.statistics() for hosted in server.handler.hosted]
        assert [each.sessions for each in held] == [1, 1, 1]
        assert [each.kv_bytes for each in held] == [8 * 16 * blocks for blocks in (4, 5, 4)]
        await large.close()
        await small.close()

    simulate(main)


def test_each_span_has_a_budget_of_its_own() -> None:
    async def main(swarm: Swarm) -> None:
        config = ServerConfig(cache_bytes=40 * 8 * 4, evict_after=1e6)
        server = await swarm.serve("both", plan(LARGE, "0:9"), plan(SMALL, "0:4"), config=config)
        small = swarm.session(SMALL)
        # As much as the small model's budget holds; the large one's has room for fewer.
        assert await generate(small, PROMPT, 30) == reference(PROMPT, 30, 4)
        large = swarm.session(LARGE)
        assert await generate(large, PROMPT, 8) == reference(PROMPT, 8, 9)
        assert [hosted.statistics().sessions for hosted in server.handler.hosted] == [1, 1]
        await small.close()
        await large.close()

    simulate(main)


def test_a_session_goes_on_elsewhere_when_a_server_of_several_spans_dies() -> None:
    async def main(swarm: Swarm) -> None:
        await swarm.serve("both", plan(LARGE, "0:4"), plan(LARGE, "4:9"))
        await swarm.serve("spare", plan(SMALL, "0:4"), plan(LARGE, "0:9"))
        session = swarm.session(LARGE)
        text = await generate(session, PROMPT, 5)
        swarm.network.kill(session.route.hops[0].peer_id)  # type: ignore[union-attr]
        survivor = {"both": "spare", "spare": "both"}[session.route.hops[0].peer_id]  # type: ignore[union-attr]
        _, living = swarm.living.pop("both" if survivor == "spare" else "spare")
        living.cancel()
        assert await generate(session, [text[-1]], 5) == reference([*PROMPT, *text], 5, 9)
        assert {hop.peer_id for hop in session.route.hops} == {survivor}  # type: ignore[union-attr]
        await session.close()

    simulate(main)


def test_two_spans_that_begin_at_one_block_are_refused() -> None:
    async def main() -> None:
        swarm = Swarm()
        host = swarm.network.host("s")
        plans = [plan(LARGE, "0:4"), plan(LARGE, "0:9")]
        server = Server(host=host, directory=swarm.network.directory(host), plans=plans)
        with pytest.raises(InvalidInput, match="two spans of large that begin at block 0"):
            await server.run()
        with pytest.raises(InvalidInput, match="at least one span"):
            Server(host=host, directory=swarm.network.directory(host), plans=[])

    run(main())
