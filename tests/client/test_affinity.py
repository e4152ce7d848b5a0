"""Sessions go where the beginning of their prompt was computed, when that is worth the detour, and else nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.client.affinity import holdings, preferred, session_seconds
from swarm.client.beginnings import GRAIN, MOST_PROMPTS, Beginnings, Holding, Match, labels_of
from swarm.client.routing import Conditions
from swarm.client.session import Session
from swarm.client.view import View
from swarm.config import ClientConfig, ServerConfig
from swarm.contract import Contract
from swarm.server.handler import Handler
from swarm.testing import Peer, World, embed, generate, reference, run
from swarm.types import Hop, Route, ServerRecord, ServerState, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import RowLog

# ---- what is remembered ---------------------------------------------------------------------------------------

ROW_BYTES = 200


def log_of(tokens: Sequence[int]) -> RowLog:
    log = RowLog(ROW_BYTES)
    log.append(b"".join(bytes([token]) * ROW_BYTES for token in tokens))
    return log


def labels(tokens: Sequence[int]) -> tuple[bytes, ...]:
    return labels_of(log_of(tokens), len(tokens))


def server(name: str, first: int, last: int, **more: Any) -> ServerRecord:
    prints = tuple(b"%08d" % block for block in range(first, last))
    return replace(ServerRecord(name, Contract("model", Span(first, last), prints), free_tokens=10_000), **more)


def route_of(*records: ServerRecord) -> Route:
    return Route(tuple(Hop(record, record.span) for record in records))


A, B, C = server("a", 0, 4), server("b", 4, 8), server("c", 4, 8)


@given(st.integers(0, 4 * GRAIN), st.integers(0, 4 * GRAIN), st.integers(0, 4 * GRAIN - 1))
def test_labels_agree_as_far_as_prompts_do(one: int, other: int, changed: int) -> None:
    first, second = [1] * one, [2 if place == changed else 1 for place in range(other)]
    same = min(one, other, changed if changed < other else other) // GRAIN
    found = [x == y for x, y in zip(labels(first), labels(second), strict=False)]
    assert found == [index < same for index in range(len(found))]
    assert len(labels(first)) == one // GRAIN


KEYS = {"a": Hop(A, A.span).key, "b": Hop(B, B.span).key}
NOTES = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 6), st.sampled_from("ab"), st.integers(0, GRAIN)), max_size=12
)


@settings(max_examples=50)
@given(NOTES, st.integers(0, 8))
def test_no_more_is_said_to_be_kept_than_a_hop_told_and_the_prompts_share(
    notes: list[tuple[int, int, str, int]], asked: int
) -> None:
    beginnings, most = Beginnings(), {"a": 0, "b": 0}
    for number, (same, rest, hop, short) in enumerate(notes):
        tokens = [0] * (same * GRAIN) + [1 + number] * (rest * GRAIN)
        held = len(tokens) - short
        beginnings.note(labels(tokens[:held]), route_of(A, B), KEYS[hop], Holding(held, b"%d" % number))
        if held >= GRAIN:
            most[hop] = max(most[hop], min(same, asked, held // GRAIN) * GRAIN)
    found = holdings(beginnings.matches(labels([0] * (asked * GRAIN))))
    for hop, key in KEYS.items():
        assert (found[key].positions if key in found else 0) <= most[hop]
        assert key not in found or found[key].positions > 0


def test_a_conversation_is_one_prompt_and_the_longest_agreement_comes_first() -> None:
    beginnings, route = Beginnings(), route_of(A, B)
    text = [1] * (4 * GRAIN)
    for turn in range(1, 5):
        for hop in KEYS.values():
            beginnings.note(labels(text[: turn * GRAIN]), route, hop, Holding(turn * GRAIN, b"%d" % turn))
    assert len(beginnings) == 1
    beginnings.note(labels([1] * GRAIN + [2] * GRAIN), route_of(A, C), KEYS["a"], Holding(2 * GRAIN, b"other"))
    assert [len(match.held) for match in beginnings.matches(labels(text))] == [2, 1]
    assert holdings(beginnings.matches(labels(text)))[KEYS["b"]] == Holding(4 * GRAIN, b"4")
    assert beginnings.matches(labels([3] * (4 * GRAIN))) == []
    for hop in KEYS.values():
        beginnings.forget(hop, b"4")
    assert len(beginnings) == 1
    beginnings.forget(KEYS["a"], b"other")
    assert len(beginnings) == 0


def test_only_so_many_prompts_are_remembered_and_short_ones_not_at_all() -> None:
    beginnings = Beginnings()
    for token in range(MOST_PROMPTS + 5):
        beginnings.note(labels([token] * GRAIN), route_of(A), KEYS["a"], Holding(GRAIN, b""))
    beginnings.note(labels([0] * (GRAIN - 1)), route_of(A), KEYS["a"], Holding(GRAIN - 1, b""))
    assert len(beginnings) == MOST_PROMPTS
    assert [bool(beginnings.matches(labels([token] * GRAIN))) for token in (4, 5)] == [False, True]


# ---- what is worth it -----------------------------------------------------------------------------------------


def chosen(records: list[ServerRecord], plain: Route, matches: list[Match], conditions: Conditions) -> list[str]:
    return [hop.peer_id for hop in preferred(plain, matches, 1024, records, conditions).hops]


def kept(route: Route, positions: int, *peers: str) -> Match:
    return Match(route, {hop.key: Holding(positions, b"") for hop in route.hops if hop.peer_id in peers})


SLOW = server("slow", 0, 8, decode_ms=11.0)
FAST = server("fast", 0, 8, decode_ms=10.0)


@pytest.mark.parametrize(
    ("positions", "decode_ms", "expected"),
    [(960, 11.0, "slow"), (960, 30.0, "fast"), (64, 11.0, "fast"), (0, 10.5, "fast")],
)
def test_what_is_kept_is_weighed_against_every_token_of_the_answer(
    positions: int, decode_ms: float, expected: str
) -> None:
    records = [replace(SLOW, decode_ms=decode_ms, prefill_rate=2000.0), replace(FAST, prefill_rate=2000.0)]
    matches = [kept(route_of(SLOW), positions, "slow")] if positions else []
    assert chosen(records, route_of(records[1]), matches, Conditions()) == [expected]


def test_a_hop_that_has_become_slow_goes_and_the_others_stay() -> None:
    a, b = server("a", 0, 4, decode_ms=10.5), server("b", 4, 8, decode_ms=60.0)
    x, y = server("x", 0, 4, decode_ms=10.0), server("y", 4, 8, decode_ms=10.0)
    records = [a, b, x, y]
    assert chosen(records, route_of(x, y), [kept(route_of(a, b), 960, "a", "b")], Conditions()) == ["a", "y"]


def test_who_is_gone_avoided_or_keeps_nothing_is_no_reason() -> None:
    match, fast = kept(route_of(SLOW), 960, "slow"), route_of(FAST)
    assert chosen([SLOW, FAST], fast, [match], Conditions()) == ["slow"]
    assert chosen([FAST], fast, [match], Conditions()) == ["fast"]
    assert chosen([replace(SLOW, state=ServerState.DRAINING), FAST], fast, [match], Conditions()) == ["fast"]
    assert chosen([SLOW, FAST], fast, [match], Conditions(avoid_peers=frozenset(["slow"]))) == ["fast"]
    assert chosen([SLOW, FAST], fast, [Match(match.route, {})], Conditions()) == ["fast"]
    other = replace(SLOW, contract=replace(SLOW.contract, fingerprints=(b"otherway",) * 8))
    assert chosen([other, FAST], fast, [match], Conditions()) == ["fast"], "other weights"


RECORDS = st.lists(
    st.builds(
        lambda name, span, decode, rate: server(name, *span, decode_ms=decode, prefill_rate=rate),
        st.sampled_from("abcdef"),
        st.sampled_from([(0, 4), (4, 8), (0, 8), (0, 6), (2, 8)]),
        st.floats(1.0, 50.0),
        st.floats(100.0, 1e5),
    ),
    max_size=6,
    unique_by=lambda record: record.peer_id,
)


@settings(max_examples=40)
@given(RECORDS, st.lists(st.integers(0, 1024), min_size=2, max_size=2))
def test_whatever_is_kept_the_session_takes_no_longer_than_on_the_plain_route(
    records: list[ServerRecord], positions: list[int]
) -> None:
    whole = server("whole", 0, 8, decode_ms=25.0)
    records, plain, old = [*records, whole], route_of(whole), route_of(server("a", 0, 4), server("b", 4, 8))
    held = {hop.key: Holding(count, b"") for hop, count in zip(old.hops, positions, strict=True) if count}
    route = preferred(plain, [Match(old, held)], 1024, records, Conditions())
    assert [block for hop in route.hops for block in hop.span] == list(range(8))
    assert all(any(r.peer_id == hop.peer_id and r.span.covers(hop.span) for r in records) for hop in route.hops)
    took = [session_seconds(each, 1024, held, records, Conditions()) for each in (route, plain)]
    assert took[0] <= took[1]


# ---- on the simulated network ---------------------------------------------------------------------------------

PROMPT = [token % 50 for token in range(512)]
KEEPING = ServerConfig(prefix_share=0.5)
PAUSE = 6.0
"""Seconds after which the directory is read again."""


class Watched(World):
    """A swarm of servers of all blocks, and one client, that counts what is asked of control streams."""

    view: View | None = None

    async def serve(self, name: str, decode_ms: float) -> None:
        await self.add(name, self.span, decode_ms=decode_ms)
        await asyncio.sleep(PAUSE)

    async def ask(self, prompt: Sequence[int], count: int = 3) -> tuple[str, int]:
        """Who answers a prompt, rightly, and how many positions it computes for that."""
        before = {name: server.runner.computed for name, server in self.servers.items()}
        session: Session = self.session(ClientConfig(), "client", self.view)
        self.view = session.view
        assert await generate(session, prompt, count) == reference(prompt, count)
        assert session.route is not None
        (hop,) = session.route.hops
        await session.close()
        await asyncio.sleep(1.0)
        return hop.peer_id, self.servers[hop.peer_id].runner.computed - before[hop.peer_id]


def test_a_prompt_goes_where_its_beginning_was_computed_though_another_is_a_little_faster() -> None:
    async def main() -> None:
        world = Watched(server_config=KEEPING)
        await world.serve("a", 11.0)
        assert await world.ask(PROMPT) == ("a", 514)
        await world.serve("b", 10.0)
        assert await world.ask([*PROMPT, 7, 8, 9]) == ("a", 5)
        assert await world.ask([3, 4, *PROMPT]) == ("b", 516), "another prompt"
        assert await world.ask([3, 4, *PROMPT, 1]) == ("b", 5)
        assert await world.ask(PROMPT[: GRAIN - 4]) == ("b", GRAIN - 2), "too short to be known"
        await world.close()

    run(main())


@pytest.mark.parametrize(("config", "decode_ms"), [(KEEPING, 30.0), (ServerConfig(prefix_share=0.0), 11.0)])
def test_not_where_another_is_much_faster_or_nothing_is_kept(config: ServerConfig, decode_ms: float) -> None:
    async def main() -> None:
        world = Watched(server_config=config)
        await world.serve("a", decode_ms)
        await world.ask(PROMPT)
        await world.serve("b", 10.0)
        assert (await world.ask(PROMPT))[0] == "b"
        assert world.view is not None
        assert bool(world.view.beginnings) == (config is KEEPING)
        await world.close()

    run(main())


def test_every_hop_is_asked_once_and_only_where_the_answer_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        asked = list[str]()
        recall = Handler._recall

        def counted(self: Handler, message: pb.Recall) -> pb.Kept:
            asked.append(self.host.peer_id)
            return recall(self, message)

        monkeypatch.setattr(Handler, "_recall", counted)
        world = World(server_config=KEEPING)
        for name, span in (("a", Span(0, 5)), ("b", Span(5, 9))):
            await world.add(name, span, decode_ms=11.0)
        view = world.session(name="client").view

        async def ask(prompt: Sequence[int]) -> list[str]:
            asked.clear()
            session = world.session(name="client", view=view)
            assert await generate(session, prompt, 3) == reference(prompt, 3)
            assert session.route is not None
            await session.close()
            await asyncio.sleep(PAUSE)
            return [hop.peer_id for hop in session.route.hops]

        assert (await ask(PROMPT), asked) == (["a", "b"], [])
        assert (await ask(PROMPT), asked) == (["a", "b"], []), "that is the best route anyway"
        for name, span in (("x", Span(0, 5)), ("y", Span(5, 9))):
            await world.add(name, span, decode_ms=10.0)
        await asyncio.sleep(PAUSE)
        assert (await ask([*PROMPT, 1]), sorted(asked)) == (["a", "b"], ["a", "b"])
        world.servers["b"].hosted.prefixes.clear()
        assert (await ask([*PROMPT, 2]), sorted(asked)) == (["a", "y"], ["a", "b"]), "b keeps nothing, a does"
        assert (await ask([5, *PROMPT]), asked) == (["x", "y"], [])
        await world.close()

    run(main())


@pytest.mark.parametrize("gone", ["evicted", "restarted", "frozen"])
def test_what_is_not_kept_any_more_is_no_reason(gone: str) -> None:
    async def main() -> None:
        world = Watched(server_config=KEEPING)
        await world.serve("a", 11.0)
        await world.ask(PROMPT)
        await world.serve("b", 10.0)
        if gone == "evicted":
            world.servers["a"].hosted.prefixes.clear()
        elif gone == "restarted":
            await world.kill("a")
            await world.serve("a", 11.0)
        else:
            world.network.freeze("a")
        assert await world.ask(PROMPT) == ("b", 514)
        if gone == "frozen":
            world.network.thaw("a")
        await world.close()

    run(main())


def test_digests_are_told_to_whom_they_concern_and_nobody_can_guess_them() -> None:
    async def main() -> None:
        world = Watched(server_config=replace(KEEPING, share_prefixes=True))
        for name in ("a", "b"):
            await world.serve(name, 10.0)
        contract = messages.contract_message(world.servers["a"].record.contract)
        peer, digests = Peer(world, "peer"), []
        for name in ("a", "b"):
            talk = await peer.control(name, peer.opening(name, bytes(16)))
            manifest = [pb.Sequence(id=0, length=64)]
            await talk.say(pb.ControlRequest(prepare=pb.Prepare(epoch=1, sequences=manifest, recalls=True)))
            await talk.say(pb.ControlRequest(resume=pb.Resume(epoch=1)))
            await asyncio.sleep(0.1)
            data = await peer.data(name, bytes(16), 1)
            rows = [pb.Rows(sequence=0, start=0, count=64, want=1)]
            hidden = b"".join(embed(token, place) for place, token in enumerate(PROMPT[:64]))
            await data.say(pb.Data(step=pb.Step(rows=rows, hidden=hidden)))
            await asyncio.sleep(1.0)
            (kept,) = [reply.kept for reply in talk.take() if reply.WhichOneof("kind") == "kept"]
            assert (kept.sequence, kept.positions) == (0, 64)
            digests.append(kept.digest)
        answers = []
        for digest in (*digests, bytes(32), b"short"):
            talk = await peer.control("a", pb.ControlRequest(recall=pb.Recall(contract=contract, digest=digest)))
            await asyncio.sleep(0.1)
            (reply,) = talk.take()
            answers.append(reply.kept.positions if reply.HasField("kept") else reply.failure.code)
            assert talk.over
        assert answers == [64, 0, 0, pb.Failure.MALFORMED], "the same prompt has another digest at every server"
        assert world.servers["a"].handler.statistics().controls == 1
        await world.close()

    run(main())
