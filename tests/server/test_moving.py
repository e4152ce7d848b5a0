"""Servers that run move to the blocks that need them, on a simulated network in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from swarm.config import ServerConfig
from swarm.server.placement import choose_span
from swarm.server.plan import Plan
from swarm.server.rebalancing import better_span
from swarm.server.server import Server
from swarm.types import ServerRecord, ServerState, Span
from swarm.wire import swarm_pb2 as pb
from tests.server.test_server import MODEL, Swarm, load, reply, simulate

HALF = MODEL.blocks // 2
COSTS = [1] * MODEL.blocks


def mover(
    swarm: Swarm, name: str, seed: int, first: Span | None = None, **config: Any
) -> tuple[Server, asyncio.Task[None]]:
    """A server that chooses for itself, but for the `first` span."""
    rng, given = random.Random(seed), [first] if first else []

    def choose(others: Sequence[ServerRecord]) -> Span:
        return given.pop() if given else choose_span(others, COSTS, HALF, rng)

    def better(own: ServerRecord, others: Sequence[ServerRecord]) -> Span | None:
        return better_span(own, others, COSTS, HALF, rng)

    plans = [Plan(MODEL, choose, load, settle=first is None, better=better)]
    return swarm.server(name, plans=plans, rng=rng, config=ServerConfig(**config))


async def online(swarm: Swarm) -> list[str]:
    return sorted(str(record.span) for record in await swarm.records() if record.state is ServerState.ONLINE)


async def end(*pairs: tuple[Server, asyncio.Task[None]]) -> None:
    for server, living in pairs:
        server.leave()
        await living


@pytest.mark.parametrize("seed", range(4))
def test_blocks_that_lost_their_server_get_one_and_only_one_moves(seed: int) -> None:
    async def scenario(swarm: Swarm) -> None:
        first = swarm.server("fixed", "0:16", settle=False)
        await asyncio.sleep(15)
        pairs = [mover(swarm, "s0", seed)]
        await asyncio.sleep(30)
        assert await online(swarm) == ["0:16", "16:32"]
        pairs += [mover(swarm, f"s{place}", seed + place) for place in (1, 2, 3)]
        await asyncio.sleep(60)
        assert len(await online(swarm)) == 5
        # Of what is left two and two are enough, or three and one: then one of the three moves.
        await end(first)
        await asyncio.sleep(900)
        assert await online(swarm) == ["0:16", "0:16", "16:32", "16:32"]
        await asyncio.sleep(3600)
        assert await online(swarm) == ["0:16", "0:16", "16:32", "16:32"]
        await end(*pairs)

    simulate(scenario)


def test_a_hole_is_filled_long_before_the_usual_time() -> None:
    async def scenario(swarm: Swarm) -> None:
        fixed = [swarm.server(f"fixed{place}", "0:16", settle=False) for place in range(2)]
        last = swarm.server("last", "16:32", settle=False)
        await asyncio.sleep(15)
        pair = mover(swarm, "s", 0, residence=1e6)
        await asyncio.sleep(30)
        (server, _) = pair
        assert server.spans[0].span == Span(16, 32)
        await end(fixed.pop())
        await asyncio.sleep(400)
        assert server.spans[0].span == Span(16, 32), "it has not been there for long"
        await end(fixed.pop())
        await asyncio.sleep(400)
        assert await online(swarm) == ["0:16", "16:32"]
        assert server.spans[0].span == Span(0, 16)
        await end(pair, last)

    simulate(scenario)


def test_sessions_are_told_and_new_ones_refused_before_the_blocks_go() -> None:
    async def scenario(swarm: Swarm) -> None:
        fixed = [swarm.server(f"fixed{place}", "0:16", settle=False) for place in range(2)]
        await asyncio.sleep(15)
        pair = mover(swarm, "s", 0, residence=100.0, drain_timeout=30.0)
        (server, _) = pair
        await asyncio.sleep(15)
        assert server.spans[0].span == Span(16, 32)
        session = await swarm.session("s", "16:32")
        assert (await reply(session)).WhichOneof("kind") == "opened"
        others = [swarm.server(f"other{place}", "16:32", settle=False) for place in range(3)]
        await end(fixed.pop())

        assert (await reply(session)).leaving.deadline == 30.0
        late = await swarm.session("s", "17:32")
        assert (await reply(late)).failure.code == pb.Failure.BUSY
        await session.send(pb.ControlRequest(close=pb.Close()).SerializeToString())
        await asyncio.sleep(20)
        assert server.spans[0].span == Span(0, 16)
        assert (server.spans[0].state, len(server.handler.hosted)) == (ServerState.ONLINE, 1)
        opened = await swarm.session("s", "0:16")
        assert (await reply(opened)).WhichOneof("kind") == "opened"
        await end(pair, *fixed, *others)

    simulate(scenario)


@pytest.mark.parametrize("seed", range(6))
def test_two_that_would_leave_the_same_blocks_do_not_leave_them_alone(seed: int) -> None:
    async def scenario(swarm: Swarm) -> None:
        # Both have loaded the same half, and look for better ones nearly at the same time.
        pairs = [
            mover(swarm, f"s{place}", 2 * seed + place, first=Span(0, HALF), rebalance_every=0.5) for place in range(2)
        ]
        await asyncio.sleep(10.2)
        assert [str(server.spans[0].span) for server, _ in pairs] == ["0:16", "0:16"]
        for _ in range(200):
            await asyncio.sleep(1)
            hosts = {block for server, _ in pairs for hosted in server.handler.hosted for block in hosted.contract.span}
            assert hosts >= set(range(HALF))
        assert await online(swarm) == ["0:16", "16:32"]
        await end(*pairs)

    simulate(scenario)


def test_who_was_told_its_blocks_stays() -> None:
    async def scenario(swarm: Swarm) -> None:
        pairs = [swarm.server(f"s{place}", "0:16", settle=False) for place in range(3)]
        await asyncio.sleep(3600)
        assert await online(swarm) == ["0:16"] * 3
        await end(*pairs)

    simulate(scenario)
