"""A generation goes on, with the same tokens, whatever happens to the servers: on the simulated network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from swarm.client.session import Session
from swarm.config import ClientConfig, ServerConfig
from swarm.errors import ContextTooLong, GenerationFailed, InvalidInput, MissingBlocks, SessionClosed, StepVoid
from swarm.testing import (
    ExactRunner,
    ForgetlessRunner,
    LinkConditions,
    SnapshotRunner,
    World,
    embed,
    generate,
    reference,
    run,
    speculate,
    token_of,
)
from swarm.types import Rows, Segment, Span
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer

PROMPT = list(range(7))
SPANS = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 9)}
TWICE = {f"{name}{i}": span for name, span in SPANS.items() for i in (1, 2)}

Happening = Callable[[World, Session], Awaitable[None]]


async def survive(
    servers: dict[str, Span], at: int, happening: Happening, count: int = 40, world: World | None = None
) -> tuple[World, Session]:
    """Generate; let something happen before token `at`; assert that the tokens are the reference's."""
    world = world or World()
    for name, span in servers.items():
        await world.add(name, span)
    session = world.session()

    def on_token(index: int) -> Awaitable[None] | None:
        return happening(world, session) if index == at else None

    tokens = await asyncio.wait_for(generate(session, PROMPT, count, on_token=on_token), 600.0)
    assert tokens == reference(PROMPT, count)
    await session.close()
    await asyncio.sleep(60.0)
    assert all(
        server.bytes_held() == 0 for server in world.servers.values() if server.name not in world.network._frozen
    )
    await world.close()
    return world, session


def hop(session: Session, index: int) -> str:
    assert session.route is not None
    return session.route.hops[index].peer_id


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("seconds", [20.0, 400.0])
def test_whoever_was_not_there_for_long_is_used_soon_after_it_is_back(seconds: float, silent: bool) -> None:
    """The client's own network goes, and there is nobody else: who failed often is not kept away from for as long."""
    times: list[float] = []

    def now() -> float:
        return asyncio.get_running_loop().time()

    async def main() -> float:
        world = World()
        for name, span in SPANS.items():
            await world.add(name, span)
        session = world.session(name="home")
        back = 0.0

        async def gone() -> None:
            nonlocal back
            for name in SPANS:
                world.network.cut("home", name, silent=silent)
            back = now() + seconds
            asyncio.get_running_loop().call_later(seconds, mended)

        def mended() -> None:
            for name in SPANS:
                world.network.mend("home", name)

        def on_token(index: int) -> Awaitable[None] | None:
            times.append(now())
            return gone() if index == 20 else None

        assert await generate(session, PROMPT, 40, on_token=on_token) == reference(PROMPT, 40)
        await session.close()
        await asyncio.sleep(60.0)
        await world.close()
        return next(at for at in times if at > back) - back

    assert run(main()) < 25.0


@pytest.mark.parametrize("index", range(3))
def test_a_hop_killed_before_every_token(index: int) -> None:
    async def kill(world: World, session: Session) -> None:
        await world.kill(hop(session, index))

    for at in range(1, 40):
        _, session = run(survive(TWICE, at, kill))
        assert session.reroutes == 1


@pytest.mark.parametrize("index", range(3))
def test_a_hop_that_forgot_the_session_is_opened_anew(index: int) -> None:
    """Its data streams say SESSION_NOT_FOUND, not GAP: there is no session in which anything could be missing."""

    async def forget(world: World, session: Session) -> None:
        handler = world.servers[hop(session, index)].handler
        for forgotten in list(handler.sessions):
            handler._end(forgotten)

    world, session = run(survive(SPANS, 20, forget))
    assert session.reroutes == 1
    assert [server.hosted.opened for server in world.servers.values()] == [1 + (i == index) for i in range(3)]


@pytest.mark.parametrize("index", range(3))
def test_a_hop_killed_while_a_token_is_under_way(index: int) -> None:
    """At each of many moments inside one step: between request, compute, hand-over and result."""

    def kill_after(delay: float) -> Happening:
        async def kill(world: World, session: Session) -> None:
            world.later(delay, world.kill(hop(session, index)))

        return kill

    for millisecond in range(1, 33, 1):
        run(survive(TWICE, 20, kill_after(millisecond / 1000)))


