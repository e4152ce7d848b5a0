"""What a glance at every step shows, and that the text goes on right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from swarm.client.session import Session
from swarm.config import ClientConfig
from swarm.errors import GenerationFailed, Implausible
from swarm.testing import ExactRunner, World, generate, run
from swarm.testing import reference as hashes
from swarm.types import Rows, Segment, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.plausible import Plausible
from swarm.wire.rows import Buffer
from tests.attackers.attacks import BLATANT, Copier
from tests.attackers.numbers import SIZE, NumbersRunner, arithmetic, embed, reference

PROMPT = [3, 1, 4, 1, 5, 9, 2]
SPANS = (Span(0, 3), Span(3, 6), Span(6, 9))
ROW = 4


class Glance(Plausible):
    """What passes is remembered."""

    def look(self, step: pb.Step) -> None:
        super().look(step)
        self.remember()


def step(*rows: Sequence[float], start: int = 0) -> pb.Step:
    hidden = np.asarray(rows, np.float32)
    return pb.Step(rows=[pb.Rows(sequence=7, start=start, count=len(hidden))], hidden=hidden.tobytes())


# ---- the glance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "position", "words"),
    [
        pytest.param([[1, 2, 3, 4], [1, np.nan, 3, 4]], 11, "not finite", id="no number"),
        pytest.param([[np.inf, 2, 3, 4]], 10, "not finite", id="infinite"),
        pytest.param([[1, 1, 1, 2], [0, 0, 0, 0]], 11, "norm of 0", id="nothing"),
        pytest.param([[50000, 0, 0, 0]], 10, "norm of 5e", id="far larger than all before"),
        pytest.param([[0.0004, 0, 0, 0]], 10, "norm of 0.0004", id="far smaller than all before"),
        pytest.param([[9.5, 1, 1, 1], [3, 1, 1, 1]], 11, "that of position 3", id="of another position"),
        pytest.param([[9.5, 1, 1, 1], [9.5, 1, 1, 1]], 11, "that of position 10", id="of another position of the step"),
    ],
)
def test_what_cannot_be_hidden_states(rows: list[list[float]], position: int, words: str) -> None:
    glance = Glance("float32", 4 * ROW)
    glance.look(step(*([float(i), 1, 1, 1] for i in range(10))))
    with pytest.raises(Implausible, match=words) as caught:
        glance.look(step(*rows, start=10))
    assert (caught.value.sequence, caught.value.position) == (7, position)
    there = messages.error_of(messages.failure(caught.value), "peer")
    assert isinstance(there, Implausible)
    assert (there.sequence, there.position, there.twin) == (7, position, caught.value.twin)


def test_what_is_unusual_and_passes() -> None:
    glance = Glance("float32", 4 * ROW)
    rows = [[float(i), 1, 1, 1] for i in range(10)]
    glance.look(step([1e9, 0, 0, 0]))
    glance.look(step(*rows, start=1))
    glance.look(step(*rows[5:], start=6))  # the same positions again
    glance.look(step(*[[1.0, 2.0, 3.0, 4.0]] * 40, start=11))  # a prompt of one word, over and over
    with pytest.raises(Implausible):
        glance.look(step(rows[0], start=60))
    glance.look(step([7, 7, 7, 7], start=60))


def test_numbers_of_an_unknown_kind_are_only_compared() -> None:
    glance = Glance("exact", 8)
    for start, word in enumerate((b"\xff" * 8, bytes(8), b"12345678")):
        glance.look(pb.Step(rows=[pb.Rows(sequence=1, start=start, count=1)], hidden=word))
    with pytest.raises(Implausible, match="position 1"):
        glance.look(pb.Step(rows=[pb.Rows(sequence=1, start=3, count=1)], hidden=bytes(8)))


# ---- what follows -------------------------------------------------------------------------------------------------


async def play(wrong: dict[str, NumbersRunner], count: int = 40, honest: bool = True) -> tuple[Session, list[str]]:
    """Two servers a span, those that are wrong preferred. The text is right; returns the peers that were avoided."""
    world = World(arithmetic=arithmetic())
    for index, span in enumerate(SPANS):
        bad, good = f"bad{index}", f"good{index}"
        if bad in wrong:
            await world.add(bad, span, runner=wrong[bad], decode_ms=0.5)
        if honest or bad not in wrong:
            await world.add(good, span)
    session = world.session(ClientConfig())
    text = await asyncio.wait_for(generate(session, PROMPT, count, arithmetic=world.arithmetic), 600.0)
    assert text == reference(PROMPT, count)
    avoided = sorted(session.view.trust.peers.active(asyncio.get_running_loop().time()))
    await world.close()
    return session, avoided


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("attack", BLATANT)
def test_what_a_glance_shows_is_computed_elsewhere(attack: str, place: int) -> None:
    session, avoided = run(play({f"bad{place}": BLATANT[attack](SPANS[place])}))
    assert avoided == [f"bad{place}"]
    assert session.route is not None
    assert [hop.peer_id for hop in session.route.hops] == ["good0", "good1", "good2"]


def test_who_gives_back_the_inputs_of_all_blocks() -> None:
    async def main() -> None:
        world = World(arithmetic=arithmetic())
        await world.add("bad", Span(0, 9), runner=Copier(Span(0, 9)), decode_ms=0.1)
        await world.add("good", Span(0, 9))
        session = world.session()
        assert await generate(session, PROMPT, 20, arithmetic=world.arithmetic) == reference(PROMPT, 20)
        assert session.reroutes == 1 and session.route is not None and session.route.hops[0].peer_id == "good"
        await world.close()

    run(main())


def test_wrong_servers_at_every_place_are_all_left() -> None:
    wrong = {f"bad{i}": BLATANT[name](SPANS[i]) for i, name in enumerate(("an old output", "zeros", "no numbers"))}
    _, avoided = run(play(wrong))
    assert avoided == sorted(wrong)


def test_where_nobody_computes_right_the_step_fails_with_the_reason() -> None:
    with pytest.raises(GenerationFailed, match="not finite"):
        run(play({"bad1": BLATANT["no numbers"](SPANS[1])}, honest=False))


def test_two_servers_that_come_to_the_same_are_right() -> None:
    """A model that makes what looks odd: all servers of the last blocks agree, and the text is that."""

    class Odd(ExactRunner):
        def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
            output = super().forward(span, segments, hidden)
            return output if span.first == 0 else memoryview(bytes(len(output)))

    async def main() -> None:
        world = World(make_runner=Odd)
        for name, span in (("a", Span(0, 5)), ("b", Span(5, 9)), ("c", Span(5, 9))):
            await world.add(name, span)
        session = world.session()
        assert await generate(session, PROMPT, 20) == [0] * 20
        assert session.reroutes == 2
        await world.close()

    run(main())


def test_a_text_of_one_word_is_nobodys_fault() -> None:
    """The same inputs at every position, and so the same states: a hop sees it, the client knows why."""

    class Same(NumbersRunner):
        def contribution(self, block: int, segment: Segment, rows: object) -> object:
            return np.full_like(rows, 0.25)

    async def main() -> None:
        world = World(arithmetic=arithmetic())
        for name, span in (("a", Span(0, 5)), ("b", Span(5, 9))):
            await world.add(name, span, runner=Same(span))
        session = world.session()
        for _ in range(30):
            await session.step([Rows(0, embed(5, 0), 1)])
        assert not session.view.trust.peers.active(asyncio.get_running_loop().time())
        assert session.reroutes == 1
        await world.close()

    run(main())


def test_inputs_that_are_no_numbers_are_the_users_own() -> None:
    async def main() -> None:
        world = World(arithmetic=arithmetic())
        for name, span in (("a", Span(0, 5)), ("b", Span(5, 9))):
            await world.add(name, span)
        session = world.session()
        (output,) = await session.step([Rows(0, np.full(SIZE, np.nan, np.float32).tobytes(), 1)])
        assert np.isnan(np.frombuffer(output, np.float32)).all()
        assert not session.view.trust.peers.active(asyncio.get_running_loop().time())
        await world.close()

    run(main())


def test_who_accuses_one_after_the_other_is_left_too() -> None:
    async def main() -> None:
        world = World()
        for name, span in (("a1", SPANS[0]), ("a2", SPANS[0]), ("a3", SPANS[0]), ("liar", Span(3, 9))):
            await world.add(name, span, decode_ms=0.1 if name == "liar" else 1.0)
        handler = world.servers["liar"].handler
        session = world.session()

        def accuse(index: int) -> None:
            if index in (5, 10) and "liar" in world.servers:
                suspicion = Implausible("your inputs are odd", 0, index, None)
                for one in handler.sessions:
                    one.tell(pb.ControlReply(failure=messages.failure(suspicion, one.epoch)))
            if index == 4:
                world.later(0.0, world.add("good", Span(3, 9)))

        assert await generate(session, PROMPT, 40, on_token=accuse) == hashes(PROMPT, 40)
        assert session.route is not None and session.route.hops[-1].peer_id == "good"
        await world.close()

    run(main())


def test_a_token_that_is_repeated_is_no_excuse_for_an_output_that_is() -> None:
    async def main() -> None:
        world = World(arithmetic=arithmetic())
        for name, span in (("a", Span(0, 5)), ("good", Span(5, 9))):
            await world.add(name, span)
        await world.add("bad", Span(5, 9), runner=BLATANT["an old output"](Span(5, 9)), decode_ms=0.5)
        session = world.session()
        outputs = []
        for token in (1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 5, 5):
            outputs += await session.step([Rows(0, embed(token, 0), 1)])
        assert len(set(outputs)) == len(outputs)
        assert "bad" in session.view.trust.peers.active(asyncio.get_running_loop().time())
        await world.close()

    run(main())
