"""A second route that computes the same behind the first: where it is, what it holds back, and what it is good for."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from swarm.client.given import Given
from swarm.client.held import Held, merged
from swarm.client.routing import Conditions, find_route
from swarm.client.session import Session
from swarm.client.standby import apart_from
from swarm.config import ClientConfig, ServerConfig
from swarm.contract import Contract
from swarm.errors import InvalidInput
from swarm.testing import World, generate, reference, run
from swarm.types import Hop, Route, ServerRecord, Span
from swarm.wire import swarm_pb2 as pb

PROMPT = list(range(7))
TWICE = {"a1": Span(0, 3), "a2": Span(0, 3), "b1": Span(3, 6), "b2": Span(3, 6), "c1": Span(6, 9), "c2": Span(6, 9)}
STANDBY = ClientConfig(standby=1)


def step(sequence: int, start: int, count: int = 1, want: int = 1, *operations: pb.Operation) -> pb.Step:
    hidden = bytes(range(start, start + count))
    rows = [pb.Rows(sequence=sequence, start=start, count=count, want=want)]
    return pb.Step(rows=rows, hidden=hidden, operations=operations)


FORK = pb.Operation(kind=pb.Operation.FORK, source=0, target=1, length=2)
MOVE = pb.Operation(kind=pb.Operation.MOVE, source=0, target=1, length=2)


# ---- what is held back --------------------------------------------------------------------------------------------


def test_what_the_first_route_has_answered_is_released_with_all_before_it() -> None:
    held = Held()
    held.hold([step(0, 0, 4, 0), step(0, 4, 2), step(0, 6)])
    assert held.take(100) == []
    held.answered(step(0, 5))
    assert held.take(100) == [step(0, 0, 6, 1)]
    assert (len(held), held.nbytes) == (1, 1)
    held.release()
    assert held.take(100) == [step(0, 6)]
    assert held.nbytes == 0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([step(0, 0), step(0, 1), step(0, 2)], [step(0, 0, 3, 3)], id="one after the other"),
        pytest.param([step(0, 0, 4, 1), step(0, 4, 2, 0)], [step(0, 0, 6, 3)], id="wanted are the last"),
        pytest.param([step(0, 0, 4, 0), step(0, 4, 2, 1)], [step(0, 0, 6, 1)], id="not more than were"),
        pytest.param([step(0, 0, 3), step(0, 3, 3)], [step(0, 0, 3), step(0, 3, 3)], id="no more than fit"),
        pytest.param([step(0, 0), step(1, 0)], [step(0, 0), step(1, 0)], id="another sequence"),
        pytest.param([step(0, 0), step(0, 1, 1, 1, FORK)], [step(0, 0), step(0, 1, 1, 1, FORK)], id="an operation"),
    ],
)
def test_steps_are_made_fewer(steps: list[pb.Step], expected: list[pb.Step]) -> None:
    limit = 5 if len(expected) == 2 else 100
    assert merged(steps, limit) == expected


def test_what_was_given_and_what_is_to_come() -> None:
    given = Given({0: 4}, {0: 3})
    assert given.awaited == {0: 4}
    assert not given.came(step(7, 0))
    assert given.came(step(0, 3))
    assert given.awaited == {}
    assert not given.came(step(0, 3)), "twice the same is no sign of life"
    given.put(step(0, 4, 2))
    given.put(step(1, 2, 1, 1, MOVE))
    assert (given.lengths, given.awaited) == ({1: 3}, {1: 3}), "what has ended is not waited for"


# ---- where it is --------------------------------------------------------------------------------------------------


def server(peer: str, span: Span, address: str) -> ServerRecord:
    prints = tuple(bytes(8) for _ in span)
    contract = Contract("m", span, prints, "float32", "none", (), 4, 16)
    return ServerRecord(peer, contract, addresses=(address,), free_tokens=100, decode_ms=1.0)


def test_a_standby_is_on_other_peers_at_other_addresses_where_there_are_any() -> None:
    span = Span(0, 3)
    first, near = server("first", span, "/ip4/1.2.3.4/tcp/1"), server("near", span, "/ip4/1.2.3.4/tcp/2")
    far = replace(server("far", span, "/ip4/5.6.7.8/tcp/1"), decode_ms=20.0)
    behind = server("behind", span, "/ip4/1.2.3.4/tcp/9/p2p/x/p2p-circuit")
    route = Route((Hop(first, span),))

    def chosen(*records: ServerRecord) -> str:
        apart = apart_from(route, records)
        return find_route(records, span, Conditions(apart=apart)).hops[0].peer_id

    assert chosen(first, near, far) == "far"
    assert chosen(first, near) == "near"
    assert chosen(first, near, behind) == "behind", "a circuit's address is its forwarder's"
    assert chosen(first) == "first"


def test_blocks_that_one_peer_alone_has_do_not_drag_the_others_along() -> None:
    span = Span(0, 3)
    whole, part = server("whole", span, "/ip4/1.1.1.1/tcp/1"), server("part", Span(1, 3), "/ip4/2.2.2.2/tcp/1")
    route = Route((Hop(whole, span),))
    found = find_route([whole, part], span, Conditions(apart=apart_from(route, [whole, part])))
    assert [(hop.peer_id, str(hop.span)) for hop in found.hops] == [("whole", "0:1"), ("part", "1:3")]


def test_there_is_no_more_than_one() -> None:
    with pytest.raises(InvalidInput, match="standby=2"):
        ClientConfig(standby=2)


# ---- what it is good for ------------------------------------------------------------------------------------------


async def play(
    servers: Mapping[str, Span], happenings: Mapping[int, Callable[[World, Session], None]], count: int = 60
) -> tuple[list[float], Session]:
    """Generate with a standby; seconds until each token. The tokens are the reference's, and nothing is left behind."""
    world = World(step_seconds=lambda n: 0.01 + 0.0002 * n, server_config=ServerConfig(grace=5.0))
    for name, span in servers.items():
        await world.add(name, span)
    session, times = world.session(STANDBY), list[float]()

    def on_token(index: int) -> None:
        times.append(asyncio.get_running_loop().time())
        if index in happenings:
            happenings[index](world, session)

    assert await asyncio.wait_for(generate(session, PROMPT, count, on_token=on_token), 600) == reference(PROMPT, count)
    for name in list(world.network._frozen):
        world.network.thaw(name)
    await session.close()
    await asyncio.sleep(60.0)
    assert [each.bytes_held() for each in world.servers.values()] == [0] * len(world.servers)
    assert [each.hosted.statistics().sessions for each in world.servers.values()] == [0] * len(world.servers)
    await world.close()
    return [after - before for before, after in itertools.pairwise(times)], session


