"""One table for all that a hop is asked: every reply finds who asked, whatever comes in between."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.questions import Question, Questions
from swarm.errors import MalformedFrame, ServerBusy, StreamClosed
from swarm.testing import run
from swarm.wire import swarm_pb2 as pb

OPENED = pb.ControlReply(opened=pb.Opened(max_positions=7))


def have(epoch: int) -> pb.ControlReply:
    return pb.ControlReply(have=pb.Have(epoch=epoch))


def progress(nonce: int, beat: int = 0) -> pb.ControlReply:
    return pb.ControlReply(progress=pb.Progress(nonce=nonce, beat=beat))


def asking(work: Coroutine[Any, Any, None]) -> None:
    run(work)


def test_replies_are_told_apart_by_kind_epoch_and_nonce() -> None:
    async def main() -> None:
        questions = Questions("a hop")
        opening, preparing, probing = questions.ask("opened"), questions.ask("have", 3), questions.ask("progress", 1)
        for reply in (progress(1), OPENED, have(2), have(3)):
            questions.settle(reply)
        assert await opening.reply == OPENED
        assert await preparing.reply == have(3)
        assert await probing.reply == progress(1)
        assert len(questions) == 0

    asking(main())


def test_a_reply_of_another_kind_is_malformed() -> None:
    async def main() -> None:
        questions = Questions("a hop")
        opening = questions.ask("opened")
        questions.settle(have(1))
        with pytest.raises(MalformedFrame, match="a hop: answered with have instead of opened"):
            await opening.reply

    asking(main())


def test_a_failure_is_for_who_opens_and_not_for_who_probes() -> None:
    async def main() -> None:
        questions = Questions("a hop")
        probing = questions.ask("progress", 1)
        assert not questions.refuse(ServerBusy("full"))
        opening, preparing = questions.ask("opened"), questions.ask("have", 1)
        assert questions.refuse(ServerBusy("full"))
        with pytest.raises(ServerBusy):
            await opening.reply
        assert not preparing.reply.done()
        assert not probing.reply.done()

    asking(main())


def test_the_end_of_the_stream_is_told_to_all_and_heard_by_who_opens() -> None:
    async def main() -> None:
        questions = Questions("a hop")
        probing = questions.ask("progress", 1)
        assert not questions.fail(StreamClosed("gone"))
        with pytest.raises(StreamClosed):
            await probing.reply
        preparing = questions.ask("have", 1)
        assert questions.fail(StreamClosed("gone"))
        with pytest.raises(StreamClosed):
            await preparing.reply
        assert not questions.fail(StreamClosed("gone"))

    asking(main())


@given(st.lists(st.sampled_from(["ask", "answer", "forget"]), max_size=30), st.data())
def test_every_probe_has_its_own_answer_or_that_of_a_later_one(does: list[str], data: st.DataObject) -> None:
    async def main() -> None:
        questions, asked, answered, number = Questions("a hop"), list[Question](), set[int](), 0
        for what in does:
            if what == "ask":
                number += 1
                asked.append(questions.ask("progress", number))
            elif asked and what == "answer":
                nonce = data.draw(st.sampled_from(asked)).number
                answered.add(nonce)
                questions.settle(progress(nonce))
            elif asked:
                questions.forget(data.draw(st.sampled_from(asked)))
        for question in asked:
            if question.reply.done() and not question.reply.cancelled():
                assert question.reply.result().progress.nonce >= question.number
            elif not question.reply.done():
                assert all(nonce < question.number for nonce in answered)
                assert questions.unanswered_since(question.number - 1) is not None

    asking(main())