def test_hops_are_cut_only_where_blocks_can_be_parted() -> None:
    """Overlapping servers would change within 2:5, and the shortest replacement of what is lost would begin there."""

    async def kill(world: World, session: Session) -> None:
        assert [str(h.span) for h in session.route.hops] == ["0:2", "2:9"]  # type: ignore[union-attr]
        await world.kill("c")

    world = World(joined=(Span(2, 5),))
    servers = {"a": Span(0, 5), "c": Span(2, 9), "d": Span(5, 9), "e": Span(0, 2)}

    async def go() -> Session:
        await world.add("a", servers["a"], decode_ms=5.0)
        await world.add("e", servers["e"])
        await world.add("c", servers["c"])
        await world.add("d", servers["d"])
        _, session = await survive({}, 15, kill, world=world)
        return session

    session = run(go())
    assert {str(h.span) for h in session.route.hops} <= {"0:2", "0:5", "2:5", "5:9"}  # type: ignore[union-attr]
    assert session.reroutes == 1


def test_a_hop_is_replaced_by_two_servers_with_shorter_spans() -> None:
    async def kill(world: World, session: Session) -> None:
        await world.kill("b")

    servers = {**SPANS, "x": Span(3, 5), "y": Span(5, 6)}
    _, session = run(survive(servers, 15, kill))
    assert [str(h.span) for h in session.route.hops] == ["0:3", "3:5", "5:6", "6:9"]  # type: ignore[union-attr]


def test_two_neighbouring_hops_die_at_once() -> None:
    async def kill(world: World, session: Session) -> None:
        first, second = hop(session, 1), hop(session, 2)
        await asyncio.gather(world.kill(first), world.kill(second))

    run(survive(TWICE, 15, kill))


def test_all_hops_die_at_once() -> None:
    async def kill(world: World, session: Session) -> None:
        await asyncio.gather(*(world.kill(hop(session, i)) for i in range(3)))

    run(survive(TWICE, 15, kill))


def test_the_replacement_dies_during_replay() -> None:
    async def kill(world: World, session: Session) -> None:
        await world.kill(hop(session, 1))
        replacement = next(name for name in world.servers if name.startswith("b"))
        await world.add("b3", Span(3, 6), decode_ms=5.0)
        world.servers[replacement].hosted.engine._seconds = lambda n: 0.5 * (n > 0)  # type: ignore[attr-defined]

        world.later(0.3, world.kill(replacement))

    _, session = run(survive(TWICE, 30, kill))
    assert session.reroutes == 2


@pytest.mark.parametrize("index", range(3))
def test_a_hop_freezes_and_wakes_later(index: int) -> None:
    async def freeze(world: World, session: Session) -> None:
        name = hop(session, index)
        world.network.freeze(name)
        asyncio.get_running_loop().call_later(10.0, world.network.thaw, name)

    _, session = run(survive(TWICE, 20, freeze, count=400))
    assert session.reroutes == 1, "the one that wakes disturbs nobody"


@pytest.mark.parametrize("silent", [True, False])
def test_only_the_link_between_two_living_hops_breaks(silent: bool) -> None:
    async def cut(world: World, session: Session) -> None:
        world.network.cut("a", "b", silent=silent)

    _, session = run(survive(SPANS, 20, cut))
    assert session.route is not None
    assert [h.peer_id for h in session.route.hops] == ["a", "b", "c"], "both ends live: neither may be dropped"
    assert session.route.relayed_links == {0}


def test_a_whole_swarm_restarts() -> None:
    async def restart(world: World, session: Session) -> None:
        for name, span in SPANS.items():
            await world.kill(name)
            await world.add(name, span)

    run(survive(SPANS, 20, restart))


def test_a_replay_out_of_history_spares_the_hops_that_live() -> None:
    """Only the replacement computes the past again; the others keep what they have."""

    async def kill(world: World, session: Session) -> None:
        await world.kill("b1")

    async def main() -> None:
        world, _ = await survive(dict(TWICE, b1=Span(3, 6)), 20, kill)
        computed = {name: server.runner.computed for name, server in world.servers.items()}
        positions = len(PROMPT) + 39
        assert computed["a1"] + computed["a2"] == positions
        assert computed["c1"] + computed["c2"] == positions
        assert computed["b2"] == positions

    run(main())


def test_without_history_the_client_replays_everything() -> None:
    async def kill(world: World, session: Session) -> None:
        await world.kill(hop(session, 1))

    run(survive(TWICE, 20, kill, world=World(server_config=ServerConfig(history_share=0.0))))


@pytest.mark.parametrize("index", range(3))
def test_blocks_that_cannot_roll_back_are_replayed_from_the_beginning(index: int) -> None:
    async def kill(world: World, session: Session) -> None:
        await world.kill(hop(session, index))

    config = ServerConfig(history_share=0.0)
    run(survive(TWICE, 20, kill, world=World(make_runner=ForgetlessRunner, server_config=config)))


