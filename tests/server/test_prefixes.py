"""Prompts that begin alike: recognised by what comes in, computed once, kept within bounds, and for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.config import ClientConfig, ServerConfig
from swarm.jobs import Change, Copy, Kind
from swarm.server.prefixes import Chain, Chains, Hit, Prefix, PrefixCache, seed_of, split
from swarm.server.work import Work
from swarm.testing import ROW, ExactRunner, ForgetlessRunner, InlineEngine, World, embed, generate, reference, run
from swarm.types import Rows, SequenceKey, Span
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import RowLog

SEED = seed_of(Span(0, 3), "alice", shared=False)
CHUNK = 2
TOKEN_BYTES = 10
EACH = CHUNK * (TOKEN_BYTES + 1)
"""Bytes of a chunk in the tests of the cache alone, where a row is one byte."""
PLENTY = 1 << 20


# ---- recognising ----------------------------------------------------------------------------------------------


def chain_of(content: bytes, seed: bytes = SEED) -> Chain:
    chain = Chain(seed, 1, CHUNK)
    chain.extend(content)
    return chain


@given(st.binary(max_size=40), st.lists(st.integers(0, 40)))
def test_a_chain_is_the_same_however_a_prompt_is_cut(content: bytes, cuts: list[int]) -> None:
    chain = Chain(SEED, 1, CHUNK)
    ends = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    for begin, end in pairwise(ends):
        chain.extend(content[begin:end])
    assert (chain.digests, chain.length) == (chain_of(content).digests, len(content))
    assert len(chain.digests) == len(content) // CHUNK


@given(st.binary(min_size=2, max_size=20), st.integers(0, 19))
def test_a_digest_stands_for_everything_before_it(content: bytes, place: int) -> None:
    place %= len(content) // CHUNK * CHUNK
    other = bytes(byte ^ (index == place) for index, byte in enumerate(content))
    same = [one == two for one, two in zip(chain_of(content).digests, chain_of(other).digests, strict=True)]
    assert same == [index < place // CHUNK for index in range(len(same))]


def test_who_asks_and_which_blocks_are_part_of_it_unless_it_is_shared() -> None:
    span, other = Span(0, 3), Span(0, 4)
    assert len({SEED, seed_of(span, "bob", shared=False), seed_of(other, "alice", shared=False)}) == 3
    assert seed_of(span, "alice", shared=True) == seed_of(span, "bob", shared=True) != seed_of(other, "", shared=True)


def rows_of(*rows: tuple[int, int, int]) -> tuple[list[pb.Rows], memoryview]:
    """Rows (sequence, start, count) of bytes that tell sequence and position."""
    hidden = b"".join(bytes(16 * s + p for p in range(start, start + count)) for s, start, count in rows)
    return [pb.Rows(sequence=s, start=start, count=count, want=1) for s, start, count in rows], memoryview(hidden)


def test_a_prompt_is_followed_from_its_first_position_on_while_it_comes_in_chunks() -> None:
    chains = Chains(SEED, 1, CHUNK)
    assert chains.follow(*rows_of((5, 3, 4))) == {}, "nobody knows how it began"
    assert list(chains.follow(*rows_of((0, 0, 5), (1, 0, 2)))) == [0, 1]
    chains.follow(*rows_of((1, 2, 3), (0, 5, 4)))
    whole, _ = chains.follow(*rows_of((0, 9, 1), (1, 5, 1))).values()
    assert whole.digests == chain_of(bytes(range(9))).digests
    chains.follow(*rows_of((0, 10, 6)))
    assert whole.length == 9, "it has ended with the first token"


def test_a_sequence_that_ends_or_begins_otherwise_is_left() -> None:
    chains = Chains(SEED, 1, CHUNK)
    chains.follow(*rows_of((0, 0, 4), (1, 0, 4), (2, 0, 4), (3, 0, 4)))
    operation = pb.Operation
    chains.operate(
        [
            operation(kind=operation.FREE, source=0),
            operation(kind=operation.MOVE, source=1, target=9, length=2),
            operation(kind=operation.FORK, source=3, target=2, length=2),
        ]
    )
    assert [sequence for sequence in range(10) if chains[sequence]] == [3]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(0, 12), st.integers(0, 6)), max_size=4),
    st.booleans(),
)
def test_what_is_known_and_what_is_not_are_together_the_step(
    drawn: list[tuple[int, int, int, int]], empty: bool
) -> None:
    rows, hidden = rows_of(*((s, start, count) for s, (start, count, _, _) in enumerate(drawn)))
    for row, (_, _, _, want) in zip(rows, drawn, strict=True):
        row.want = min(want, row.count)
    prefix = Prefix((b"", 0), (), RowLog(1), 0)
    ends = [min(length, start + count) for start, count, length, _ in drawn]
    hits = {s: Hit(prefix, end) for s, end in enumerate(ends) if end > drawn[s][0] and not empty}
    covered, rest, left = split(rows, hidden, hits, 1)
    computed, remaining = {}, bytes(left)
    for row in rest:
        computed[row.sequence], remaining = remaining[: row.count], remaining[row.count :]
    assert remaining == b""
    begin = 0
    for row in rows:
        parts = [part for part in (*covered, *rest) if part.sequence == row.sequence]
        end = hits[row.sequence].length if row.sequence in hits else row.start
        assert [part.start for part in parts] == sorted({row.start, end} - {row.start + row.count})
        assert sum(part.count for part in parts) == row.count
        assert sum(part.want for part in parts) == row.want
        known = end - row.start
        assert computed.get(row.sequence, b"") == bytes(hidden[begin + known : begin + row.count])
        begin += row.count


# ---- keeping --------------------------------------------------------------------------------------------------


@dataclass
class Cache:
    """A cache, and what has been freed."""

    room: int = PLENTY
    freed: list[SequenceKey] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.cache = PrefixCache(CHUNK, self.freed.append)

    def begin(self, content: bytes, who: int | None = None) -> Prefix | None:
        self.asked += 1
        log = RowLog(1)
        log.append(content)
        key = (b"session", self.asked if who is None else who)
        return self.cache.begin(key, chain_of(content), log, lambda length: length * TOKEN_BYTES, self.room)

    def keep(self, content: bytes, who: int | None = None) -> Prefix | None:
        """Begin and finish."""
        prefix = self.begin(content, who)
        if prefix is not None:
            self.cache.finish(prefix)
            self.cache.give_back(prefix)
        return prefix

    def finds(self, content: bytes) -> int:
        """How many positions of a prompt are held; what is held must be right."""
        hit = self.cache.borrow(chain_of(content), 0)
        if hit is None:
            return 0
        self.cache.give_back(hit.prefix)
        assert hit.prefix.outputs.read(0, hit.length) == content[: hit.length]
        return hit.length


def test_one_prefix_serves_all_that_agree_with_any_part_of_it() -> None:
    cache = Cache()
    cache.keep(b"abcdefghi")
    assert [cache.finds(content) for content in (b"abcdefgh", b"abcdxx", b"abcx", b"abx", b"xx", b"")] == [
        8,
        4,
        2,
        2,
        0,
        0,
    ]
    assert cache.cache.nbytes == 4 * EACH
    assert cache.cache.kv_bytes == 8 * TOKEN_BYTES


def test_only_what_goes_on_beyond_what_is_there_already_is_a_hit() -> None:
    cache = Cache()
    cache.keep(b"abcdef")
    assert cache.cache.borrow(chain_of(b"abcdxx"), 4) is None
    hit = cache.cache.borrow(chain_of(b"abcdef"), 5)
    assert hit is not None
    assert hit.length == 6


def test_what_is_held_is_not_kept_twice() -> None:
    cache = Cache()
    first, second = cache.begin(b"abcd"), cache.begin(b"abcd")
    assert first and second, "neither can be found yet"
    for prefix in (first, second):
        cache.cache.finish(prefix)
        cache.cache.give_back(prefix)
    assert cache.freed == [second.key]
    assert cache.begin(b"abcdx") is None
    assert cache.cache.nbytes == 2 * EACH


def test_a_prompt_that_goes_on_where_a_prefix_ends_takes_its_place() -> None:
    cache = Cache()
    first = cache.keep(b"abcd")
    cache.keep(b"abcdef")
    assert first is not None
    assert cache.freed == [first.key]
    assert (cache.finds(b"abcdef"), cache.cache.nbytes) == (6, 3 * EACH)


def test_a_prompt_of_which_most_is_held_is_kept_when_its_rest_comes_again() -> None:
    cache = Cache()
    cache.keep(b"abcdefgh")
    assert cache.keep(b"abcdefXX", who=1) is None
    assert cache.keep(b"abcdefXXYY", who=1) is None, "the same prompt, of which more has come"
    assert cache.keep(b"abcdefXXZZ", who=2) is not None
    assert cache.finds(b"abcdefXXZZ") == 8, "what only one has asked is not kept"
    assert cache.finds(b"abcdefgh") == 8


def test_a_prompt_that_shares_only_its_first_words_is_kept_at_once() -> None:
    cache = Cache()
    cache.keep(b"abcdefgh")
    assert cache.keep(b"abXXXXXX") is not None
    assert cache.finds(b"abXXXXXX") == 8


def test_the_least_recently_used_goes_first_and_its_beginning_may_live_on_in_another() -> None:
    cache = Cache()
    one, two, three = cache.keep(b"abcdef"), cache.keep(b"xxyyzz"), cache.keep(b"ab111111")
    assert one and two and three
    assert cache.finds(b"xxyy") == 4
    cache.cache.shrink(cache.cache.nbytes - 1)
    assert cache.freed == [one.key]
    assert [cache.finds(content) for content in (b"abcdef", b"xxyyzz")] == [2, 6]
    cache.cache.clear()
    assert cache.freed == [one.key, three.key, two.key]
    assert cache.cache.nbytes == 0


def test_a_prompt_beyond_the_room_is_kept_in_part_and_in_no_room_not_at_all() -> None:
    cache = Cache(room=3 * EACH - 1)
    cache.keep(b"abcdefgh")
    assert cache.finds(b"abcdefgh") == 4
    assert cache.keep(b"xxyyzz") is not None, "the older one goes for it"
    assert cache.finds(b"abcdefgh") == 0
    cache.room = EACH - 1
    assert cache.keep(b"112233") is None


def test_what_is_being_copied_is_freed_when_nobody_copies_any_more() -> None:
    cache = Cache()
    prefix = cache.keep(b"abcd")
    assert prefix is not None
    hits = [cache.cache.borrow(chain_of(b"abcd"), 0) for _ in range(2)]
    cache.cache.clear()
    assert cache.finds(b"abcd") == 0
    for hit in hits:
        assert hit is not None
        assert cache.freed == []
        cache.cache.give_back(hit.prefix)
    assert cache.freed == [prefix.key]


@pytest.mark.parametrize("cleared", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_a_copy_that_came_to_nothing_leaves_nothing(cleared: bool, finished: bool) -> None:
    cache = Cache()
    prefix = cache.begin(b"abcd")
    assert prefix is not None
    if cleared:
        cache.cache.clear()
    if finished:
        cache.cache.finish(prefix)
    cache.cache.give_back(prefix)
    assert (cache.freed == [prefix.key]) == (cleared or not finished)
    assert cache.finds(b"abcd") == (4 if finished and not cleared else 0)


PROMPTS = st.lists(st.sampled_from([b"aa", b"bb", b"c"]), max_size=6).map(b"".join)
KINDS = st.sampled_from(["begin", "finish", "fail", "borrow", "return", "shrink"])
HAPPENINGS = st.lists(st.tuples(KINDS, PROMPTS, st.integers(0, 9)), max_size=60)


@given(HAPPENINGS, st.integers(0, 12 * EACH))
@settings(max_examples=300)
def test_whatever_happens_nothing_is_freed_in_use_nor_twice_and_all_in_the_end(
    happenings: list[tuple[str, bytes, int]], room: int
) -> None:
    cache = Cache(room=room)
    begun: list[Prefix] = []
    borrowed: list[Prefix] = []
    made: set[SequenceKey] = set()
    for kind, content, number in happenings:
        if kind == "begin" and (prefix := cache.begin(content, number)) is not None:
            begun.append(prefix)
            made.add(prefix.key)
            assert cache.cache.nbytes <= room
        elif kind in ("finish", "fail") and begun:
            prefix = begun.pop(number % len(begun))
            if kind == "finish":
                cache.cache.finish(prefix)
            cache.cache.give_back(prefix)
        elif kind == "borrow" and (hit := cache.cache.borrow(chain_of(content), 0)) is not None:
            assert hit.prefix.outputs.read(0, hit.length) == content[: hit.length]
            borrowed.append(hit.prefix)
        elif kind == "return" and borrowed:
            cache.cache.give_back(borrowed.pop(number % len(borrowed)))
        elif kind == "shrink":
            cache.cache.shrink(number * EACH)
            assert cache.cache.nbytes <= number * EACH
        assert not {prefix.key for prefix in (*begun, *borrowed)} & set(cache.freed)
    cache.cache.clear()
    for prefix in (*begun, *borrowed):
        cache.cache.give_back(prefix)
    assert sorted(cache.freed) == sorted(made)
    assert cache.cache._holders == {}


# ---- on servers -----------------------------------------------------------------------------------------------

PROMPT = list(range(100, 140))
SPANS = {"a": Span(0, 3), "b": Span(3, 9)}
CONFIG = ServerConfig(prefix_share=0.5)
SHARED = replace(CONFIG, share_prefixes=True)


async def started(config: ServerConfig = CONFIG, **options: Any) -> World:
    world = World(server_config=config, **options)
    for name, span in SPANS.items():
        await world.add(name, span)
    return world


def computed(world: World) -> dict[str, int]:
    return {name: server.runner.computed for name, server in world.servers.items()}


async def ask(
    world: World, prompt: Sequence[int], name: str, count: int = 3, chunk: int | None = None
) -> dict[str, int]:
    """A session's prompt and answer, which must be right; how many positions each server computed for them."""
    before = computed(world)
    async with asyncio.timeout(300.0):
        session = world.session(ClientConfig(chunk_positions=chunk), name)
        assert await generate(session, prompt, count) == reference(prompt, count)
        await session.close()
        await asyncio.sleep(1.0)
    return {server: positions - before[server] for server, positions in computed(world).items()}


