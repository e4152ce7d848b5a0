"""The life of a server on a simulated network, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from swarm.config import CONTROL_FRAME_LIMIT, ServerConfig
from swarm.errors import BadCheckpoint, DaemonFailed, PeerUnreachable
from swarm.server.engine import Engine
from swarm.server.placement import choose_span
from swarm.server.plan import Choose, Load, Loaded, Plan
from swarm.server.runner import Runner
from swarm.server.server import Server
from swarm.server.throughput import Throughput
from swarm.testing import ByteRunner, InlineEngine, MemoryDirectory, MemoryHost, MemoryStream, SimulatedNetwork, run
from swarm.types import ModelInfo, Segment, SequenceKey, ServerRecord, ServerState, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

MODEL = ModelInfo(key="ab" * 16, name="a model", blocks=32, hidden_size=4)
GPU = Throughput(decode_ms=2.0, prefill_rate=20_000.0)


class EchoRunner(ByteRunner):
    """Gives back what it gets; a token of cache costs 100 bytes a block."""

    can_rollback = True
    on_block: Callable[[], None] | None = None

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Any) -> memoryview:
        return memoryview(hidden)

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def truncate(self, sequence: SequenceKey, length: int) -> None: ...
    def free(self, sequence: SequenceKey) -> None: ...

    def bytes_held(self) -> int:
        return 0

    def reserved_bytes(self, span: Span, length: int) -> int:
        return 100 * len(span) * length


def inline(runner: Runner) -> Engine:
    return InlineEngine(runner)


async def load(span: Span) -> Loaded:
    """Ten seconds later, as from a disk."""
    await asyncio.sleep(10.0)
    fingerprints = tuple(bytes([block]) * 32 for block in span)
    contract = MODEL.contract("float32", MODEL.hidden_size * 4).on(span)
    return Loaded(EchoRunner(), replace(contract, fingerprints=fingerprints), GPU)


class Swarm:
    """A simulated network with servers on it, and somebody who looks."""

    def __init__(self) -> None:
        self.network = SimulatedNetwork()
        self.client = self.network.host("client")
        self.view = self.network.directory(self.client)

    def server(
        self,
        name: str,
        span: str = "4:8",
        *,
        choose: Choose | None = None,
        load: Load = load,
        settle: bool = True,
        plans: Sequence[Plan] = (),
        **options: Any,
    ) -> tuple[Server, asyncio.Task[None]]:
        host = self.network.host(name)
        options = {
            "directory": self.network.directory(host),
            "engine": inline,
            "now": asyncio.get_running_loop().time,
            "rng": random.Random(0),
            **options,
        }
        choose = choose or (lambda others: Span.parse(span))
        plans = plans or [Plan(MODEL, choose, load, settle=settle)]
        server = Server(host=host, plans=plans, name=name, **options)
        return server, asyncio.ensure_future(server.run())

    async def records(self) -> list[ServerRecord]:
        return await self.view.lookup(MODEL.key, MODEL.blocks)

    async def session(self, server: str, span: str = "4:8") -> MemoryStream:
        """Open a control stream and a session on it."""
        stream = await self.client.open_stream(server, messages.CONTROL_PROTOCOL)
        wanted = Span.parse(span)
        contract = MODEL.contract("float32", MODEL.hidden_size * 4).on(wanted)
        prints = tuple(bytes([block]) * 8 for block in wanted)
        opening = pb.Open(
            session=random.Random(span).randbytes(16),
            contract=messages.contract_message(replace(contract, fingerprints=prints)),
            positions=10,
        )
        await stream.send(pb.ControlRequest(open=opening).SerializeToString())
        return stream


async def reply(stream: MemoryStream) -> pb.ControlReply:
    return messages.decode(pb.ControlReply, await stream.receive(CONTROL_FRAME_LIMIT))


async def until_online(server: Server, living: asyncio.Task[None]) -> None:
    while any(life.state is not ServerState.ONLINE for life in server.spans):
        if living.done():
            await living
        await asyncio.sleep(0.1)


def simulate(main: Callable[[Swarm], Awaitable[None]]) -> None:
    """Run a scenario in virtual time."""

    async def scenario() -> None:
        await main(Swarm())

    run(scenario())


def test_a_server_joins_goes_online_and_leaves_no_record_behind() -> None:
    async def scenario(swarm: Swarm) -> None:
        states: list[ServerState] = []
        server, living = swarm.server(
            "s1", on_state=lambda life: states.append(life.state), config=ServerConfig(cache_bytes=40_000)
        )
        await asyncio.sleep(5.0)
        (joining,) = await swarm.records()
        assert (joining.state, joining.span, joining.free_tokens) == (ServerState.JOINING, Span(4, 8), 0)

        await until_online(server, living)
        await asyncio.sleep(1.0)
        (online,) = await swarm.records()
        assert online.state is ServerState.ONLINE
        assert online.fingerprints == tuple(bytes([block]) * 8 for block in range(4, 8))
        assert (online.decode_ms, online.prefill_rate, online.free_tokens) == (2.0, 20_000.0, 100)
        assert online.addresses == tuple(server.host.addresses)

        server.leave()
        await living
        assert await swarm.records() == []
        assert states == [ServerState.JOINING, ServerState.ONLINE]

    simulate(scenario)


def test_the_record_is_renewed_for_as_long_as_the_server_lives() -> None:
    async def scenario(swarm: Swarm) -> None:
        server, living = swarm.server("s1")
        await asyncio.sleep(3.0)
        for _ in range(100):
            await asyncio.sleep(7.0)
            assert len(await swarm.records()) == 1
        server.leave()
        await living

    simulate(scenario)


def test_a_directory_that_fails_for_a_while_is_asked_again() -> None:
    class Failing(MemoryDirectory):
        broken = False

        async def announce(self, record: ServerRecord, model: ModelInfo) -> ServerRecord:
            if self.broken:
                raise PeerUnreachable("nobody answers")
            return await super().announce(record, model)

    async def scenario(swarm: Swarm) -> None:
        directory = Failing(swarm.network, MemoryHost(swarm.network, "s1"))
        server, living = swarm.server("s1", directory=directory)
        await until_online(server, living)
        directory.broken = True
        await asyncio.sleep(100.0)
        assert await swarm.records() == []
        directory.broken = False
        await asyncio.sleep(6.0)
        assert len(await swarm.records()) == 1
        server.leave()
        await living

    simulate(scenario)


def test_leaving_while_loading_ends_at_once() -> None:
    async def scenario(swarm: Swarm) -> None:
        server, living = swarm.server("s1")
        await asyncio.sleep(5.0)
        server.leave()
        await living
        assert asyncio.get_running_loop().time() < 6.0
        assert await swarm.records() == []

    simulate(scenario)


def test_a_model_that_does_not_load_is_an_error_and_leaves_no_record_behind() -> None:
    async def broken(span: Span) -> Loaded:
        await asyncio.sleep(3.0)
        raise BadCheckpoint("model-00002-of-00030.safetensors ends early")

    async def scenario(swarm: Swarm) -> None:
        _, living = swarm.server("s1", load=broken)
        with pytest.raises(BadCheckpoint, match="ends early"):
            await living
        assert await swarm.records() == []

    simulate(scenario)


def test_a_lost_network_is_an_error() -> None:
    async def lost() -> None:
        await asyncio.sleep(60.0)
        raise DaemonFailed("p2pd died")

    async def scenario(swarm: Swarm) -> None:
        _, living = swarm.server("s1", lost=lost)
        with pytest.raises(DaemonFailed):
            await living

    simulate(scenario)


def test_draining_tells_sessions_takes_no_new_ones_and_ends_when_they_are_gone() -> None:
    async def scenario(swarm: Swarm) -> None:
        server, living = swarm.server("s1")
        await until_online(server, living)
        session = await swarm.session("s1")
        assert (await reply(session)).WhichOneof("kind") == "opened"

        server.leave()
        assert (await reply(session)).leaving.deadline == server.config.drain_timeout
        await asyncio.sleep(1.0)
        (record,) = await swarm.records()
        assert record.state is ServerState.DRAINING
        late = await swarm.session("s1", "5:8")
        assert (await reply(late)).failure.code == pb.Failure.BUSY
        assert not living.done()

        await session.send(pb.ControlRequest(close=pb.Close()).SerializeToString())
        await asyncio.sleep(1.0)
        assert living.done()
        await living

    simulate(scenario)


def test_draining_ends_when_its_time_is_over() -> None:
    async def scenario(swarm: Swarm) -> None:
        server, living = swarm.server("s1", config=ServerConfig(drain_timeout=20.0))
        await until_online(server, living)
        session = await swarm.session("s1")
        await reply(session)
        before = asyncio.get_running_loop().time()
        server.leave()
        await living
        assert 20.0 <= asyncio.get_running_loop().time() - before < 22.0

    simulate(scenario)


@pytest.mark.parametrize("seed", range(5))
def test_servers_that_join_at_the_same_time_share_the_blocks(seed: int) -> None:
    def choose(rng: random.Random) -> Callable[[Sequence[ServerRecord]], Span]:
        return lambda others: choose_span(others, [1] * MODEL.blocks, MODEL.blocks // 2, rng)

    async def scenario(swarm: Swarm) -> None:
        pairs = [
            swarm.server(f"s{i}", rng=random.Random(seed + i), choose=choose(random.Random(seed + i))) for i in range(2)
        ]
        await asyncio.sleep(20.0)
        assert {str(record.span) for record in await swarm.records()} == {"0:16", "16:32"}
        for server, living in pairs:
            server.leave()
            await living

    simulate(scenario)


def test_blocks_that_were_asked_for_are_hosted_whoever_else_joins() -> None:
    async def scenario(swarm: Swarm) -> None:
        pairs = [swarm.server(f"s{i}", settle=False) for i in range(2)]
        await asyncio.sleep(11.0)
        assert [(str(r.span), r.state) for r in await swarm.records()] == [("4:8", ServerState.ONLINE)] * 2
        for server, living in pairs:
            server.leave()
            await living

    simulate(scenario)
