"""What can never succeed fails at once with what is the matter; what may change is waited for, with what is seen."""

from __future__ import annotations

import asyncio

import pytest

from swarm.client.session import Session
from swarm.config import ClientConfig, ServerConfig
from swarm.errors import (
    ContextTooLong,
    InvalidInput,
    LimitExceeded,
    MissingBlocks,
    NoServerFits,
    ServerBusy,
    SwarmError,
)
from swarm.testing import LinkConditions, World, embed, generate, reference, run, token_of
from swarm.types import ModelInfo, Rows, Span
from swarm.wire import swarm_pb2 as pb

PROMPT = list(range(7))
ALL = Span(0, 9)
SOON = 3.0
"""Seconds; long before anybody would think that it hangs."""


def row(sequence: int, position: int = 0) -> Rows:
    return Rows(sequence, embed(1, position), 1)


def rows(count: int) -> list[Rows]:
    return [row(sequence) for sequence in range(count)]


async def refused(session: Session, issued: list[Rows]) -> SwarmError:
    """The error of a step, which has to come soon and without a notice of waiting."""
    began = asyncio.get_running_loop().time()
    with pytest.raises(SwarmError) as caught:
        await asyncio.wait_for(session.step(issued), 60.0)
    assert asyncio.get_running_loop().time() - began < SOON
    return caught.value


def waiting(world: World) -> list[str]:
    return [notice.text for notice in world.notices if notice.kind == "waiting"]


# ---- more than one session may have ----------------------------------------------------------------------------


def test_more_rows_than_any_server_takes_are_refused_at_once_and_others_go_on() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(max_sequences=4))
        for name in ("a", "b"):
            await world.add(name, ALL)
        greedy = world.session(name="client")
        modest = Session(world.clients[0], greedy.view, ALL, config=greedy.config)
        error, tokens = await asyncio.gather(refused(greedy, rows(5)), generate(modest, PROMPT, 20))
        assert isinstance(error, LimitExceeded)
        assert (error.limit, error.allowed, error.asked) == ("sequences", 4, 5)
        assert "at most 4 sequences in one session, not 5" in str(error)
        assert "a 0:9, b 0:9" in str(error)
        assert "no server" not in str(error)
        assert tokens == reference(PROMPT, 20)
        assert waiting(world) == []
        assert [server.hosted.statistics().sessions for server in world.servers.values()] in ([0, 1], [1, 0])
        await modest.close()
        await world.close()

    run(main())


def test_more_positions_than_any_server_has_are_refused_at_once() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(cache_bytes=9 * 8 * 20, history_share=0.0))
        await world.add("a", ALL)
        session = world.session()
        prompt = Rows(0, b"".join(embed(1, i) for i in range(21)), 1)
        error = await refused(session, [prompt])
        assert isinstance(error, LimitExceeded)
        assert "at most 20 positions in one session, not 21" in str(error)
        assert waiting(world) == []
        await world.close()

    run(main())


def test_what_is_too_much_for_all_blocks_of_a_server_goes_to_a_part_of_them() -> None:
    async def main() -> None:
        # 30 positions of six blocks, which is 45 of four.
        world = World(server_config=ServerConfig(cache_bytes=6 * 8 * 30, history_share=0.0))
        await world.add("a", Span(0, 6))
        await world.add("b", Span(3, 9))
        session = world.session()
        prompt = [1] * 35
        assert await generate(session, prompt, 1) == reference(prompt, 1)
        assert [hop.peer_id for hop in session.route.hops] == ["a", "b"]  # type: ignore[union-attr]
        assert max(len(hop.span) for hop in session.route.hops) <= 5  # type: ignore[union-attr]
        await session.close()
        await world.close()

    run(main())


def test_a_longer_sequence_than_any_server_computes_is_refused_at_once() -> None:
    async def main() -> None:
        world = World()
        await world.add("a", ALL, max_positions=5)
        error = await refused(world.session(), [Rows(0, b"".join(embed(1, i) for i in range(6)), 1)])
        assert isinstance(error, ContextTooLong)
        assert "at most 5 positions in one sequence, not 6" in str(error)
        await world.close()

    run(main())


