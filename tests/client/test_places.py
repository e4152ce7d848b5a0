"""Positions with places of their own, through failures: on the simulated network, where each place counts."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest

from swarm.client.session import Session
from swarm.config import ClientConfig
from swarm.errors import InvalidInput, NoServerFits
from swarm.jobs import compute
from swarm.testing import ExactRunner, World, embed, run
from swarm.types import Rows, Segment, Span

SPANS = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 9)}
TWICE = {f"{name}{i}": span for name, span in SPANS.items() for i in (1, 2)}


def places(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


def steps(rng: random.Random, planes: int, plain: int) -> list[Rows]:
    """Steps of one sequence, the first `plain` of them counted, the others with places; some with a single one."""
    rows = []
    for number in range(14):
        count = rng.choice((1, 1, 1, 2, 5))
        hidden = b"".join(embed(rng.randrange(900), number) for _ in range(count))
        each = planes if number == plain or rng.random() < 0.7 else rng.choice((0, 1))
        each = each if number >= plain else 0
        numbers = [rng.randrange(1 << 20) for _ in range(count * each)]
        rows.append(Rows(0, hidden, count, places(*numbers)))
    return rows


def computed(rows: list[Rows], planes: int, plain: int) -> list[bytes]:
    """What one process makes of them, all positions with as many places."""
    runner, start, outputs = ExactRunner(), 0, []
    for row in rows:
        count = len(row.hidden) // 8
        given = struct.unpack(f"<{len(row.places) // 4}i", row.places)
        each = len(given) // count
        if each == 0:
            given = tuple(start + i for i in range(count))
        if each < planes:
            given = tuple(number for number in given for _ in range(planes))
        segment = Segment((b"", 0), start, count, places(*given))
        outputs.append(bytes(compute(runner, Span(0, 9), [segment], row.hidden)))
        start += count
    return outputs


@pytest.mark.parametrize("plain", [0, 3])
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("standby", [0, 1])
def test_whichever_hop_is_killed_before_whichever_step(plain: int, planes: int, standby: int) -> None:
    async def survive(at: int) -> None:
        rng = random.Random(at)
        rows = steps(rng, planes, plain)
        world = World(at)
        for name, span in TWICE.items():
            await world.add(name, span, places=3)
        session = world.session(ClientConfig(standby=standby))
        outputs = []
        for number, row in enumerate(rows):
            if number == at and session.route is not None:
                await world.kill(session.route.hops[at % 3].peer_id)
            outputs += await asyncio.wait_for(session.step([row]), 600.0)
        # What came before anybody said a place was computed without any.
        assert outputs[plain:] == computed(rows, planes, plain)[plain:]
        await world.close()

    for at in range(1, 14, 2):
        run(survive(at))


async def one(planes_of_servers: int) -> tuple[World, Session]:
    world = World()
    for name, span in SPANS.items():
        await world.add(name, span, places=planes_of_servers)
    return world, world.session()


def test_servers_that_take_no_places_are_not_asked_for_them() -> None:
    async def ask() -> None:
        world, session = await one(0)
        await world.add("d", Span(0, 9), places=1, decode_ms=50.0)
        await session.step([Rows(0, embed(1, 0), 1)])
        assert session.route is not None and len(session.route.hops) == 3
        await session.step([Rows(0, embed(2, 1), 1, places(9))])
        assert [hop.peer_id for hop in session.route.hops] == ["d"]
        await world.close()

    run(ask())


def test_where_no_server_takes_them_the_step_fails_with_that_reason() -> None:
    async def ask() -> None:
        world, session = await one(0)
        with pytest.raises(NoServerFits, match="counts positions one by one, and 1 are needed for these position_ids"):
            await session.step([Rows(0, embed(1, 0), 1, places(9))])
        await world.close()

    run(ask())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(b"123", "no places of 1 positions"), (places(1, 2), "have 3 places, or 2"), (bytes(4 * 9), "no places of 1")],
)
def test_wrong_places_change_nothing(wrong: bytes, words: str) -> None:
    async def ask() -> None:
        world, session = await one(8)
        await session.step([Rows(0, embed(1, 0), 1, places(1, 2, 3))])
        with pytest.raises(InvalidInput, match=words):
            await session.step([Rows(0, embed(2, 1), 1, wrong)])
        assert session.length(0) == 1
        await session.step([Rows(0, embed(2, 1), 1, places(4, 5, 6))])
        await world.close()

    run(ask())
