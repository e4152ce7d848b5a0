"""Hidden states that travel as int8: which links they do so on, and that the tokens are the same whatever happens."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.encoding import LinkEnd, Rates, choose_codec, choose_codecs, rates_of
from swarm.client.session import Session
from swarm.config import ClientConfig
from swarm.errors import InvalidInput
from swarm.jobs import compute
from swarm.server.control import PADDED_REPLIES
from swarm.testing import MASK, ROW, VOCABULARY, Arithmetic, ExactRunner, LinkConditions, Peer, World, generate, run
from swarm.types import Segment, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import codec_of
from swarm.wire.rows import Buffer
from tests.test_chaos import llama_arithmetic

SIZE = 200
PROMPT = list(range(9))
SPANS = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 9)}
TWICE = {f"{name}{i}": span for name, span in SPANS.items() for i in (1, 2)}
INT8 = ClientConfig(codec="int8")
RAW = ["raw"] * 4
BOTH = ("raw", "int8")


# ---- blocks of vectors, of which every bit counts -------------------------------------------------------------


def digest(row: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")


def vector(state: int) -> bytes:
    """A gaussian hidden state with two outliers, all of it drawn from `state`."""
    values = np.random.default_rng(state & MASK).normal(size=SIZE)
    values[[3, 150]] *= 40
    return values.astype("<f4").tobytes()


class VectorRunner(ExactRunner):
    """Each hidden state that comes in is hashed, bit for bit; each that goes out is drawn from a hash."""

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        view = memoryview(hidden)
        rows = [bytes(view[i : i + 4 * SIZE]) for i in range(0, len(view), 4 * SIZE)]
        states = super().forward(span, segments, b"".join(ROW.pack(digest(row)) for row in rows))
        return memoryview(b"".join(vector(state) for (state,) in ROW.iter_unpack(states)))


ARITHMETIC = Arithmetic(
    4 * SIZE,
    lambda token, position: vector(hash((token, position))),
    lambda output: digest(output[-4 * SIZE :]) % VOCABULARY,
    lambda span: VectorRunner(),
    "float32",
    SIZE,
)


def reference(
    count: int, codecs: Sequence[str] = ("int8",) * 4, arithmetic: Arithmetic = ARITHMETIC, spans: Sequence[Span] = ()
) -> list[int]:
    """What servers of the three spans generate in one process, with these codecs on the four links."""
    spans = spans or list(SPANS.values())
    size = arithmetic.hidden_size
    links = [codec_of(name, "float32", size) for name in codecs]
    runners, tokens, start = [arithmetic.make_runner(span) for span in spans], list(PROMPT), 0
    while len(tokens) < len(PROMPT) + count:
        rows: Buffer = b"".join(arithmetic.embed(token, start + i) for i, token in enumerate(tokens[start:]))
        segment = Segment((b"", 0), start, len(tokens) - start)
        for runner, span, link in zip(runners, spans, links, strict=False):
            rows = compute(runner, span, [segment], link.decode(link.encode(rows)))
        start = len(tokens)
        tokens.append(arithmetic.token_of(links[-1].decode(links[-1].encode(rows))))
    return tokens[len(PROMPT) :]


Happening = Callable[[World, Session], Awaitable[None]]


async def generated(
    world: World,
    servers: dict[str, Span],
    config: ClientConfig = INT8,
    happening: Happening | None = None,
    *,
    at: int = 12,
    count: int = 25,
    offers: dict[str, tuple[str, ...]] | None = None,
) -> tuple[list[int], Session, list[str]]:
    """The tokens, with something happening before one of them; the session, and the codecs it ended with."""
    for name, span in servers.items():
        await world.add(name, span, codecs=(offers or {}).get(name))
    session = world.session(config)

    def on_token(index: int) -> Awaitable[None] | None:
        return happening(world, session) if happening is not None and index == at else None

    arithmetic = world.arithmetic
    tokens = await asyncio.wait_for(generate(session, PROMPT, count, on_token=on_token, arithmetic=arithmetic), 600.0)
    codecs = list(session.statistics().codecs)
    await session.close()
    await world.close()
    return tokens, session, codecs


def world_of(arithmetic: Arithmetic = ARITHMETIC, blocks: int = 9, conditions: LinkConditions | None = None) -> World:
    return World(arithmetic=arithmetic, blocks=blocks, conditions=conditions)


# ---- the same tokens, whatever happens ------------------------------------------------------------------------


def test_raw_is_the_default_and_exact() -> None:
    tokens, _, codecs = run(generated(world_of(), SPANS, ClientConfig()))
    assert tokens == reference(25, RAW)
    assert codecs == RAW


def test_two_runs_as_int8_give_the_same_tokens() -> None:
    for _ in range(2):
        tokens, _, codecs = run(generated(world_of(), SPANS))
        assert tokens == reference(25) != reference(25, RAW)
        assert codecs == ["int8"] * 4


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("milliseconds", [0, 7, 14, 21, 28])
def test_a_hop_killed_under_int8_changes_no_token(index: int, milliseconds: int) -> None:
    async def kill(world: World, session: Session) -> None:
        assert session.route is not None
        world.later(milliseconds / 1000, world.kill(session.route.hops[index].peer_id))

    tokens, session, codecs = run(generated(world_of(), TWICE, happening=kill))
    assert tokens == reference(25)
    assert session.reroutes == 1
    assert codecs == ["int8"] * 4


def test_all_hops_killed_under_int8_change_no_token() -> None:
    async def kill(world: World, session: Session) -> None:
        assert session.route is not None
        for hop in session.route.hops:
            await world.kill(hop.peer_id)

    tokens, _, _ = run(generated(world_of(), TWICE, happening=kill))
    assert tokens == reference(25)


def test_a_link_that_goes_through_the_client_from_then_on_changes_no_token() -> None:
    """Encoded once, not once on each half."""

    async def cut(world: World, session: Session) -> None:
        world.network.cut("a", "b", silent=False)

    tokens, session, _ = run(generated(world_of(), SPANS, happening=cut))
    assert session.route is not None
    assert session.route.relayed_links == {0}
    assert tokens == reference(25)


def test_evicted_caches_and_histories_change_no_token() -> None:
    async def evict(world: World, session: Session) -> None:
        for held in world.servers["b"].hosted.sessions.values():
            held.evict()
        for held in world.servers["a"].hosted.sessions.values():
            held.drop_history()

    tokens, session, _ = run(generated(world_of(), SPANS, happening=evict))
    assert tokens == reference(25)
    assert session.reroutes == 1


@pytest.mark.parametrize("index", range(2))
def test_a_hop_of_torch_layers_killed_under_int8_changes_no_token(index: int) -> None:
    llama, halves = llama_arithmetic(64), [Span(0, 3), Span(3, 6)]
    servers = {f"{name}{i}": span for name, span in zip("ab", halves, strict=True) for i in (1, 2)}

    async def kill(world: World, session: Session) -> None:
        assert session.route is not None
        await world.kill(session.route.hops[index].peer_id)

    tokens, session, codecs = run(generated(world_of(llama, 6), servers, happening=kill))
    assert tokens == reference(25, ["int8"] * 3, llama, halves)
    assert session.reroutes == 1
    assert codecs == ["int8"] * 3


def test_who_does_not_speak_int8_is_sent_and_sends_raw() -> None:
    tokens, _, codecs = run(generated(world_of(), SPANS, offers={"b": ("raw",)}))
    assert codecs == ["int8", "raw", "raw", "int8"]
    assert tokens == reference(25, codecs)


def test_a_server_that_has_never_heard_of_codecs_is_sent_raw() -> None:
    tokens, _, codecs = run(generated(world_of(), SPANS, offers={"a": ()}))
    assert codecs == ["raw", "raw", "int8", "int8"]
    assert tokens == reference(25, codecs)


# ---- what is decided ------------------------------------------------------------------------------------------


def test_auto_is_raw_on_fast_links() -> None:
    conditions = LinkConditions(rate=1e8)
    tokens, _, codecs = run(generated(world_of(conditions=conditions), SPANS, ClientConfig(codec="auto")))
    assert codecs == RAW
    assert tokens == reference(25, RAW)


def test_auto_is_int8_where_a_server_is_slow_to_reach() -> None:
    world = world_of(conditions=LinkConditions(rate=1e8))
    for other in ("client0", "a", "c"):
        world.network.set_link("b", other, LinkConditions(rate=1e5))
    tokens, session, codecs = run(generated(world, SPANS, ClientConfig(codec="auto")))
    assert codecs == ["raw", "int8", "int8", "raw"]
    assert tokens == reference(25, codecs)
    rates = [hop.rates for hop in session.statistics().hops]
    assert [rate.up for rate in rates] == pytest.approx([1e8, 1e5, 1e8], rel=0.1)
    assert [rate.down for rate in rates] == pytest.approx([1e8, 1e5, 1e8], rel=0.1)


def test_a_link_too_slow_to_be_measured_is_int8() -> None:
    world = world_of(conditions=LinkConditions(rate=1e8))
    world.network._conditions["client0", "a"] = LinkConditions(rate=15_000)
    tokens, session, codecs = run(generated(world, SPANS, ClientConfig(codec="auto")))
    assert codecs == ["int8", "raw", "raw", "raw"]
    assert tokens == reference(25, codecs)
    rates = session.statistics().hops[0].rates
    assert rates.up == pytest.approx(messages.MAX_PADDING / ClientConfig().silence, rel=0.1)
    assert rates.down is None


def test_a_server_that_dies_while_it_is_measured_is_replaced() -> None:
    world = world_of(conditions=LinkConditions(rate=1e5))

    async def die() -> tuple[list[int], Session, list[str]]:
        world.later(1.0, kill_the_measured())
        return await generated(world, TWICE, ClientConfig(codec="auto"))

    async def kill_the_measured() -> None:
        handlers = {name: server.handler for name, server in world.servers.items()}
        opened = [name for name, handler in handlers.items() if list(handler.sessions)]
        assert len(opened) == 3
        await world.kill(opened[1])

    tokens, _, codecs = run(die())
    assert codecs == ["int8"] * 4
    assert tokens == reference(25)


def test_only_known_choices() -> None:
    with pytest.raises(InvalidInput, match="raw, int8, auto"):
        ClientConfig(codec="int4")


POSITIVE = st.floats(1e-3, 1e12)


@given(POSITIVE, st.integers(1, 1 << 20), POSITIVE)
def test_int8_where_the_wire_takes_longer_than_the_blocks(rate: float, row: int, speed: float) -> None:
    chosen = choose_codec(rate, row, speed, BOTH)
    if not math.isclose(row / rate, 1 / speed):
        assert (chosen == "int8") == (row / rate > 1 / speed)
    assert choose_codec(rate, row, speed, ("raw",)) == choose_codec(None, row, speed, BOTH) == "raw"


def test_rates_are_told_by_the_time_between_answers() -> None:
    assert rates_of([5.0, 5.5, 5.75], 1000) == Rates(2000.0, 4000.0)
    assert rates_of([5.0, 8.0], 3000) == Rates(1000.0, None)
    assert rates_of([5.0], 1000) == rates_of([], 1000) == Rates()
    assert rates_of([5.0, 5.0, 5.0], 1000).up == 1e9


def test_a_link_between_servers_is_as_fast_as_the_slower_of_its_ends() -> None:
    def first_inner(one: Rates, other: Rates) -> str:
        return choose_codecs("auto", [LinkEnd(BOTH, one, 10.0), LinkEnd(BOTH, other, 10.0)], 100, BOTH)[1]

    slow, fast = 999.0, 1001.0
    assert first_inner(Rates(slow, fast), Rates(fast, slow)) == "raw"
    assert first_inner(Rates(fast, slow), Rates(fast, fast)) == "int8"
    assert first_inner(Rates(fast, fast), Rates(slow, fast)) == "int8"
    assert first_inner(Rates(), Rates(slow)) == "int8"
    assert first_inner(Rates(), Rates()) == "raw"


def test_a_client_that_does_not_speak_int8_sends_raw() -> None:
    assert choose_codecs("int8", [LinkEnd(BOTH, Rates(), 1.0)], 100, ("raw",)) == ["raw", "raw"]
    assert choose_codecs("raw", [LinkEnd(BOTH, Rates(1.0, 1.0), 1e9)], 100, BOTH) == ["raw", "raw"]


# ---- strangers ------------------------------------------------------------------------------------------------


async def alone() -> tuple[World, Peer]:
    world = world_of()
    await world.add("a", Span(0, 3))
    return world, Peer(world, "stranger")


@pytest.mark.parametrize("field", ["input_codec", "output_codec"])
def test_a_codec_that_is_not_spoken_is_a_mismatch(field: str) -> None:
    async def ask() -> None:
        world, peer = await alone()
        talk = await peer.control("a", peer.opening("a", b"s" * 16))
        await talk.say(pb.ControlRequest(prepare=pb.Prepare(epoch=1, **{field: "zip"})))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
        assert list(talk.heard[0].opened.codecs) == ["raw", "int8"]
        assert talk.failures == [pb.Failure.CONTRACT_MISMATCH]
        await talk.say(pb.ControlRequest(prepare=pb.Prepare(epoch=2, **{field: "int8"})))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
        assert talk.take()[-1].have.epoch == 2
        await talk.say(pb.ControlRequest(prepare=pb.Prepare(epoch=3, **{field: "x" * 33})))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
        assert talk.failures == [pb.Failure.MALFORMED]
        talk.close()
        await world.close()

    run(ask())


@pytest.mark.parametrize("hidden", [b"\xff" * 268, bytes(800), bytes(267)], ids=["a place beyond", "raw", "short"])
def test_a_row_that_is_none_is_malformed(hidden: bytes) -> None:
    assert codec_of("int8", "float32", SIZE).row_bytes == 268

    async def send() -> None:
        world, peer = await alone()
        talk = await peer.control("a", peer.opening("a", b"s" * 16))
        await talk.say(pb.ControlRequest(prepare=pb.Prepare(epoch=1, input_codec="int8")))
        await talk.say(pb.ControlRequest(resume=pb.Resume(epoch=1)))
        data = await peer.data("a", b"s" * 16, 1)
        await data.say(pb.Data(step=pb.Step(rows=[pb.Rows(count=1)], hidden=hidden)))
        await asyncio.sleep(1.0)
        assert data.failures == [pb.Failure.MALFORMED]
        assert world.servers["a"].runner.computed == 0
        talk.close()
        data.close()
        await world.close()

    run(send())


@pytest.mark.parametrize("probe", [{"padding": bytes(messages.MAX_PADDING + 1)}, {"reply_bytes": 1 << 31}])
def test_more_padding_than_allowed_is_malformed(probe: dict[str, int]) -> None:
    async def ask() -> None:
        world, peer = await alone()
        talk = await peer.control("a", peer.opening("a", b"s" * 16))
        await talk.say(pb.ControlRequest(probe=pb.Probe(**probe)))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
        assert talk.failures == [pb.Failure.MALFORMED]
        talk.close()
        await world.close()

    run(ask())


def test_who_asks_for_more_padding_than_it_reads_gets_none() -> None:
    async def ask() -> None:
        world, peer = await alone()
        world.network.set_link("stranger", "a", LinkConditions(rate=1e6))
        talk = await peer.control("a", peer.opening("a", b"s" * 16))
        await asyncio.sleep(1.0)
        talk._listening.cancel()
        for nonce in range(100):
            await talk.say(pb.ControlRequest(probe=pb.Probe(nonce=nonce, reply_bytes=messages.MAX_PADDING)))
        await asyncio.sleep(10.0)
        control = next(iter(world.servers["a"].handler._controls.values()))
        waiting = control._replies.qsize()
        padded = [bool(control._replies.get_nowait().progress.padding) for _ in range(waiting)]
        assert waiting > 50
        assert sum(padded) <= PADDED_REPLIES
        talk.close()
        await world.close()

    run(ask())