def kill(index: int, *, standby: bool = False) -> Callable[[World, Session], None]:
    def happen(world: World, session: Session) -> None:
        route = session.standby if standby else session.route
        if route is not None and route.hops[index].peer_id in world.servers:
            world.later(0.0, world.kill(route.hops[index].peer_id))

    return happen


def freeze(index: int, *, standby: bool = False) -> Callable[[World, Session], None]:
    def happen(world: World, session: Session) -> None:
        route = session.standby if standby else session.route
        if route is not None:
            world.network.freeze(route.hops[index].peer_id)

    return happen


def both(*losses: Callable[[World, Session], None]) -> Callable[[World, Session], None]:
    def happen(world: World, session: Session) -> None:
        for loss in losses:
            loss(world, session)

    return happen


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("loss", [kill, freeze])
def test_whatever_is_lost_the_next_token_comes_in_its_time(
    index: int, loss: Callable[[int], Callable[[World, Session], None]]
) -> None:
    gaps, session = run(play(TWICE, {30: loss(index)}))
    usual = sorted(gaps)[len(gaps) // 2]
    assert max(gaps[30:]) < 4 * usual
    assert session.raced


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("loss", [kill, freeze])
def test_the_loss_of_the_standby_is_not_noticed(
    index: int, loss: Callable[..., Callable[[World, Session], None]]
) -> None:
    gaps, session = run(play(TWICE, {30: loss(index, standby=True)}))
    assert max(gaps[10:]) < 1.5 * sorted(gaps)[len(gaps) // 2]
    assert session.reroutes == 0


def test_both_lost_at_every_moment_also_while_it_is_filled() -> None:
    for at in (1, 2, 3, 20):
        for one in (kill(1), freeze(1)):
            for other in (kill(1, standby=True), freeze(0, standby=True)):
                run(play({**TWICE, "b3": Span(3, 6)}, {at: both(one, other)}, 40))


def test_blocks_of_one_server_alone_are_computed_there_twice() -> None:
    """So the others have a standby; and where nobody else has any block, there is none."""
    gaps, _ = run(play({"a": Span(0, 3), "b1": Span(3, 6), "b2": Span(3, 6), "c": Span(6, 9)}, {30: freeze(1)}))
    assert max(gaps[30:]) < 6 * sorted(gaps)[len(gaps) // 2]
    seen: list[object] = []
    run(play({"a": Span(0, 9)}, {20: lambda world, session: seen.append(session.standby)}))
    assert seen == [None]


def test_a_standby_moves_to_servers_of_its_own_when_there_are_any() -> None:
    seen: list[str] = []

    def join(world: World, session: Session) -> None:
        world.later(0.0, _add(world))

    def look(world: World, session: Session) -> None:
        assert session.standby is not None
        seen.extend(hop.peer_id for hop in session.standby.hops)

    servers = {"a1": Span(0, 3), "a2": Span(0, 3), "b1": Span(3, 6), "b2": Span(3, 6), "c1": Span(6, 9)}
    run(play(servers, {20: join, 599: look}, 600))
    assert seen[-1] == "c2"


async def _add(world: World) -> None:
    await world.add("c2", Span(6, 9))


def test_each_step_is_computed_once_on_each_route_and_a_step_behind() -> None:
    computed: list[dict[str, int]] = []

    def look(world: World, session: Session) -> None:
        computed.append({name: each.runner.computed for name, each in world.servers.items()})

    run(play(TWICE, {40: look}))
    first, spare = computed[0]["a1"], computed[0]["a2"]
    assert 0 < first - spare <= 3