async def end(world: World) -> None:
    """Nothing may be left but what the caches own, and nothing of that when they are cleared."""
    await asyncio.sleep(1.0)
    for server in world.servers.values():
        assert server.bytes_held() == 0
        server.hosted.prefixes.clear()
        await asyncio.sleep(1.0)
        assert server.runner.bytes_held() == server.hosted.engine.queue == 0
        assert server.runner.complaints == []
    await world.close()


@pytest.mark.parametrize("chunk", [None, 40, 16, 8, 13])
def test_what_one_session_computed_the_next_one_need_not(chunk: int | None) -> None:
    async def main() -> None:
        world = await started()
        first = await ask(world, PROMPT, "alice", chunk=chunk)
        second = await ask(world, PROMPT, "alice", chunk=chunk)
        longer = await ask(world, [*PROMPT, 1, 2, 3], "alice", chunk=chunk)
        other = await ask(world, [*PROMPT[:20], *PROMPT], "alice", chunk=chunk)
        assert first == {"a": 42, "b": 42}
        assert second == {"a": 2, "b": 2}
        assert longer == {"a": 5, "b": 5}
        assert other == {"a": 46, "b": 46}
        await end(world)

    run(main())


@pytest.mark.parametrize("config", [CONFIG, SHARED])
def test_another_client_finds_it_only_where_the_server_shares(config: ServerConfig) -> None:
    async def main() -> None:
        world = await started(config)
        await ask(world, PROMPT, "alice")
        assert await ask(world, PROMPT, "bob") == dict.fromkeys(SPANS, 2 if config.share_prefixes else 42)
        assert await ask(world, PROMPT, "alice") == dict.fromkeys(SPANS, 2)
        await end(world)

    run(main())


