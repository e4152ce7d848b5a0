"""The queue of work for the one device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import ComputeFailed
from swarm.jobs import Backward, Change, Copy, Forward, Kind
from swarm.server.engine import Engine
from swarm.server.thread_engine import ThreadEngine
from swarm.server.work import Work
from swarm.testing import ROW, ByteRunner, ExactRunner, ForgetlessRunner, InlineEngine, embed, run
from swarm.types import Segment, SequenceKey, Span
from swarm.wire.rows import Buffer

SPAN = Span(0, 3)
FREE = Change(Kind.FREE, (b"s", 9))


class WatchedRunner(ExactRunner):
    """Notes how many positions each pass has of each session; fails on a row named 666, half-way."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[dict[bytes, int]] = []
        self.threads: set[int] = set()
        self.on_free: Callable[[], object] = lambda: None

    def free(self, sequence: SequenceKey) -> None:
        self.threads.add(threading.get_ident())
        self.on_free()
        super().free(sequence)

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        self.threads.add(threading.get_ident())
        counts: dict[bytes, int] = {}
        for segment in segments:
            counts[segment.sequence[0]] = counts.get(segment.sequence[0], 0) + segment.count
        self.passes.append(counts)
        outputs = super().forward(span, segments, hidden)
        if embed(666, 0) in bytes(hidden):
            raise ValueError("no such row")
        if self.on_block is not None:
            self.on_block()
        return outputs


def rows(count: int, start: int = 0) -> bytes:
    return b"".join(embed(position, position) for position in range(start, start + count))


def expected(count: int) -> bytes:
    return bytes(ExactRunner().forward(SPAN, [Segment((b"", 0), 0, count)], rows(count)))


class Client:
    """Submits work and keeps what comes back, in order."""

    def __init__(self, engine: Engine, session: bytes = b"s") -> None:
        self.engine = engine
        self.session = session
        self.outputs: list[bytes] = []
        self.errors: list[str] = []
        self.answers = 0
        self.answered = asyncio.Event()

    def submit(
        self, count: int, start: int = 0, *, sequence: int = 0, hidden: bytes | None = None, before: Any = ()
    ) -> None:
        segments = [Segment((self.session, sequence), start, count)]
        hidden = rows(count, start) if hidden is None else hidden
        job = Forward(SPAN, segments, memoryview(hidden)) if count else Copy()
        self.engine.submit(Work(self.session, job, self.done, self.failed, before))

    def done(self, output: Buffer) -> None:
        self.outputs.append(bytes(output))
        self.answer()

    def failed(self, error: ComputeFailed) -> None:
        self.errors.append(str(error))
        self.answer()

    def answer(self) -> None:
        self.answers += 1
        self.answered.set()

    async def has(self, answers: int) -> None:
        while self.answers < answers:
            self.answered.clear()
            await self.answered.wait()


def inline(runner: ExactRunner | None = None, **options: Any) -> InlineEngine:
    return InlineEngine(runner or WatchedRunner(), seconds=lambda positions: 1.0, **options)