def test_a_server_that_takes_more_is_found() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(max_sequences=4))
        await world.add("small", ALL, decode_ms=0.1)
        await world.add("short", ALL, decode_ms=0.2, max_positions=20)
        world.server_config = ServerConfig()
        await world.add("large", ALL, decode_ms=9.0)
        session = world.session()
        await asyncio.wait_for(session.step(rows(9)), SOON)
        assert await generate(world.session(), PROMPT, 40) == reference(PROMPT, 40)
        assert str(session.route).endswith("large")
        await world.close()

    run(main())


@pytest.mark.parametrize("limit", ["sequences", "context"])
def test_a_session_that_outgrows_its_server_moves_to_a_larger_one(limit: str) -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(max_sequences=2))
        await world.add("small", ALL, decode_ms=0.1, max_positions=4096 if limit == "sequences" else 10)
        world.server_config = ServerConfig()
        await world.add("large", ALL, decode_ms=9.0)
        session = world.session()
        tokens = await generate(session, PROMPT, 2)
        assert str(session.route).endswith("small")
        if limit == "sequences":
            await session.step([row(1), row(2)])
        tokens += await generate(session, tokens[-1:], 18)
        assert tokens == reference(PROMPT, 20)
        assert str(session.route).endswith("large")
        assert session.reroutes == 1
        await world.close()

    run(main())


def test_what_a_running_session_cannot_have_is_refused_before_it_changes_anything() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(max_sequences=2))
        await world.add("a", ALL)
        session = world.session()
        tokens = await generate(session, PROMPT, 3)
        assert isinstance(await refused(session, [row(1), row(2)]), LimitExceeded)
        assert session.statistics().sequences == 1
        await session.step([row(1)])
        await session.step([row(2)], [pb.Operation(kind=pb.Operation.FREE, source=1)])
        assert tokens + await generate(session, tokens[-1:], 3) == reference(PROMPT, 6)
        assert session.reroutes == 0
        await world.close()

    run(main())


# ---- what nobody computes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "bfloat16"}, "computes in bfloat16, not in exact"),
        ({"quantization": "int8"}, "computes in exact, quantized to int8, not in exact"),
        ({"adapters": ("ab" * 32,)}, "adapters"),
        ({"hidden_size": 5}, "hidden size 5, not 1"),
        ({"row_bytes": 16}, "16 bytes a position, not 8"),
    ],
)
def test_servers_that_all_compute_otherwise_are_said_at_once(changes: dict[str, object], words: str) -> None:
    async def main() -> None:
        world = World()
        await world.add("other", ALL, **changes)
        error = await refused(world.session(), rows(1))
        assert isinstance(error, NoServerFits)
        assert error.blocks == ((0, 9),)
        assert "other 0:9" in str(error)
        assert words in str(error)
        assert waiting(world) == []
        await world.close()

    run(main())


def test_a_quantization_that_nobody_offers_is_said_at_once() -> None:
    async def main() -> None:
        world = World()
        await world.add("a", Span(0, 5))
        await world.add("b", Span(5, 9))
        error = await refused(world.session(ClientConfig(quantization="int8")), rows(1))
        assert isinstance(error, NoServerFits)
        assert "a 0:5, b 5:9: computes in exact, not in exact, quantized to int8-g32-v1" in str(error)
        await world.close()

    run(main())


def test_another_model_of_this_name_is_not_waited_for() -> None:
    async def main() -> None:
        world = World()
        await world.add("a", ALL)
        world.model = ModelInfo("elsewhere", "hub/exact", 9, 1, 4096)
        error = await refused(world.session(), rows(1))
        assert isinstance(error, NoServerFits)
        assert "nobody serves these very files of hub/exact, key elsewhere" in str(error)
        assert "others, of key model" in str(error)
        await world.close()

    run(main())


def test_a_model_that_nobody_serves_is_told_from_those_that_somebody_does() -> None:
    async def main() -> None:
        world = World()
        await world.add("a", ALL)
        world.model = ModelInfo("elsewhere", "hub/another", 9, 1, 4096)
        error = await refused(world.session(), rows(1))
        assert isinstance(error, NoServerFits)
        assert "nobody serves hub/another, key elsewhere, in this swarm; there are: exact" in str(error)
        await world.close()

    run(main())