def test_the_caches_of_a_conversation_that_is_sent_whole_each_time_grow_with_it() -> None:
    async def main() -> None:
        world = await started()
        text = list(PROMPT)
        for _ in range(4):
            held = len(text) - len(PROMPT)
            spent = await ask(world, text, "alice", count=8)
            assert spent == dict.fromkeys(
                SPANS, 7 + (len(text) - held + 8 if held else len(text)) - (32 if held else 0)
            )
            text += reference(text, 8) + [5] * 8
        for server in world.servers.values():
            assert len(server.hosted.prefixes._prefixes) == 1
        await end(world)

    run(main())


def test_blocks_with_a_running_state_and_servers_that_do_not_want_to_keep_nothing() -> None:
    async def main(config: ServerConfig, runner: type[ExactRunner]) -> None:
        world = await started(config, make_runner=runner)
        for _ in range(2):
            assert await ask(world, PROMPT, "alice") == dict.fromkeys(SPANS, 42)
            assert all(server.runner.bytes_held() == 0 for server in world.servers.values())
        await end(world)

    run(main(CONFIG, ForgetlessRunner))
    run(main(replace(CONFIG, prefix_share=0.0), ExactRunner))


def test_several_sequences_in_one_step_of_which_some_are_known() -> None:
    async def main() -> None:
        world = await started()
        prompts = {0: [7, *PROMPT], 1: PROMPT, 2: [*PROMPT[:24], 9, 9], 3: [8]}
        await ask(world, PROMPT, "alice")
        before = computed(world)
        session = world.session(name="alice")
        rows = [
            Rows(s, b"".join(embed(token, i) for i, token in enumerate(prompt)), 2 if s < 3 else 1)
            for s, prompt in prompts.items()
        ]
        outputs = await session.step(rows)
        for output, prompt in zip(outputs, prompts.values(), strict=True):
            assert [value % 997 for (value,) in ROW.iter_unpack(output)][-1:] == reference(prompt, 1)
        assert {s: n - before[s] for s, n in computed(world).items()} == dict.fromkeys(SPANS, 41 + 0 + 2 + 1)
        fork = pb.Operation(kind=pb.Operation.FORK, source=1, target=4, length=30)
        free = pb.Operation(kind=pb.Operation.FREE, source=1)
        tail = b"".join(embed(token, 30 + i) for i, token in enumerate(PROMPT[30:]))
        (again, fresh) = await session.step([Rows(4, tail, 1), Rows(5, rows[1].hidden, 1)], [fork, free])
        assert again == fresh == outputs[1][-8:]
        await session.close()
        await end(world)

    run(main())