# ---- order and chunks -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=60)
def test_steps_of_many_sessions_come_out_whole_and_in_order(
    counts: list[int], budget: int, chunk: int, sessions: int
) -> None:
    async def main() -> None:
        runner = WatchedRunner()
        engine = inline(runner, batch_positions=budget, chunk_positions=chunk)
        clients = [Client(engine, b"%d" % i) for i in range(sessions)]
        for client in clients:
            start = 0
            for count in counts:
                client.submit(count, start)
                start += count
        for client in clients:
            await client.has(len(counts))
            assert b"".join(client.outputs) == expected(sum(counts))
            assert [len(output) // ROW.size for output in client.outputs] == counts
        assert all(sum(one.values()) <= budget for one in runner.passes)
        assert engine.queue == 0

    run(main())


def test_a_long_prompt_does_not_hold_up_the_next_token_of_others() -> None:
    async def main() -> None:
        runner = WatchedRunner()
        engine = inline(runner, batch_positions=100, chunk_positions=10)
        prompt, other = Client(engine, b"prompt"), Client(engine, b"other")
        prompt.submit(1000)
        for i in range(5):
            other.submit(1, i)
            await other.has(i + 1)
        assert asyncio.get_running_loop().time() <= 11.0, "each token waits for one pass at most, and takes one"
        shared = [one for one in runner.passes if b"other" in one]
        assert shared == [{b"prompt": 10, b"other": 1}] * 5, "the prompt goes on beside it"
        await prompt.has(1)
        assert prompt.outputs == [expected(1000)]

    run(main())


def test_steps_of_several_sequences_are_cut_anywhere() -> None:
    async def main() -> None:
        engine = inline(batch_positions=3, chunk_positions=2)
        client = Client(engine)
        segments = [Segment((b"s", i), 0, count) for i, count in enumerate((2, 1, 4))]
        hidden = rows(2) + rows(1) + rows(4)
        engine.submit(Work(b"s", Forward(SPAN, segments, memoryview(hidden)), client.done, client.failed))
        await client.has(1)
        assert client.outputs == [expected(2) + expected(1) + expected(4)]

    run(main())


def test_operations_come_before_rows_and_only_once_also_when_a_pass_is_repeated() -> None:
    async def main() -> None:
        engine = inline()
        good, bad = Client(engine, b"good"), Client(engine, b"bad")
        good.submit(4)
        await good.has(1)
        move = Change(Kind.MOVE, (b"good", 0), (b"good", 1), 2)
        good.submit(1, 2, sequence=1, before=[move])
        bad.submit(1, hidden=embed(666, 0))
        await good.has(2)
        assert good.errors == []
        assert good.outputs[1] == expected(3)[-ROW.size :]
        assert bad.errors

    run(main())


def test_operations_alone_are_a_step() -> None:
    async def main() -> None:
        engine = inline()
        client = Client(engine)
        client.submit(2)
        client.submit(0, before=[Change(Kind.FREE, (b"s", 0))])
        await client.has(2)
        assert client.outputs == [expected(2), b""]
        assert engine.runner.bytes_held() == 0

    run(main())


def test_operations_that_fail_fail_their_step_and_nobody_elses() -> None:
    class Strict(WatchedRunner):
        def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
            if source not in self.states:
                raise ValueError("no such sequence")
            super().fork(source, target, length)

    async def main() -> None:
        engine = inline(Strict())
        good, bad = Client(engine, b"good"), Client(engine, b"bad")
        bad.submit(1, before=[Change(Kind.FORK, (b"bad", 7), (b"bad", 1), 1)])
        good.submit(2)
        await bad.has(1)
        await good.has(1)
        assert bad.errors, "its rows may not be computed as if the operations had been done"
        assert good.outputs == [expected(2)]

    run(main())


# ---- failures -------------------------------------------------------------------------------------------------


def test_a_failing_session_leaves_the_others_of_its_pass_alone() -> None:
    async def main() -> None:
        engine = inline()
        clients = [Client(engine, b"%d" % i) for i in range(4)]
        for i, client in enumerate(clients):
            client.submit(1, hidden=embed(666, 0) if i == 2 else None)
        for i, client in enumerate(clients):
            await client.has(1)
            assert client.outputs == ([] if i == 2 else [expected(1)])
            assert len(client.errors) == (i == 2)
        assert "ValueError: no such row" in clients[2].errors[0]

    run(main())


def test_the_rest_of_a_step_that_failed_is_not_computed() -> None:
    async def main() -> None:
        runner = WatchedRunner()
        engine = inline(runner, batch_positions=2, chunk_positions=2)
        client = Client(engine)
        client.submit(6, hidden=rows(1) + embed(666, 0) + rows(4))
        await client.has(3)
        assert len(runner.passes) == 1
        assert client.outputs == []

    run(main())


def test_after_a_failure_the_engine_goes_on() -> None:
    async def main() -> None:
        engine = inline()
        client, other = Client(engine), Client(engine, b"other")
        client.submit(1, hidden=embed(666, 0))
        await client.has(1)
        other.submit(3)
        await other.has(1)
        assert other.outputs == [expected(3)]

    run(main())


# ---- other jobs -----------------------------------------------------------------------------------------------


class Doubling(ByteRunner):
    """Gradients are twice as large before as after; whoever asks for 13 gets an error. Forward adds one."""

    can_rollback = True
    trains = True
    on_block: Callable[[], None] | None = None

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def run(self, job: Any) -> Any:
        if not isinstance(job, Backward):
            return super().run(job)
        self.jobs.append(f"backward {len(job.inputs)} of {list(job.counts)}")
        if 13 in bytes(job.gradients.data):
            raise ValueError("unlucky")
        return self.put(bytes(2 * value for value in bytes(job.gradients.data)), job.positions)

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        self.jobs.append(f"forward {sum(segment.count for segment in segments)}")
        return memoryview(bytes(value + 1 for value in bytes(hidden)))

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def truncate(self, sequence: SequenceKey, length: int) -> None: ...
    def free(self, sequence: SequenceKey) -> None: ...

    def bytes_held(self) -> int:
        return 42

    def reserved_bytes(self, span: Span, length: int) -> int:
        return length


def test_gradients_have_a_pass_of_their_own_in_turn_with_steps() -> None:
    async def main() -> None:
        runner = Doubling()
        engine = inline(runner)
        trainer, other = Client(engine, b"trainer"), Client(engine, b"other")
        inputs, wanted = memoryview(bytes(6)), memoryview(bytes([1, 2, 3, 4, 5, 6]))
        for gradients in (wanted, memoryview(bytes([13] * 6))):
            job = Backward(SPAN, (1, 2), inputs, gradients)
            engine.submit(Work(b"trainer", job, trainer.done, trainer.failed))
        other.submit(3, hidden=bytes(3))
        await trainer.has(2)
        await other.has(1)
        assert trainer.outputs == [bytes([2, 4, 6, 8, 10, 12])]
        assert trainer.errors == ["the engine failed: ValueError: unlucky"]
        assert other.outputs == [bytes([1, 1, 1])]
        assert sorted(runner.jobs) == ["backward 3 of [1, 2]"] * 2 + ["forward 3"]
        while engine.queue:  # what failed is taken out in its turn
            await asyncio.sleep(0.01)

    run(main())


def test_who_decodes_beside_gradients_waits_for_a_slice_at_most() -> None:
    async def main() -> None:
        runner = Doubling()
        engine = inline(runner)
        trainer, other = Client(engine, b"trainer"), Client(engine, b"other")
        for session in (b"one", b"two"):
            job = Backward(SPAN, (60,), memoryview(bytes(60)), memoryview(bytes(60)))
            engine.submit(Work(session, job, trainer.done, trainer.failed))
        loop, waits = asyncio.get_running_loop(), list[float]()
        while len(trainer.outputs) < 2:
            began = loop.time()
            other.submit(1, hidden=bytes(1))
            await other.has(len(waits) + 1)
            waits.append(loop.time() - began)
        assert len(waits) >= 10 and max(waits) <= 2.0

    run(main())


def test_what_is_held_is_told_in_turn() -> None:
    async def main() -> None:
        engine = inline(Doubling())
        assert await engine.bytes_held(b"s") == 42

    run(main())


def test_rows_stay_where_they_are_computed_until_a_step_is_whole() -> None:
    """Inputs come in once a step and outputs leave once, however many passes it takes."""

    class Counting(WatchedRunner):
        def __init__(self) -> None:
            super().__init__()
            self.puts: list[int] = []
            self.gets: list[int] = []

        def put(self, rows: Buffer, count: int) -> Any:
            self.puts.append(count)
            return super().put(rows, count)

        def get(self, rows: Any) -> memoryview:
            self.gets.append(len(rows))
            return super().get(rows)

    async def main() -> None:
        runner = Counting()
        engine = inline(runner, batch_positions=4, chunk_positions=4)
        client = Client(engine)
        client.submit(11)
        await client.has(1)
        assert client.outputs == [expected(11)]
        assert [sum(each.values()) for each in runner.passes] == [4, 4, 3]
        assert runner.gets == [11]
        assert runner.puts[0] == 11

    run(main())


# ---- cancelling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 2.5, 3.5])
def test_what_is_cancelled_has_left_the_cache_as_its_outputs_say(after: float) -> None:
    """Work is either done, and then answered, or never touched the runner: whenever it is cancelled."""

    async def main() -> None:
        runner = WatchedRunner()
        engine = inline(runner, batch_positions=2, chunk_positions=2)
        client = Client(engine)
        client.submit(4)
        client.submit(4, 4)
        await asyncio.sleep(after)
        await engine.settle(b"s")
        computed = len(b"".join(client.outputs))
        assert runner.bytes_held() == computed * len(SPAN)
        assert engine.queue == 0

    run(main())


def test_settling_lets_what_has_begun_finish_and_then_acts() -> None:
    async def main() -> None:
        runner = WatchedRunner()
        engine = inline(runner)
        client, order = Client(engine), []
        client.submit(2)
        client.submit(2, 2)
        await asyncio.sleep(0.5)
        runner.on_free = lambda: order.append(len(client.outputs))
        await engine.settle(b"s", [FREE])
        assert order == [1]
        assert client.outputs == [expected(2)], "the second had not begun"
        assert len(runner.passes) == 1

    run(main())


def test_cancelling_one_session_leaves_the_others_work() -> None:
    async def main() -> None:
        engine = inline()
        one, other = Client(engine, b"one"), Client(engine, b"other")
        one.submit(2)
        other.submit(2)
        engine.cancel(b"one")
        await other.has(1)
        assert one.answers == 0
        assert other.outputs == [expected(2)]

    run(main())


def test_changes_survive_cancelling_and_keep_their_turn() -> None:
    async def main() -> None:
        runner, seen = WatchedRunner(), []
        engine = inline(runner)
        client = Client(engine)
        client.submit(1)
        engine.change(b"s", [FREE], lambda: seen.append("first"))
        client.submit(1, 1)
        engine.change(b"s", [FREE], lambda: seen.append("second"))
        engine.cancel(b"s")
        await engine.settle(b"s", [FREE])
        assert seen == ["first", "second"]
        assert client.answers == 0

    run(main())


def test_a_change_that_fails_is_done_all_the_same() -> None:
    def fail() -> None:
        raise ValueError("change")

    async def main() -> None:
        runner = WatchedRunner()
        runner.on_free = fail
        engine = inline(runner)
        await asyncio.wait_for(engine.settle(b"s", [FREE]), 10.0)
        client = Client(engine)
        client.submit(1)
        await client.has(1)
        assert client.outputs == [expected(1)]

    run(main())


def test_a_settling_that_is_cancelled_disturbs_nobody() -> None:
    async def main() -> None:
        runner, acted = WatchedRunner(), []
        runner.on_free = lambda: acted.append(1)
        engine = inline(runner)
        settling = asyncio.ensure_future(engine.settle(b"s", [FREE]))
        await asyncio.sleep(0.5)
        settling.cancel()
        await engine.settle(b"s")
        assert acted == [1]

    run(main())


# ---- threads --------------------------------------------------------------------------------------------------


def in_a_thread(body: Callable[[ThreadEngine, WatchedRunner], Any], runner: WatchedRunner | None = None) -> None:
    async def main() -> None:
        watched, before = runner or WatchedRunner(), set(threading.enumerate())
        engine = ThreadEngine(watched)
        try:
            await asyncio.wait_for(body(engine, watched), 30.0)
        finally:
            await engine.close()
        assert not any(thread.name == "swarm-engine" for thread in set(threading.enumerate()) - before)

    asyncio.run(main())


def test_a_thread_engine_computes_elsewhere_and_answers_here() -> None:
    async def body(engine: ThreadEngine, runner: WatchedRunner) -> None:
        client, here = Client(engine), []
        submit_done = client.done
        client.done = lambda output: (here.append(threading.get_ident()), submit_done(output))[1]  # type: ignore[method-assign]
        for i in range(20):
            client.submit(1, i)
        await client.has(20)
        assert b"".join(client.outputs) == expected(20)
        assert set(here) == {threading.get_ident()}
        assert threading.get_ident() not in runner.threads
        assert len(runner.threads) == 1
        assert engine.beat > 0

    in_a_thread(body)


def test_the_loop_goes_on_while_the_thread_computes() -> None:
    class Gated(WatchedRunner):
        def __init__(self) -> None:
            super().__init__()
            self.gate = threading.Event()

        def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
            assert self.gate.wait(20.0)
            return super().forward(span, segments, hidden)

    gated = Gated()

    async def body(engine: ThreadEngine, runner: WatchedRunner) -> None:
        clients = [Client(engine, b"%d" % i) for i in range(5)]
        for client in clients:
            client.submit(1)
        while engine.queue == 0:
            await asyncio.sleep(0)
        engine.cancel(b"4")
        assert engine.queue >= 1
        gated.gate.set()
        for client in clients[:4]:
            await client.has(1)
            assert client.outputs == [expected(1)]

    in_a_thread(body, gated)


def test_a_thread_engine_survives_failures_and_settles() -> None:
    async def body(engine: ThreadEngine, runner: WatchedRunner) -> None:
        good, bad, acted = Client(engine, b"good"), Client(engine, b"bad"), list[int]()
        runner.on_free = lambda: acted.append(threading.get_ident())
        bad.submit(1, hidden=embed(666, 0))
        good.submit(3)
        await bad.has(1)
        await good.has(1)
        assert bad.errors
        assert good.outputs == [expected(3)]
        await engine.settle(b"good", [FREE])
        assert acted
        assert acted[0] in runner.threads

    in_a_thread(body)


def test_a_closed_thread_engine_answers_nobody() -> None:
    async def main() -> None:
        engine = ThreadEngine(WatchedRunner())
        await engine.close()
        client = Client(engine)
        client.submit(1)
        await asyncio.sleep(0)
        assert client.answers == 0

    asyncio.run(main())


def test_blocks_that_cannot_roll_back_compute_alone_too() -> None:
    async def main() -> None:
        engine = inline(ForgetlessRunner(), batch_positions=3, chunk_positions=2)
        client = Client(engine)
        client.submit(7)
        await client.has(1)
        assert client.outputs == [expected(7)]

    run(main())
