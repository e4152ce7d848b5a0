"""All servers of a model in one answer, from whoever has read them; and what a peer that asks or answers badly gets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from swarm.client.view import View
from swarm.config import ClientConfig
from swarm.contract import Contract
from swarm.errors import StreamClosed
from swarm.net.base import Stream
from swarm.net.record_book import MODELS, Introducers, RecordBook
from swarm.testing import LinkConditions, MemoryDirectory, SimulatedNetwork, run
from swarm.types import ModelInfo, ServerRecord, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

MODEL = ModelInfo("5c" * 32, "deep", blocks=126, hidden_size=64)
WHOLE = Span(0, MODEL.blocks)
DIRECTORY_TAKES = 3.0
DELAY = 0.05


async def populated(servers: int) -> SimulatedNetwork:
    """So many servers, announced; links of 100 ms there and back."""
    network, rng = SimulatedNetwork(conditions=LinkConditions(delay=DELAY)), random.Random(0)
    for number in range(servers):
        host, first = network.host(f"server {number}"), rng.randrange(MODEL.blocks - 8)
        span = Span(first, first + 8) if number >= 16 else Span(number * 8, min(number * 8 + 8, MODEL.blocks))
        prints = tuple(block.to_bytes(8, "big") for block in span)
        contract = Contract(MODEL.key, span, prints, "float32", "none", (), MODEL.hidden_size, 256)
        record = ServerRecord(host.peer_id, contract, free_tokens=1000, expires=1e9)
        await MemoryDirectory(network, host, delay=0.0).announce(record, MODEL)
    return network


def slow(network: SimulatedNetwork, name: str) -> MemoryDirectory:
    return MemoryDirectory(network, network.host(name), delay=DIRECTORY_TAKES)


def view_of(network: SimulatedNetwork, peers: list[str]) -> View:
    directory = slow(network, "client")
    introducers = Introducers(directory.host, directory, peers)
    return View(directory, MODEL, MODEL.contract("float32", 256), ClientConfig(), introducers=introducers)


def test_the_first_route_waits_for_one_answer_and_not_for_the_directory() -> None:
    async def scenario() -> None:
        network, loop = await populated(1000), asyncio.get_running_loop()
        knowing = slow(network, "bootstrap")
        book = RecordBook(knowing)
        await book.serve(knowing.host)
        first, second = view_of(network, ["bootstrap"]), None
        await first.refresh(0.0)  # nobody has asked before: the bootstrap peer has to read, too
        assert len(first.records) == 1000
        await first.close()
        await network.hosts["client"].close()

        second, begun = view_of(network, ["bootstrap", "server 3"]), loop.time()
        await second.refresh(0.0)
        assert loop.time() - begun < 1.0 < DIRECTORY_TAKES
        assert second.route(WHOLE).span == WHOLE
        await asyncio.sleep(DIRECTORY_TAKES)
        assert len(second.records) == 1000
        await second.close()
        await book.close()
        assert not any(host.failures for host in network.hosts.values())

    run(scenario())


def test_what_is_not_enough_for_a_route_is_not_believed_to_be_all() -> None:
    async def scenario() -> None:
        network = await populated(3)
        knowing = slow(network, "bootstrap")
        book = RecordBook(knowing)
        await book.serve(knowing.host)
        await Introducers(network.host("early"), knowing, ["bootstrap"]).servers(MODEL.key, MODEL.blocks)
        network.records |= (await populated(40)).records
        view = view_of(network, ["bootstrap"])
        await view.refresh(0.0)
        assert view.route(WHOLE).span == WHOLE
        await view.close()
        await book.close()

    run(scenario())


def saying(*frames: bytes) -> Callable[[Stream], Awaitable[None]]:
    async def answer(stream: Stream) -> None:
        await stream.receive(1000)
        for frame in frames:
            await stream.send(frame)
        await asyncio.sleep(1000.0)

    return answer


MORE = pb.RecordsReply(more=True, records=[b"x"]).SerializeToString()


@pytest.mark.parametrize(
    "answer",
    [saying(), saying(b"\xff"), saying(b"z" * 1_000_000), saying(MORE), saying(*[MORE] * 20_000)],
    ids=["silent", "garbage", "large", "never ends", "many"],
)
def test_who_tells_nonsense_is_not_waited_for(answer: Callable[[Stream], Awaitable[None]]) -> None:
    async def scenario() -> None:
        network = await populated(40)
        await network.host("bad").serve(messages.RECORDS_PROTOCOL, answer)
        view, begun = view_of(network, ["bad", "nobody"]), asyncio.get_running_loop().time()
        await view.refresh(0.0)
        assert asyncio.get_running_loop().time() - begun < 2 * DIRECTORY_TAKES
        assert view.route(WHOLE).span == WHOLE
        await view.close()

    run(scenario())


def test_who_asks_for_many_models_or_nonsense_takes_no_room() -> None:
    async def scenario() -> None:
        network = await populated(3)
        knowing = slow(network, "bootstrap")
        book = RecordBook(knowing)
        await book.serve(knowing.host)
        asker = network.host("asker")

        async def ask(frame: bytes) -> bytes:
            stream = await asker.open_stream("bootstrap", messages.RECORDS_PROTOCOL)
            await stream.send(frame)
            return await stream.receive(1 << 20)

        many = [pb.RecordsRequest(model=f"{n}", blocks=8).SerializeToString() for n in range(200)]
        answers = await asyncio.gather(*map(ask, many), return_exceptions=True)
        assert sum(isinstance(answer, bytes) for answer in answers) <= MODELS
        for number, frame in enumerate(many):
            if number % 4 == 3:
                await ask(frame)
        assert len(book._pages) <= MODELS + 1
        for bad in (b"", b"\xff", pb.RecordsRequest(model="m", blocks=1 << 20).SerializeToString(), b"x" * 4000):
            with pytest.raises(StreamClosed):
                await ask(bad)
        await book.close()
        assert not any(host.failures for host in network.hosts.values())

    run(scenario())
