"""Maps for light peers, on the simulated network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from swarm.config import MapConfig
from swarm.contract import Contract
from swarm.errors import NetworkError, StreamClosed
from swarm.gateway.map import MapService, read_map
from swarm.net.base import Stream
from swarm.testing import MemoryDirectory, SimulatedNetwork, run
from swarm.types import ModelInfo, ServerRecord, ServerState, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

INFO = ModelInfo("key", "tiny", blocks=12, hidden_size=64, context_length=2048)
CONFIG = MapConfig(interval=5.0, max_lookers=3)
LIMIT = 1 << 20
CONTRACT = messages.contract_message(INFO.contract("float32"))


class World:
    """A host with a map, one that looks, and a server to be seen."""

    def __init__(self) -> None:
        self.network = SimulatedNetwork()
        self.host = self.network.host("keeper")
        self.looker = self.network.host("looker")
        self.directory = Counting(self.network.directory(self.network.host("server")))
        self.server = ServerRecord(
            self.directory.inner.host.peer_id,
            Contract("key", Span(0, 12), (b"f" * 8,) * 12),
            queue=1,
            name="alice",
        )

    async def announce(self, **changes: object) -> None:
        expires = asyncio.get_running_loop().time() + 1000
        self.server = replace(self.server, expires=expires, **changes)  # type: ignore[arg-type]
        await self.directory.inner.announce(self.server, INFO)

    async def look(self, watch: bool) -> Stream:
        stream = await self.looker.open_stream(self.host.peer_id, messages.MAP_PROTOCOL)
        await stream.send(pb.MapRequest(watch=watch).SerializeToString())
        return stream


class Counting:
    """A directory that counts its readings, and fails when told to."""

    def __init__(self, inner: MemoryDirectory) -> None:
        self.inner = inner
        self.readings = 0
        self.fails = False

    async def models(self) -> list[ModelInfo]:
        self.readings += 1
        if self.fails:
            raise NetworkError("the directory is away")
        return await self.inner.models()

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def simulate(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        await MapService(world.directory, CONFIG).serve(world.host)  # type: ignore[arg-type]
        await world.announce()
        await scenario(world)

    run(main())


async def received(stream: Stream) -> pb.SwarmMap:
    return pb.SwarmMap.FromString(await stream.receive(LIMIT))


async def ended(stream: Stream) -> None:
    with pytest.raises(StreamClosed):
        await stream.receive(LIMIT)


def test_an_asker_sees_what_is_in_the_directory() -> None:
    async def scenario(world: World) -> None:
        await world.directory.inner.announce_node(pb.QueryNode(contract=CONTRACT, name="node"), 10_000)
        stream = await world.look(watch=False)
        seen = await received(stream)
        assert seen == await read_map(world.directory, seen.time)  # type: ignore[arg-type]
        assert [model.name for model in seen.models] == ["tiny"]
        (server,) = seen.servers
        assert (server.peer_id, server.name) == (world.server.peer_id, "alice")
        assert messages.contract_of(server.contract) == Contract("key", Span(0, 12))
        assert [node.name for node in seen.nodes] == ["node"]
        await ended(stream)

    simulate(scenario)


def test_a_watcher_hears_of_changes_and_of_nothing_else() -> None:
    async def scenario(world: World) -> None:
        stream = await world.look(watch=True)
        assert (await received(stream)).servers[0].state == "online"
        waiting = asyncio.ensure_future(received(stream))
        await asyncio.sleep(60)
        assert not waiting.done()
        await world.announce(state=ServerState.DRAINING)
        assert (await waiting).servers[0].state == "draining"

    simulate(scenario)


def test_all_watchers_share_one_reading_and_none_is_made_when_they_have_gone() -> None:
    async def scenario(world: World) -> None:
        streams = [await world.look(watch=True) for _ in range(3)]
        for stream in streams:
            await received(stream)
        await asyncio.sleep(50)
        assert 8 <= world.directory.readings <= 12
        for stream in streams:
            stream.close()
        await asyncio.sleep(10)
        before = world.directory.readings
        await asyncio.sleep(100)
        assert world.directory.readings == before
        assert (await received(await world.look(watch=False))).servers

    simulate(scenario)


def test_what_was_read_a_moment_ago_is_not_read_again() -> None:
    async def scenario(world: World) -> None:
        for _ in range(10):
            await received(await world.look(watch=False))
        assert world.directory.readings == 1

    simulate(scenario)


def test_a_directory_that_fails_is_read_again_later(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        world.directory.fails = True
        waiting = asyncio.ensure_future(received(await world.look(watch=True)))
        await asyncio.sleep(12)
        assert not waiting.done()
        world.directory.fails = False
        assert (await waiting).servers

    simulate(scenario)
    assert "the directory is away" in caplog.text


@pytest.mark.parametrize("frame", [b"\xff\xff", bytes(65), b"\x08"])
def test_a_frame_that_is_no_request_ends_the_stream_and_nothing_else(frame: bytes) -> None:
    async def scenario(world: World) -> None:
        stream = await world.looker.open_stream(world.host.peer_id, messages.MAP_PROTOCOL)
        await stream.send(frame)
        await ended(stream)
        assert world.directory.readings == 0
        assert (await received(await world.look(watch=False))).servers

    simulate(scenario)


def test_who_says_nothing_is_left() -> None:
    async def scenario(world: World) -> None:
        await ended(await world.looker.open_stream(world.host.peer_id, messages.MAP_PROTOCOL))

    simulate(scenario)


def test_one_looker_too_many_gets_nothing() -> None:
    async def scenario(world: World) -> None:
        streams = [await world.look(watch=True) for _ in range(3)]
        for stream in streams:
            await received(stream)
        await ended(await world.look(watch=True))
        streams[0].close()
        await asyncio.sleep(1)
        await received(await world.look(watch=True))

    simulate(scenario)


def test_a_map_that_does_not_fit_a_frame_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    class Large(Counting):
        async def models(self) -> list[ModelInfo]:
            return [replace(INFO, key=str(number)) for number in range(50)]

        async def lookup(self, model: str, blocks: int) -> list[ServerRecord]:
            return [ServerRecord("peer", Contract(model, Span(0, 12)), name="n" * 30_000)]

    async def scenario(world: World) -> None:
        found = await read_map(Large(world.directory.inner), 1.0)  # type: ignore[arg-type]
        assert found.ByteSize() <= LIMIT
        assert 30 < len(found.models) == len(found.servers) < 40

    simulate(scenario)
    assert "not whole" in caplog.text