def test_sessions_with_one_prompt_that_all_ask_at_once() -> None:
    async def main() -> None:
        world = await started(SHARED)
        await ask(world, PROMPT[:16], "first")
        await asyncio.gather(*(ask(world, [*PROMPT, i // 2], f"c{i}", chunk=16) for i in range(6)))
        assert (await ask(world, PROMPT, "last"))["a"] == 2
        await end(world)

    run(main())


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.002, 0.004, 0.01, 0.02, 0.03])
@pytest.mark.parametrize("what", ["evict", "clear", "kill"])
def test_nothing_is_lost_when_it_goes_while_it_is_being_taken(what: str, delay: float) -> None:
    async def main() -> None:
        world = await started()
        await ask(world, PROMPT, "alice")
        await world.add("a2", Span(0, 3), decode_ms=9.0)
        hosted = world.servers["a"].hosted

        async def happen() -> None:
            if what == "clear":
                hosted.prefixes.clear()
            for session in hosted.sessions.values() if what == "evict" else ():
                session.evict()

        for begin in range(10):
            world.later(delay + begin / 100, happen())
        if what == "kill":
            world.later(10 * delay, world.kill("a"))
        session = world.session(ClientConfig(chunk_positions=16), "alice")
        assert await generate(session, [*PROMPT, 1], 8) == reference([*PROMPT, 1], 8)
        await session.close()
        await end(world)

    run(main())


def test_prefixes_go_before_a_session_is_refused_or_loses_anything() -> None:
    async def main() -> None:
        per_position = 8 * len(SPANS["b"])
        config = replace(CONFIG, cache_bytes=100 * per_position, history_share=0.2, evict_after=1e6)
        world = await started(config)
        await ask(world, PROMPT, "alice")
        server = world.servers["b"].hosted
        assert server.prefixes.nbytes > 0
        assert server.statistics().free_positions == 100, "what prefixes take is there for whoever needs it"
        assert await ask(world, [1] * 90, "alice") == dict.fromkeys(SPANS, 92)
        assert server.prefixes.nbytes <= 50 * per_position
        await end(world)

    run(main())


def test_an_engine_that_fails_to_copy_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    class NoCopies(ExactRunner):
        def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
            raise MemoryError("no copies today")

    async def main() -> None:
        world = await started(make_runner=NoCopies)
        for _ in range(2):
            assert await ask(world, PROMPT, "alice") == dict.fromkeys(SPANS, 42)
        await end(world)

    run(main())
    assert "no copies today" in caplog.text


# ---- the engine's side ----------------------------------------------------------------------------------------


def test_work_is_over_exactly_once_however_it_ends() -> None:
    async def main() -> None:
        told: list[str] = []

        class Telling(ExactRunner):
            def free(self, sequence: SequenceKey) -> None:
                if sequence[1] == 2:
                    raise ValueError("on purpose")
                told.append(f"{names[sequence[1]]} acts")

        engine = InlineEngine(Telling(), seconds=lambda positions: 1.0)
        names = ["", "one", "two", "three", "four"]
        for number, name in enumerate(names[1:], 1):
            end = lambda kind, name=name: lambda _: told.append(f"{name} {kind}")  # noqa: E731
            over = lambda name=name: told.append(f"{name} over")  # noqa: E731
            free = Copy([Change(Kind.FREE, (b"s", number))])
            engine.submit(Work(b"s", free, end("done"), end("failed"), over=over))
        await asyncio.sleep(2.5)
        assert told == ["one acts", "one done", "one over", "two failed", "two over"]
        engine.cancel(b"s")
        assert told[5:] == ["four over"], "the third has begun"
        await asyncio.sleep(5.0)
        assert told[6:] == ["three acts", "three done", "three over"]

    run(main())