def test_a_model_that_was_announced_of_late_is_waited_for() -> None:
    """Its servers may be about to come back, and one reading may have missed them."""

    async def main() -> None:
        world = World()
        await world.add("other", ALL)
        served, world.model = world.model, ModelInfo("mine", "mine", 9, 1, 4096)
        server = await world.add("a", ALL)
        await server.directory.withdraw(server.record)
        server.tasks.pop().cancel()
        session = world.session()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.step(rows(1)), 60.0)
        assert {info.name for info in (served, world.model)} == {i.name for i in world.network.infos.values()}
        await world.close()

    run(main())


def test_once_the_greedy_have_let_go_of_enough_they_go_on() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(max_sequences=4))
        await world.add("a", ALL)
        session = world.session()
        assert isinstance(await refused(session, rows(5)), LimitExceeded)
        frees = [pb.Operation(kind=pb.Operation.FREE, source=sequence) for sequence in range(5)]
        await session.step([], frees[1:])
        (output,) = await session.step([row(0, 1)])
        assert token_of(output) == reference([1, 1], 1)[0]
        await world.close()

    run(main())


def test_a_span_that_the_model_does_not_have_is_refused() -> None:
    async def main() -> None:
        world = World()
        view = world.session().view
        with pytest.raises(InvalidInput, match="0:10 is beyond the 9 blocks of exact"):
            Session(world.clients[0], view, Span(0, 10), config=view.config)
        await world.close()

    run(main())


# ---- what may change -------------------------------------------------------------------------------------------


def test_a_swarm_without_servers_is_waited_for() -> None:
    async def main() -> None:
        world = World()
        session = world.session()
        world.later(30.0, world.add("a", ALL))
        assert await generate(session, PROMPT, 3) == reference(PROMPT, 3)
        assert "no server hosts blocks 0:9" in waiting(world)[0]
        await world.close()

    run(main())


def test_one_server_that_may_be_used_later_is_waited_for_though_others_never_fit() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(max_sessions=0))
        await world.add("full", ALL)
        world.server_config = ServerConfig()
        await world.add("other", ALL, dtype="bfloat16")
        await world.add("gone", ALL)
        world.network.kill("gone")
        session = world.session()
        world.later(25.0, world.add("at last", ALL))
        assert await generate(session, PROMPT, 3) == reference(PROMPT, 3)
        text = waiting(world)[-1]
        assert "full 0:9: has no room now" in text
        assert "other 0:9: computes in bfloat16, not in exact" in text
        assert "gone 0:9: could not be reached" in text
        await world.servers.pop("gone").stop()
        await world.close()

    run(main())


def test_whoever_gives_up_waiting_says_what_was_seen() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(max_sessions=0))
        for name in ("a", "b"):
            await world.add(name, ALL)
        with pytest.raises((MissingBlocks, ServerBusy)) as caught:
            await generate(world.session(ClientConfig(max_wait=20.0)), PROMPT, 1)
        assert "a 0:9" in str(caught.value)
        assert "b 0:9" in str(caught.value)
        assert "has no room now" in str(caught.value)
        assert "(max_wait)" in str(caught.value)
        await world.close()

    run(main())


def test_servers_that_compute_alike_are_waited_for_once_there_was_a_route() -> None:
    """They may come back; what is left computes otherwise, and would go on with other words."""

    async def main() -> None:
        world = World()
        await world.add("a", ALL)
        await world.add("other", ALL, dtype="bfloat16")
        session = world.session()
        tokens = await generate(session, PROMPT, 3)
        await world.kill("a")
        world.later(90.0, world.add("a", ALL))
        another = Session(world.clients[0], session.view, ALL, config=session.config)
        more, fresh = await asyncio.wait_for(
            asyncio.gather(generate(session, tokens[-1:], 3), generate(another, PROMPT, 3)), 300.0
        )
        assert tokens + more == reference(PROMPT, 6)
        assert fresh == tokens
        await another.close()
        assert any("other 0:9: computes in bfloat16" in text for text in waiting(world))
        await world.close()

    run(main())


def test_a_server_that_one_reading_of_the_directory_missed_is_found_by_the_next() -> None:
    async def main() -> None:
        world = World(conditions=LinkConditions(delay=0.001))
        await world.add("other", ALL, dtype="bfloat16")
        session = world.session()
        world.later(0.1, world.add("a", ALL))
        assert await generate(session, PROMPT, 3) == reference(PROMPT, 3)
        await world.close()

    run(main())
