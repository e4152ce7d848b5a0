"""What a hop was asked on its control stream and has not answered yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from swarm.errors import MalformedFrame, SwarmError
from swarm.wire import swarm_pb2 as pb

Kind = Literal["opened", "have", "progress"]


@dataclass(slots=True, eq=False)
class Question:
    """One request that has a reply of this `kind`. `number`: the epoch of a Prepare, the nonce of a Probe.

    `asked`, `answered`: when, by the loop's clock; `reply` holds the reply, or the error that came in its place.
    """

    kind: Kind
    number: int
    asked: float
    reply: asyncio.Future[pb.ControlReply] = field(repr=False)
    answered: float = 0.0


class Questions:
    """The questions that are open at one hop, `who` in words, in the order in which they were asked."""

    def __init__(self, who: str) -> None:
        self.who = who
        self._open: dict[Question, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, kind: Kind, number: int = 0) -> Question:
        """Note a question that is about to be sent; await its `reply`, and `forget` it in the end."""
        loop = asyncio.get_running_loop()
        question = Question(kind, number, loop.time(), loop.create_future())
        self._open[question] = None
        return question

    def forget(self, *questions: Question) -> None:
        """Nobody waits for these any more."""
        for question in questions:
            self._open.pop(question, None)
            question.reply.cancel()

    def settle(self, reply: pb.ControlReply) -> None:
        """Give a reply to whoever asked for it. A Have of an epoch that nobody asks about any more is dropped."""
        kind, question = reply.WhichOneof("kind"), self._first
        if kind == "progress":
            self._settle_probes(reply)
        elif question is None or (kind == "have" == question.kind and reply.have.epoch != question.number):
            return
        elif kind == question.kind:
            self._answer(question, reply)
        else:
            self._refuse(question, MalformedFrame(f"{self.who}: answered with {kind} instead of {question.kind}"))

    def _settle_probes(self, reply: pb.ControlReply) -> None:
        """Probes are answered in order: whoever answers one leaves none before it to be answered."""
        for probe in [q for q in self._open if q.kind == "progress" and q.number <= reply.progress.nonce]:
            self._answer(probe, reply)

    @property
    def _first(self) -> Question | None:
        """Who opens or prepares, and waits the longest."""
        return next((question for question in self._open if question.kind != "progress"), None)

    def refuse(self, error: SwarmError) -> bool:
        """A failure was answered: it is for whoever opens or prepares, and waits the longest. False if nobody does."""
        question = self._first
        if question is not None:
            self._refuse(question, error)
        return question is not None

    def fail(self, error: SwarmError) -> bool:
        """Nothing will be answered any more. False if nobody hears of it who opens or prepares."""
        heard = self._first is not None
        for question in list(self._open):
            self._refuse(question, error)
        return heard

    def unanswered_since(self, number: int) -> float | None:
        """When the first probe behind this one was asked that has no answer; None: all have."""
        return min((q.asked for q in self._open if q.kind == "progress" and q.number > number), default=None)

    def _answer(self, question: Question, reply: pb.ControlReply) -> None:
        question.answered = asyncio.get_running_loop().time()
        del self._open[question]
        if not question.reply.done():
            question.reply.set_result(reply)

    def _refuse(self, question: Question, error: SwarmError) -> None:
        del self._open[question]
        if not question.reply.done():
            question.reply.set_exception(error)
            question.reply.exception()  # retrieved: who asked several things raises the first that fails
