"""`compare=2`: nothing is given before two routes have come to the same, and so nothing that is wrong."""

from __future__ import annotations

import asyncio

import pytest

from swarm.client.paired import Agreed, Dispute, Paired
from swarm.client.sequences import Sequences
from swarm.config import ClientConfig
from swarm.errors import GenerationFailed, InvalidInput, MissingBlocks
from swarm.testing import World, generate, run, speculate
from swarm.testing import reference as hashes
from swarm.types import Rows, Span
from swarm.wire import swarm_pb2 as pb
from tests.attackers.attacks import Attack, Cautious, Copier, Noisy, Skipper
from tests.attackers.campaign import campaign, swarm
from tests.attackers.numbers import reference

COMPARE = ClientConfig(compare=2)
PROMPT = [3, 1, 4, 1, 5]


def test_rows_wait_for_each_other() -> None:
    sequences = Sequences(4)
    sequences.append(Rows(7, bytes(range(20)), 3))
    paired = Paired(sequences, "exact")

    def offered(start: int, hidden: bytes) -> pb.Step:
        return pb.Step(rows=[pb.Rows(sequence=7, start=start, count=len(hidden) // 4)], hidden=hidden)

    paired.offer(0, offered(2, b"aaaabbbbcccc"))
    assert not list(paired.settle())
    paired.offer(1, offered(2, b"aaaaXXXX"))
    (agreed,) = paired.settle()
    assert isinstance(agreed, Agreed) and agreed.step.hidden == b"aaaa" and agreed.step.rows[0].start == 2
    sequences.deliver(agreed.step)
    assert list(paired.settle()) == [Dispute(7, 3, (b"bbbb", b"XXXX"))]
    paired.forget(1)
    assert not list(paired.settle())
    paired.offer(1, offered(3, b"bbbbcccc"))
    (agreed,) = paired.settle()
    assert isinstance(agreed, Agreed) and agreed.step.hidden == b"bbbbcccc"
    sequences.deliver(agreed.step)
    assert not list(paired.settle())


@pytest.mark.parametrize(
    "options", [{"compare": 3}, {"compare": 2, "standby": 1}, {"compare": 2, "codec": "int8"}, {"race": True}]
)
def test_what_cannot_be_compared(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        ClientConfig(**options)  # type: ignore[arg-type]


async def compared(replicas: int, attacks: dict[tuple[int, int], Attack], texts: int = 4) -> tuple[World, set[str]]:
    world = await swarm(replicas, attacks)
    outcome = await campaign(world, set(), texts, COMPARE, count=40)
    assert outcome.wrong == 0 and outcome.refuted == 0
    await world.close()
    return world, outcome.convicted


@pytest.mark.parametrize("attack", [Skipper, Noisy, Copier, Cautious])
def test_a_wrong_server_is_found_out_by_its_first_token(attack: Attack) -> None:
    _, convicted = run(compared(3, {(1, 0): attack}, 6))
    assert convicted == {"10"}


def test_wrong_servers_on_both_routes() -> None:
    """Some may never be used: who has been right goes first."""
    _, convicted = run(compared(5, {(0, 0): Skipper, (1, 1): Noisy, (2, 2): Copier}, 8))
    assert convicted and convicted <= {"00", "11", "22"}


def test_it_costs_twice_the_work() -> None:
    async def main() -> list[int]:
        computed = []
        for config in (ClientConfig(), COMPARE):
            world = await swarm(2, {})
            computed.append((await campaign(world, set(), 2, config, count=40)).computed)
            await world.close()
        return computed

    once, twice = run(main())
    assert once < twice <= 2.2 * once


def test_servers_that_die_under_it() -> None:
    async def main() -> None:
        world = World()
        for name in ("a", "b", "c"):
            for index, span in enumerate((Span(0, 3), Span(3, 6), Span(6, 9))):
                await world.add(f"{name}{index}", span)
        session = world.session(COMPARE)

        def kill(index: int) -> object:
            if index in (10, 20) and session.route is not None:
                spare = session.standby
                victim = session.route.hops[1] if index == 10 or spare is None else spare.hops[0]
                return world.kill(victim.peer_id)
            return None

        prompt = list(range(7))
        text = await asyncio.wait_for(generate(session, prompt, 40, on_token=kill), 600.0)
        assert text == hashes(prompt, 40)
        truth = hashes(prompt, 60)
        other = world.session(COMPARE)
        assert await asyncio.wait_for(speculate(other, world.arithmetic, prompt, truth, world.random), 600.0) == truth
        await world.close()

    run(main())


def test_nobody_is_left_to_compare_with() -> None:
    async def main() -> None:
        world = await swarm(1, {})
        session = world.session(ClientConfig(compare=2, max_wait=20.0))
        with pytest.raises(MissingBlocks, match="no second server hosts blocks"):
            await generate(session, PROMPT, 5, arithmetic=world.arithmetic)
        assert any("second route" in notice.text for notice in world.notices)
        session = world.session(COMPARE)
        for index in range(3):
            world.later(5.0, world.add(f"late{index}", Span(3 * index, 3 * index + 3)))
        text = await asyncio.wait_for(generate(session, PROMPT, 10, arithmetic=world.arithmetic), 600.0)
        assert text == reference(PROMPT, 10)
        await world.close()

    run(main())


def test_two_that_differ_without_a_third_give_nothing() -> None:
    async def main() -> None:
        world = await swarm(2, {(1, 0): Skipper})
        with pytest.raises(GenerationFailed, match="nobody else can decide"):
            await generate(world.session(COMPARE), PROMPT, 5, arithmetic=world.arithmetic)
        await world.close()

    run(main())


def test_a_race_is_won_by_the_first_answer() -> None:
    async def main() -> None:
        world = World()
        await world.add("slow", Span(0, 9), decode_ms=0.1)
        await world.add("quick", Span(0, 9), decode_ms=1.0)
        engine = world.servers["slow"].hosted.engine
        engine._seconds = lambda positions: 0.2  # type: ignore[attr-defined]
        session = world.session(ClientConfig(standby=1, race=True))
        prompt = list(range(7))
        assert await generate(session, prompt, 40) == hashes(prompt, 40)
        assert session.raced > 20
        await world.close()

    run(main())