@pytest.mark.parametrize("index", range(3))
def test_blocks_that_can_go_back_some_positions_survive_as_others_do(index: int) -> None:
    async def kill(world: World, session: Session) -> None:
        await world.kill(hop(session, index))

    for share in (0.0, 0.5):
        config = ServerConfig(history_share=share)
        run(survive(TWICE, 20, kill, world=World(make_runner=SnapshotRunner, server_config=config)))


def test_guesses_that_are_wrong_cost_no_replay_where_blocks_go_back() -> None:
    """Wrong windows, several on their way: every hop computes what was sent, once."""

    async def main() -> None:
        made: list[SnapshotRunner] = []

        def make() -> SnapshotRunner:
            made.append(SnapshotRunner())
            return made[-1]

        world, truth = World(make_runner=make), reference(PROMPT, 60)
        for name, span in SPANS.items():
            await world.add(name, span)
        for _ in range(3):
            session = world.session()
            session.expect_rollback()
            assert await speculate(session, world.arithmetic, PROMPT, truth, random.Random(7)) == truth
            assert session.statistics().epochs == 1, "nothing began anew"
            await session.close()
        assert not [complaint for runner in made for complaint in runner.complaints]
        await world.close()

    run(main())


def test_who_did_not_say_that_positions_would_be_taken_back_pays_once() -> None:
    async def main() -> None:
        world, truth = World(make_runner=SnapshotRunner), reference(PROMPT, 60)
        for name, span in SPANS.items():
            await world.add(name, span)
        session = world.session()
        assert await speculate(session, world.arithmetic, PROMPT, truth, random.Random(7)) == truth
        assert session.statistics().epochs == 2
        await session.close()
        await world.close()

    run(main())


def test_the_cache_was_evicted_between_two_turns() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(idle_expiry=30.0))
        for name, span in SPANS.items():
            await world.add(name, span)
        session = world.session()
        tokens = await generate(session, PROMPT, 10)
        await asyncio.sleep(600.0)
        assert all(server.bytes_held() == 0 for server in world.servers.values())
        more = await generate(session, tokens[-1:], 10)
        assert tokens + more == reference(PROMPT, 20)
        await world.close()

    run(main())


def test_a_draining_server_hands_its_sessions_on() -> None:
    async def drain(world: World, session: Session) -> None:
        server = world.servers.pop(hop(session, 1))
        began = asyncio.get_running_loop().time()
        await server.drain(60.0)
        assert asyncio.get_running_loop().time() - began < 5.0, "the successor took over long before the deadline"

    _, session = run(survive(TWICE, 20, drain))
    assert session.reroutes == 1


def test_a_session_waits_for_blocks_that_nobody_hosts() -> None:
    async def main() -> None:
        world = World()
        await world.add("a", Span(0, 3))
        await world.add("c", Span(6, 9))
        session = world.session()
        world.later(42.0, world.add("b", Span(3, 6)))
        assert await generate(session, PROMPT, 20) == reference(PROMPT, 20)
        waiting = [notice.text for notice in world.notices if notice.kind == "waiting"]
        assert "3:6" in waiting[0]
        assert "since 3" in waiting[3]
        assert asyncio.get_running_loop().time() < 60.0
        await world.close()

    run(main())


def test_who_waits_does_not_take_up_again_what_it_has_closed() -> None:
    """Each refusal would be a chance to take a server that lives for one that is lost."""

    async def main() -> None:
        world = World()
        for name, span in SPANS.items():
            await world.add(name, span)
        await world.kill("b")
        session = world.session()
        world.later(42.0, world.add("b2", Span(3, 6)))
        assert await generate(session, PROMPT, 20) == reference(PROMPT, 20)
        assert [world.servers[name].handler.refused.total() for name in ("a", "c")] == [0, 0]
        await world.close()

    run(main())


def test_max_wait_bounds_the_waiting_and_the_session_can_go_on_later() -> None:
    async def main() -> None:
        world = World()
        await world.add("a", Span(0, 3))
        session = world.session(ClientConfig(max_wait=30.0))
        with pytest.raises(MissingBlocks, match="3:9") as caught:
            await generate(session, PROMPT, 1)
        assert caught.value.blocks == ((3, 9),)
        await world.add("b", Span(3, 9))
        # The prompt was issued: the next turn goes on behind it.
        assert await generate(session, [5], 3) == reference([*PROMPT, 5], 3)
        await world.close()

    run(main())


