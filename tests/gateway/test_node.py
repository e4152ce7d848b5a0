"""Queries on the simulated network: nodes that die, freeze, are full or talk nonsense, and askers that do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.client.asker import Asker, begun
from swarm.config import AskerConfig, GatewayConfig, NetworkConfig
from swarm.errors import (
    ContextTooLong,
    GenerationFailed,
    InvalidInput,
    MissingBlocks,
    PeerUnreachable,
    ServerBusy,
    SwarmError,
)
from swarm.gateway.node import Announcer, QueryService, fitting, record_of
from swarm.testing import MemoryHost, SimulatedNetwork, run
from swarm.types import ModelInfo
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import QUERY_PROTOCOL

MODEL = ModelInfo("m", "model", 4, 8)
CONFIG = AskerConfig(open_timeout=1.0, silence=3.0, max_wait=30.0)
NEW = 20


def token(seed: int, position: int) -> int:
    return hash((seed, position)) % 1000


def reference(seed: int) -> list[int]:
    return [token(seed, position) for position in range(NEW)]


class Scripted:
    """An answerer whose tokens are a function of seed and position, one every `pace` seconds."""

    model = MODEL
    converses = sees = False
    missing: MissingBlocks | None = None

    def __init__(self, pace: float = 0.1, capacity: int = 4, fails: SwarmError | None = None) -> None:
        self.running = 0
        self.capacity = capacity
        self.pace = pace
        self.fails = fails

    async def look(self) -> MissingBlocks | None:
        return self.missing

    async def answer(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        if self.running >= self.capacity:
            raise ServerBusy("full", 0.5)
        self.running += 1
        try:
            yield pb.QueryReply(accepted=pb.Accepted(model="m", prompt_tokens=1, seed=query.sampling.seed))
            if self.fails is not None:
                raise self.fails
            for position in range(len(query.generated), NEW):
                await asyncio.sleep(self.pace)
                new = token(query.sampling.seed, position)
                yield pb.QueryReply(delta=pb.Delta(tokens=[new], text="x", sent_bytes=position + 1))
            yield pb.QueryReply(finished=pb.Finished(completion_tokens=NEW))
        finally:
            self.running -= 1


class Nodes:
    """Query nodes and an asker on a network of their own."""

    def __init__(self) -> None:
        self.network = SimulatedNetwork()
        self.client = self.network.host("client")
        self.answerers: dict[str, Scripted] = {}
        self.hosts: dict[str, MemoryHost] = {}
        self.asker = Asker(self.client, self.network.directory(self.client), "m", CONFIG)
        self.tasks: list[asyncio.Task[None]] = []

    async def add(self, name: str, answerer: Scripted | None = None, codec: str = "", **numbers: str) -> Scripted:
        host = self.hosts[name] = self.network.host(name)
        answerer = self.answerers[name] = answerer or Scripted()
        await QueryService([answerer], GatewayConfig(open_timeout=2.0, heartbeat=1.0, stuck=5.0)).serve(host)
        contract = answerer.model.contract(**{"dtype": "float32", **numbers})  # type: ignore[arg-type]
        record = lambda: record_of(answerer, name, host.addresses, (), contract, "", codec)  # noqa: E731
        now = asyncio.get_running_loop().time
        announcer = Announcer(self.network.directory(host), NetworkConfig(), record, now)
        self.tasks.append(asyncio.ensure_future(announcer.run()))
        await asyncio.sleep(0.1)
        return answerer

    async def ask(self, seed: int = 5, on_token: Callable[[int], None] = lambda count: None) -> list[int]:
        tokens: list[int] = []
        async for reply in self.asker.ask(pb.Query(text="p", sampling=pb.Sampling(seed=seed))):
            tokens += reply.delta.tokens
            if reply.delta.tokens:
                on_token(len(tokens))
        return tokens

    async def close(self) -> None:
        await asyncio.sleep(10.0)
        assert all(a.running == 0 for n, a in self.answerers.items() if n not in self.network._frozen)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def scenario(work: Callable[[Nodes], Awaitable[None]]) -> None:
    async def main() -> None:
        nodes = Nodes()
        await work(nodes)
        await nodes.close()

    run(main())


@pytest.mark.parametrize("end", ["kill", "freeze"])
@pytest.mark.parametrize("at", [1, 7, NEW - 1])
def test_another_node_goes_on_when_one_is_lost(end: str, at: int) -> None:
    async def work(nodes: Nodes) -> None:
        for name in "abc":
            await nodes.add(name)

        def lose(count: int) -> None:
            if count == at:
                getattr(nodes.network, end)(nodes.asker.nodes[-1])

        assert await nodes.ask(on_token=lose) == reference(5)
        assert len(nodes.asker.nodes) == 2

    scenario(work)


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"quantization": "int8"}, {"codec": "int8"}])
def test_an_answer_goes_on_only_where_it_is_computed_alike(other: dict[str, str]) -> None:
    async def work(nodes: Nodes) -> None:
        await nodes.add("a")

        def lose(count: int) -> None:
            if count == 3:
                nodes.network.kill("a")

        asking = asyncio.ensure_future(nodes.ask(on_token=lose))
        await asyncio.sleep(0.1)
        await nodes.add("other", **other)
        await asyncio.sleep(12.0)
        assert not asking.done()
        await nodes.add("alike")
        assert await asking == reference(5)
        assert nodes.asker.nodes[-1] == "alike"
        assert "other" not in nodes.asker.nodes

    scenario(work)


def test_who_waits_for_a_node_that_computes_alike_is_told_so() -> None:
    async def work(nodes: Nodes) -> None:
        await nodes.add("a", codec="int8")
        busy = Scripted()
        busy.running = 3
        await nodes.add("other", busy)

        def lose(count: int) -> None:
            if count == 1:
                nodes.tasks[0].cancel()
            elif count == 5:
                nodes.network.kill("a")

        with pytest.raises(PeerUnreachable, match="float32, sent as int8"):
            await nodes.ask(on_token=lose)
        busy.running = 0

    scenario(work)


def test_a_node_that_leaves_while_it_answers_is_replaced_and_forgotten() -> None:
    async def work(nodes: Nodes) -> None:
        await nodes.add("a")
        nodes.tasks[0].cancel()
        await asyncio.sleep(0.1)
        assert await nodes.network.directory(nodes.client).query_nodes("m") == []

    scenario(work)


def test_a_full_node_is_left_for_another_and_waited_for_when_all_are_full() -> None:
    async def work(nodes: Nodes) -> None:
        a = await nodes.add("a", Scripted(capacity=1))
        first = asyncio.ensure_future(nodes.ask(1))
        await asyncio.sleep(0.5)
        asker = Asker(nodes.client, nodes.network.directory(nodes.client), "m", CONFIG)
        second = [r async for r in asker.ask(pb.Query(text="p", sampling=pb.Sampling(seed=2)))]
        assert await first == reference(1)
        assert [t for r in second for t in r.delta.tokens] == reference(2)
        assert len(asker.nodes) > 1
        assert a.running == 0

    scenario(work)


def test_a_slow_node_gives_signs_of_life() -> None:
    async def work(nodes: Nodes) -> None:
        await nodes.add("a", Scripted(pace=8.0))
        assert await nodes.ask() == reference(5)
        assert nodes.asker.nodes == ["a"]

    scenario(work)


class Waiting(Scripted):
    """One that has to wait for blocks, and says so."""

    async def answer(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        yield pb.QueryReply(accepted=pb.Accepted(model="m", prompt_tokens=1, seed=query.sampling.seed))
        while True:
            yield pb.QueryReply(waiting=pb.Waiting(first=1, last=2))
            await asyncio.sleep(5.0)


def test_a_node_that_waits_for_blocks_is_left_for_one_that_has_them() -> None:
    async def work(nodes: Nodes) -> None:
        await nodes.add("a", Waiting())
        busier = await nodes.add("b")
        busier.running = 3
        await asyncio.sleep(25.0)
        assert await nodes.ask() == reference(5)
        assert nodes.asker.nodes == ["a", "b"]
        busier.running = 0

    scenario(work)


def test_what_no_node_can_answer_is_an_error_at_once() -> None:
    for error in (InvalidInput("no"), ContextTooLong("no")):

        async def work(nodes: Nodes, error: SwarmError = error) -> None:
            await nodes.add("a", Scripted(fails=error))
            await nodes.add("b")
            nodes.answerers["b"].running = 3
            await asyncio.sleep(30.0)
            with pytest.raises(type(error)):
                await nodes.ask()
            nodes.answerers["b"].running = 0

        scenario(work)


def test_a_query_that_is_too_large_for_every_node_is_an_error_before_any_is_asked() -> None:
    async def work(nodes: Nodes) -> None:
        with pytest.raises(InvalidInput, match="smaller pictures"):
            await anext(nodes.asker.ask(pb.Query(text="A" * (4 << 20))))

    scenario(work)


def test_nodes_that_fail_one_after_the_other_are_an_error_in_the_end() -> None:
    async def work(nodes: Nodes) -> None:
        for name in "abcdefghi":
            await nodes.add(name, Scripted(fails=GenerationFailed("broken")))
        with pytest.raises(GenerationFailed):
            await nodes.ask()

    scenario(work)


def test_no_node_at_all_is_waited_for() -> None:
    async def work(nodes: Nodes) -> None:
        with pytest.raises(PeerUnreachable):
            await nodes.ask()
        asking = asyncio.ensure_future(nodes.ask())
        await asyncio.sleep(5.0)
        await nodes.add("late")
        assert await asking == reference(5)

    scenario(work)


def test_who_stops_asking_ends_the_query() -> None:
    async def work(nodes: Nodes) -> None:
        answerer = await nodes.add("a")
        asking = asyncio.ensure_future(nodes.ask())
        await asyncio.sleep(1.0)
        assert answerer.running == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.5)
        assert answerer.running == 0

    scenario(work)


LOSSES = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0.0, 6.0), st.sampled_from(["kill", "freeze"])),
    max_size=3,
    unique_by=lambda t: t[0],
)


@given(LOSSES, st.integers(1, 1 << 62), st.integers(1, 2))
@settings(max_examples=300)
def test_the_text_is_the_same_whatever_nodes_are_lost(
    losses: list[tuple[int, float, str]], seed: int, capacity: int
) -> None:
    async def work(nodes: Nodes) -> None:
        for index in range(4):
            await nodes.add(str(index), Scripted(capacity=capacity))

        async def lose(index: int, when: float, how: str) -> None:
            await asyncio.sleep(when)
            getattr(nodes.network, how)(str(index))

        happening = [asyncio.ensure_future(lose(*loss)) for loss in losses]
        assert await nodes.ask(seed) == reference(seed)
        await asyncio.gather(*happening)

    scenario(work)


# ---- askers and nodes that do not keep to the protocol ----------------------------------------------------------


async def say(nodes: Nodes, *frames: bytes) -> list[pb.QueryReply]:
    """What a node replies to these bytes."""
    stream = await nodes.client.open_stream("a", QUERY_PROTOCOL)
    replies: list[pb.QueryReply] = []
    try:
        for frame in frames:
            await stream.send(frame)
        while True:
            replies.append(pb.QueryReply.FromString(await stream.receive(1 << 20)))
    except SwarmError:
        return replies


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_are_answered_or_refused_and_disturb_nobody(junk: bytes) -> None:
    async def work(nodes: Nodes) -> None:
        await nodes.add("a")
        good = asyncio.ensure_future(nodes.ask())
        await asyncio.sleep(0.5)
        replies = await say(nodes, junk)
        assert replies[-1].WhichOneof("kind") in ("failure", "finished")
        assert await good == reference(5)

    scenario(work)


def test_who_says_nothing_or_too_much_is_let_go() -> None:
    async def work(nodes: Nodes) -> None:
        answerer = await nodes.add("a")
        query = pb.Query(text="p").SerializeToString()
        assert await say(nodes) == []
        assert [r.WhichOneof("kind") for r in await say(nodes, bytes(5 << 20))] == []
        assert len(await say(nodes, query, query)) < NEW
        assert answerer.running == 0
        assert await nodes.ask() == reference(5)

    scenario(work)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"junk",
        pb.QueryReply(delta=pb.Delta(tokens=[1], sent_bytes=0)).SerializeToString(),
        bytes(5 << 20),
    ],
)
def test_a_node_that_talks_nonsense_is_left(reply: bytes) -> None:
    async def work(nodes: Nodes) -> None:
        async def nonsense(stream: Any) -> None:
            query = pb.Query.FromString(await stream.receive(1 << 20))
            first = pb.Delta(tokens=[token(query.sampling.seed, 0)], text="x", sent_bytes=1)
            await stream.send(pb.QueryReply(delta=first).SerializeToString())
            await stream.send(reply)
            await asyncio.sleep(100.0)

        await nodes.add("a", Scripted(capacity=1000))
        await nodes.hosts["a"].serve(QUERY_PROTOCOL, nonsense)
        busy = await nodes.add("b")
        busy.running = 3
        await asyncio.sleep(25.0)
        busy.running = 0
        assert await nodes.ask() == reference(5)
        assert nodes.asker.nodes == ["a", "b"]

    scenario(work)


def test_a_query_that_begins_has_an_id_and_a_seed() -> None:
    query = begun(pb.Query(text="p"))
    assert len(query.id) == 16
    assert query.sampling.seed
    assert begun(query) == query


@given(st.lists(st.sampled_from(["/webrtc-direct", "/webtransport", "/ws"]), max_size=20), st.integers(0, 400))
def test_addresses_that_fit_are_of_every_kind(kinds: list[str], limit: int) -> None:
    addresses = [f"/ip4/10.0.0.{place}{kind}" for place, kind in enumerate(kinds)]
    chosen = fitting(addresses, limit)
    assert sum(map(len, chosen)) <= limit
    if limit >= 100:
        assert {each.rpartition("/")[2] for each in chosen} == {kind[1:] for kind in kinds}
    assert sorted(fitting(addresses, 10_000)) == sorted(addresses)
