"""What a session takes and refuses, what belongs to it alone, and what is left of it when it is closed."""

from __future__ import annotations

import asyncio
from types import CoroutineType

import pytest

from swarm.client.session import Session
from swarm.config import ClientConfig, ServerConfig
from swarm.errors import InvalidInput, SessionClosed
from swarm.testing import LinkConditions, World, embed, generate, reference, run
from swarm.types import Rows, Span
from swarm.wire import swarm_pb2 as pb

PROMPT = list(range(7))
SPANS = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 9)}


async def world_of(conditions: LinkConditions | None = None) -> World:
    world = World(conditions=conditions)
    for name, span in SPANS.items():
        await world.add(name, span)
    return world


def row(sequence: int = 0, token: int = 1, position: int = 0) -> Rows:
    return Rows(sequence, embed(token, position), 1)


def of_clients() -> list[str]:
    """What the tasks do that run in the client's rooms."""
    works = [task.get_coro() for task in asyncio.all_tasks()]
    return [w.__qualname__ for w in works if isinstance(w, CoroutineType) and "swarm/client/" in w.cr_code.co_filename]


# ---- what a step may be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "operations", "complaint"),
    [
        ([Rows(0, b"123", 1)], [], "3 bytes"),
        ([Rows(0, b"", 0)], [], "0 bytes"),
        ([Rows(0, embed(1, 0), 2)], [], "2 rows"),
        ([row(0), row(0)], [], "named twice"),
        ([row(-1)], [], "cannot be the id"),
        ([row(1 << 32)], [], "cannot be the id"),
        ([], [pb.Operation(kind=pb.Operation.FREE, source=7)], "no sequence 7"),
        ([], [pb.Operation(kind=pb.Operation.FORK, source=7, target=8)], "no sequence 7"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused_and_nothing_is_sent(
    rows: list[Rows], operations: list[pb.Operation], complaint: str
) -> None:
    async def main() -> None:
        world = World()
        session = world.session()
        with pytest.raises(InvalidInput, match=complaint):
            await session.step(rows, operations)
        assert session.length(0) == 0
        assert of_clients() == []
        await world.close()

    run(main())


def test_a_sequence_that_has_ended_does_not_begin_again() -> None:
    async def main() -> None:
        world = await world_of()
        session = world.session()
        await session.step([row()])
        await session.step([], [pb.Operation(kind=pb.Operation.FREE, source=0)])
        with pytest.raises(InvalidInput, match="cannot be the id"):
            await session.step([row()])
        await world.close()

    run(main())


def test_rows_without_wanted_outputs_are_not_waited_for() -> None:
    async def main() -> None:
        world = await world_of(LinkConditions(delay=10.0))
        session = world.session()
        assert await session.step([Rows(0, embed(1, 0), 0)]) == [b""]
        assert asyncio.get_running_loop().time() < 1.0
        assert session.length(0) == 1
        await world.close()

    run(main())


# ---- what is asked beside it -----------------------------------------------------------------------------------


def test_traces_that_overlap_are_all_answered() -> None:
    async def main() -> None:
        world = await world_of(LinkConditions(delay=0.1))
        session = world.session()
        await generate(session, PROMPT, 3)
        traces = []
        for _ in range(3):
            traces.append(asyncio.ensure_future(session.trace()))
            await asyncio.sleep(0.05)
        for trace in await asyncio.gather(*traces):
            assert [len(tallies) for _, tallies in trace] == [2, 2, 2]
        await world.close()

    run(main())


def test_a_trace_of_a_silent_hop_takes_nothing_from_the_others() -> None:
    async def main() -> None:
        world = await world_of()
        session = world.session()
        await generate(session, PROMPT, 3)
        world.network.freeze("b")
        told = await session.trace()
        assert [len(tallies) for _, tallies in told] == [2, 0, 2]
        assert asyncio.get_running_loop().time() < 5.0
        await world.close()

    run(main())


@pytest.mark.parametrize("chunk", [8, 48])
def test_prompts_are_cut_where_the_servers_say_that_they_compare_them(chunk: int) -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(prefix_chunk=chunk, share_prefixes=True))
        for name, span in SPANS.items():
            await world.add(name, span)
        prompt = list(range(700))
        for session in (world.session(), world.session()):
            before = sum(server.runner.computed for server in world.servers.values())
            assert await generate(session, prompt, 1) == reference(prompt, 1)
            await session.close()
        again = sum(server.runner.computed for server in world.servers.values()) - before
        assert again <= 3 * chunk, "the second prompt is kept, but for its end"
        await world.close()

    run(main())


# ---- what belongs to it ----------------------------------------------------------------------------------------


def test_the_weights_of_one_session_bind_no_other() -> None:
    """A session never mixes weights; the next one in the same process takes those that there are now."""

    async def main() -> None:
        world = World()
        await world.add("old", Span(0, 9), fingerprint=b"old")
        first = world.session(ClientConfig(max_wait=5.0), "client")
        second = Session(world.clients[0], first.view, first.span, config=first.config)
        await generate(first, PROMPT, 3)
        await world.kill("old")
        await world.add("new", Span(0, 9), fingerprint=b"new")
        await asyncio.sleep(60.0)
        assert await generate(second, PROMPT, 3) == reference(PROMPT, 3)
        await second.close()
        await world.close()

    run(main())


# ---- the end ---------------------------------------------------------------------------------------------------


def test_closing_ends_the_steps_under_way_and_may_be_done_twice() -> None:
    async def main() -> None:
        world = await world_of(LinkConditions(delay=1.0))
        session = world.session()
        steps = [asyncio.ensure_future(session.step([row(sequence)])) for sequence in range(3)]
        await asyncio.sleep(2.5)
        await asyncio.gather(session.close(), session.close())
        for end in await asyncio.gather(*steps, return_exceptions=True):
            assert isinstance(end, SessionClosed)
        with pytest.raises(SessionClosed):
            await session.step([row(9)])
        await world.close()

    run(main())


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.03, 0.5, 2.0, 4.0])
def test_nothing_runs_any_more_once_it_is_closed(seconds: float) -> None:
    """Whenever it is closed: while it opens, while it runs, while it looks into what is late, while it waits."""

    async def main() -> None:
        world = await world_of(LinkConditions(delay=0.005))
        session = world.session()
        step = asyncio.ensure_future(generate(session, PROMPT, 10_000))
        asyncio.get_running_loop().call_later(1.0, world.network.freeze, "b")
        await asyncio.sleep(seconds)
        await session.close()
        await session.view.close()
        assert of_clients() == []
        await asyncio.gather(step, return_exceptions=True)
        await world.close()

    run(main())


def test_who_closes_is_heard_by_every_hop_at_once() -> None:
    async def main() -> None:
        world = await world_of()
        session = world.session()
        await generate(session, PROMPT, 3)
        await session.close()
        await asyncio.sleep(0.1)
        assert [server.hosted.statistics().sessions for server in world.servers.values()] == [0, 0, 0]
        await world.close()

    run(main())


def test_closed_hops_of_earlier_routes_have_heard_it_before_the_session_is_over() -> None:
    """A hop that is let go is told, even if the session is closed in the same moment."""

    async def main() -> None:
        world = await world_of(LinkConditions(delay=0.1))
        session = world.session()
        await generate(session, PROMPT, 3)
        leaving = world.servers["b"]
        await world.add("b2", Span(3, 6))
        draining = asyncio.ensure_future(leaving.drain(60.0))
        await generate(session, [1], 1)
        await session.close()
        await asyncio.sleep(0.2)
        assert leaving.hosted.statistics().sessions == 0
        await draining
        world.servers.pop("b")
        await world.close()

    run(main())