def test_a_step_that_fails_everywhere_ends() -> None:
    class Broken(ExactRunner):
        def forward(self, span: Span, segments: object, hidden: Buffer) -> memoryview:
            raise ValueError("no such kernel")

    async def main() -> None:
        world = World(make_runner=Broken)
        for name in ("a", "b", "c", "d", "e", "f"):
            await world.add(name, Span(0, 9))
        with pytest.raises(GenerationFailed, match="no such kernel"):
            await generate(world.session(), PROMPT, 1)
        await world.close()

    run(main())


def test_one_broken_step_does_not_touch_other_sessions() -> None:
    class Picky(ExactRunner):
        def forward(self, span: Span, segments: list[Segment], hidden: Buffer) -> memoryview:  # type: ignore[override]
            if embed(666, 0) in bytes(hidden):
                raise ValueError("this one is not for me")
            return super().forward(span, segments, hidden)

    async def main() -> None:
        world = World(make_runner=Picky)
        await world.add("a", Span(0, 9))
        victim, others = world.session(), [world.session() for _ in range(4)]
        bad = asyncio.ensure_future(generate(victim, [666], 1))
        for tokens in await asyncio.gather(*(generate(other, PROMPT, 20) for other in others)):
            assert tokens == reference(PROMPT, 20)
        with pytest.raises(GenerationFailed):
            await bad
        await world.close()

    run(main())


def test_too_long_a_context_is_said_before_work_begins() -> None:
    async def main() -> None:
        world = World()
        session = world.session()
        with pytest.raises(ContextTooLong, match="4096"):
            await session.step([Rows(0, bytes(8 * 4097), 1)])
        assert session.length(0) == 0
        await world.close()

    run(main())


def test_an_impossible_step_changes_nothing() -> None:
    async def main() -> None:
        world = World()
        await world.add("a", Span(0, 9))
        session = world.session()
        tokens = await generate(session, PROMPT, 3)
        fork = pb.Operation(kind=pb.Operation.FORK, source=0, target=1, length=99)
        for rows, operations in (([Rows(0, b"123", 1)], []), ([], [fork]), ([Rows(0, embed(1, 1), 2)], [])):
            with pytest.raises(InvalidInput):
                await session.step(rows, operations)
        assert tokens + await generate(session, tokens[-1:], 3) == reference(PROMPT, 6)
        await world.close()

    run(main())


def test_a_cancelled_step_leaves_a_session_that_can_be_closed() -> None:
    async def main() -> None:
        world = World(step_seconds=lambda positions: 5.0)
        server = await world.add("a", Span(0, 9))
        session = world.session()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(generate(session, PROMPT, 3), 1.0)
        await session.close()
        with pytest.raises(SessionClosed):
            await session.step([Rows(0, embed(1, 0), 1)])
        await asyncio.sleep(20.0)
        assert server.bytes_held() == 0
        assert server.hosted.statistics().sessions == 0
        await world.close()

    run(main())


def test_a_lost_control_stream_is_taken_up_again() -> None:
    async def drop(world: World, session: Session) -> None:
        for stream in [s for s in world.servers["b"].host.streams if s.peer_id == "client0"]:
            stream.close()

    _, session = run(survive(SPANS, 20, drop))
    assert session.reroutes == 1
    assert [h.peer_id for h in session.route.hops] == ["a", "b", "c"]  # type: ignore[union-attr]


def test_a_full_server_is_left_for_one_with_room() -> None:
    async def main() -> None:
        small = ServerConfig(cache_bytes=9 * 8 * 20, history_share=0.0)
        world = World(server_config=small)
        await world.add("small", Span(0, 9), decode_ms=0.1)
        world.server_config = ServerConfig()
        await world.add("large", Span(0, 9), decode_ms=9.0)
        session = world.session()
        assert await generate(session, PROMPT, 40) == reference(PROMPT, 40)
        assert hop(session, 0) == "large"
        await world.close()

    run(main())


def test_a_route_never_mixes_a_model_with_its_fine_tune() -> None:
    async def main() -> None:
        world = World()
        await world.add("a", Span(0, 5), fingerprint=b"base")
        await world.add("b", Span(5, 9), fingerprint=b"base")
        session = world.session()
        await generate(session, PROMPT, 3)
        await world.kill("b")
        for name in ("t1", "t2", "t3"):
            await world.add(name, Span(5, 9), fingerprint=b"tune")
        world.later(30.0, world.add("b2", Span(5, 9), fingerprint=b"base"))
        await generate(session, [3], 3)
        assert hop(session, 1) == "b2"
        await world.close()

    run(main())


