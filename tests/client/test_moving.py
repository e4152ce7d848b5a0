"""A session that began through a forwarder moves to the direct way when there is one, and nobody notices."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.moving import AGAIN, LONGEST, PATIENCE, Moves
from swarm.client.session import Session
from swarm.testing import LinkConditions, World, generate, reference, run
from swarm.types import Span

PROMPT = list(range(7))
SPANS = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 9)}
FORWARDED, DIRECT = LinkConditions(delay=0.08), LinkConditions(delay=0.01)


def test_it_waits_for_a_moment_in_which_nothing_is_under_way_but_not_for_ever() -> None:
    moves = Moves()
    assert not moves.due(0.0, outdated=False, idle=True)
    assert not moves.due(1.0, outdated=True, idle=False)
    assert moves.due(1.1, outdated=True, idle=True)
    other = Moves()
    assert not other.due(1.0, outdated=True, idle=False)
    assert not other.due(1.0 + PATIENCE / 2, outdated=True, idle=False)
    assert other.due(1.0 + PATIENCE, outdated=True, idle=False)


@given(st.lists(st.tuples(st.floats(0.01, 30.0), st.booleans(), st.booleans()), max_size=200))
def test_a_way_that_comes_and_goes_is_followed_less_and_less(looks: list[tuple[float, bool, bool]]) -> None:
    moves, now, moved = Moves(), 0.0, list[float]()
    for passed, outdated, idle in looks:
        now += passed
        if moves.due(now, outdated=outdated, idle=idle):
            assert outdated
            moved.append(now)
    for index, (before, after) in enumerate(itertools.pairwise(moved)):
        assert after - before >= min(AGAIN * 2**index, LONGEST)


def direct(world: World, pairs: Sequence[tuple[str, str]]) -> None:
    for one, other in pairs:
        world.network.shorten(one, other, DIRECT)


async def moved(pairs: Sequence[tuple[str, str]], at: int = 20, count: int = 60) -> tuple[World, Session, list[float]]:
    """Generate over forwarders; before token `at` direct ways come up between these pairs. Gaps between tokens."""
    world = World()
    names = ["client", *SPANS]
    for name, span in SPANS.items():
        await world.add(name, span)
    session = world.session(name="client")
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            world.network.set_link(one, other, FORWARDED)
    times = list[float]()

    def on_token(index: int) -> None:
        times.append(asyncio.get_running_loop().time())
        if index == at:
            direct(world, pairs)

    tokens = await asyncio.wait_for(generate(session, PROMPT, count, on_token=on_token), 600.0)
    assert tokens == reference(PROMPT, count)
    return world, session, [after - before for before, after in itertools.pairwise(times)]


ALL = [("client", "a"), ("a", "b"), ("b", "c"), ("client", "b"), ("client", "c")]


@pytest.mark.parametrize("pairs", [ALL, ALL[:1], ALL[1:2], ALL[-1:]], ids=["all", "client", "servers", "results"])
def test_the_streams_of_a_running_session_move_and_nothing_is_computed_again(pairs: list[tuple[str, str]]) -> None:
    async def main() -> None:
        world, session, gaps = await moved(pairs)
        usual, after = gaps[10], gaps[-10]
        assert after < usual - 0.06, "the steps take the shorter ways"
        assert max(gaps) < 6 * usual, "the move is no gap that anybody sees"
        assert session.reroutes == 0
        assert [notice.kind for notice in world.notices] == ["route"]
        assert [server.hosted.opened for server in world.servers.values()] == [1, 1, 1]
        assert all(server.runner.computed == len(PROMPT) + 59 for server in world.servers.values())
        assert not any(stream.outdated.is_set() for host in world.network.hosts.values() for stream in host.streams)
        await session.close()
        await world.close()

    run(main())


def test_a_control_stream_whose_shorter_way_is_gone_again_stays_where_it_is() -> None:
    async def main() -> None:
        world = World()
        for name, span in SPANS.items():
            await world.add(name, span)
        session = world.session(name="client")

        def on_token(index: int) -> None:
            if index == 20:
                for host in world.network.hosts.values():
                    for stream in host.streams:
                        stream.outdated.set()  # there is no shorter way in truth
                world.later(0.0, refuse(world))

        tokens = await asyncio.wait_for(generate(session, PROMPT, 60, on_token=on_token), 600.0)
        assert tokens == reference(PROMPT, 60)
        await session.close()
        await world.close()

    async def refuse(world: World) -> None:
        for name in SPANS:
            world.network.cut("client", name)
        await asyncio.sleep(0.05)
        for name in SPANS:
            world.network.mend("client", name)

    run(main())
