"""Peers find out where they are by asking others, and whatever those answer, they stay somewhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from swarm.coordinates import round_trip_ms
from swarm.errors import StreamClosed
from swarm.net.base import Stream
from swarm.net.locator import Locator
from swarm.testing import LinkConditions, SimulatedNetwork, run
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

DELAYS = {"near": 0.005, "far": 0.040, "farther": 0.090, "other": 0.020}


def located(network: SimulatedNetwork, name: str, others: list[str]) -> Locator:
    host = network.host(name)
    for other in others:
        delay = DELAYS.get(name, 0.0) + DELAYS.get(other, 0.0)
        network.set_link(name, other, LinkConditions(delay=delay))
    return Locator(host, lambda: others, random.Random(name))


def test_round_trips_between_others_can_be_told_from_what_they_say() -> None:
    async def scenario() -> None:
        network, names = SimulatedNetwork(), list(DELAYS)
        locators = {name: located(network, name, names) for name in names}
        for locator in locators.values():
            await locator.start()
        await asyncio.sleep(600.0)
        for one in names:
            for other in names:
                here, there = locators[one].coordinate, locators[other].coordinate
                assert here is not None and there is not None
                truth = 2000 * (DELAYS[one] + DELAYS[other])
                assert one == other or round_trip_ms(here, there) == pytest.approx(truth, rel=0.35)
        for locator in locators.values():
            await locator.close()

    run(scenario())


async def silent(stream: Stream) -> None:
    await asyncio.sleep(1000.0)


async def gone(stream: Stream) -> None:
    stream.close()


def saying(frame: bytes) -> Callable[[Stream], Awaitable[None]]:
    async def answer(stream: Stream) -> None:
        while True:
            await stream.receive(1000)
            await stream.send(frame)

    return answer


NOWHERE = pb.Ping(coordinate=pb.Coordinate(point=[float("nan")] * 3)).SerializeToString()
TOO_FAR = pb.Ping(coordinate=pb.Coordinate(point=[1e9, 0, 0])).SerializeToString()
FLAT = pb.Ping(coordinate=pb.Coordinate(point=[1, 2])).SerializeToString()


@pytest.mark.parametrize(
    "answer",
    [silent, gone, saying(b"\xff"), saying(b""), saying(NOWHERE), saying(TOO_FAR), saying(FLAT), saying(b"a" * 200)],
    ids=["silent", "gone", "garbage", "nothing", "nan", "too far", "flat", "long"],
)
def test_who_answers_nonsense_moves_nobody(answer: Callable[[Stream], Awaitable[None]]) -> None:
    async def scenario() -> None:
        network = SimulatedNetwork()
        await network.host("bad").serve(messages.PING_PROTOCOL, answer)
        locator = located(network, "near", ["bad"])
        assert await locator.measure("bad") is None
        assert locator.coordinate is None
        await locator.close()

    run(scenario())


def test_a_stream_carries_a_few_pings_and_waits_for_none() -> None:
    async def scenario() -> None:
        network = SimulatedNetwork()
        locator = located(network, "near", [])
        await locator.start()
        asker = network.host("asker")
        stream = await asker.open_stream("near", messages.PING_PROTOCOL)
        with pytest.raises(StreamClosed):
            for _ in range(100):
                await stream.send(pb.Ping().SerializeToString())
                assert messages.decode(pb.Ping, await stream.receive(128)).HasField("coordinate")
        idle = await asker.open_stream("near", messages.PING_PROTOCOL)
        with pytest.raises(StreamClosed):
            await idle.receive(128)
        await locator.close()

    run(scenario())