def test_many_sessions_share_forward_passes() -> None:
    async def main() -> None:
        world = World(step_seconds=lambda positions: 0.01)
        await world.add("a", Span(0, 9))
        sessions = [world.session() for _ in range(8)]
        began = asyncio.get_running_loop().time()
        for tokens in await asyncio.gather(*(generate(session, PROMPT, 40) for session in sessions)):
            assert tokens == reference(PROMPT, 40)
        assert asyncio.get_running_loop().time() - began < 2 * 40 * 0.03, "eight sessions take turns in one pass"
        await world.close()

    run(main())


def test_a_long_prompt_over_a_slow_link_is_no_failure() -> None:
    async def main() -> None:
        world = World(conditions=LinkConditions(delay=0.3, rate=2_000.0))
        for name, span in SPANS.items():
            await world.add(name, span)
        session = world.session(ClientConfig(slowest_rate=1_000.0))
        prompt = list(range(2000))
        assert await generate(session, prompt, 3) == reference(prompt, 3)
        assert session.reroutes == 0
        await world.close()

    run(main())


def test_results_of_the_exact_engine_depend_on_everything() -> None:
    """The oracle itself: a lost, doubled or swapped position changes the token."""
    right = reference(PROMPT, 3)
    assert reference(PROMPT[:-1], 3) != right
    assert reference([*PROMPT, PROMPT[-1]], 3) != right
    assert reference(PROMPT[::-1], 3) != right
    assert token_of(embed(1, 0)) != token_of(embed(1, 1))


# ---- guesses sent ahead ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
def test_windows_on_their_way_survive_a_hop_killed_at_any_token(index: int) -> None:
    async def main(seed: int) -> int:
        world, rng = World(conditions=LinkConditions(delay=0.05)), random.Random(seed)
        for name, span in TWICE.items():
            await world.add(name, span)
        session, at = world.session(), rng.randrange(40)

        def on_token(number: int) -> Awaitable[None] | None:
            nonlocal at
            if number < at:
                return None
            at = 1000
            return world.kill(hop(session, index)) if session.route is not None else None

        truth = reference(PROMPT, 40)
        assert await speculate(session, world.arithmetic, PROMPT, truth, rng, on_token=on_token) == truth
        await session.close()
        await asyncio.sleep(60.0)
        assert all(server.bytes_held() == 0 for server in world.servers.values())
        await world.close()
        return session.reroutes

    assert sum(run(main(seed)) for seed in range(40)) > 25


def test_a_step_whose_sequence_ended_is_void_and_the_next_goes_on() -> None:
    async def main() -> None:
        world = World(conditions=LinkConditions(delay=0.1))
        for name, span in SPANS.items():
            await world.add(name, span)
        session = world.session()
        await session.step([Rows(0, embed(1, 0), 1)])
        wrong = asyncio.ensure_future(session.step([Rows(0, embed(2, 1) + embed(3, 2), 2)]))
        more = asyncio.ensure_future(session.step([Rows(0, embed(4, 3), 1)]))
        await asyncio.sleep(0.05)
        move = pb.Operation(kind=pb.Operation.MOVE, source=0, target=1, length=1)
        (right,) = await session.step([Rows(1, embed(9, 1), 1)], [move])
        for void in (wrong, more):
            with pytest.raises(StepVoid):
                await void
        assert token_of(right) == reference_of([1, 9])
        assert session.length(1) == 2
        await session.close()
        await world.close()

    run(main())


def reference_of(tokens: list[int]) -> int:
    """The token that follows these."""
    return reference(tokens, 1)[0]


def test_what_a_rollback_made_void_is_not_computed() -> None:
    """Four windows wait for a slow engine; the rollback takes back those that it has not begun."""

    async def main() -> int:
        world = World(blocks=3)
        world.step_seconds = lambda positions: 1.0
        server = await world.add("a", Span(0, 3))
        session = world.session()
        await session.step([Rows(0, embed(1, 0), 1)])
        before = server.runner.computed
        steps = [asyncio.ensure_future(session.step([Rows(0, embed(i, i), 1)])) for i in range(1, 6)]
        await asyncio.sleep(0.5)
        move = pb.Operation(kind=pb.Operation.MOVE, source=0, target=1, length=1)
        await session.step([Rows(1, embed(9, 1), 1)], [move])
        await asyncio.gather(*steps, return_exceptions=True)
        computed = server.runner.computed - before
        await session.close()
        await world.close()
        return computed

    assert run(main()) == 2, "the window that had begun, and the one that counts"
