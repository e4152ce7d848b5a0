"""One answer while it is written: what the swarm computes becomes tokens, and tokens become replies."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from swarm.client.session import Session
from swarm.gateway.ends_batcher import Choose, ChosenToken, Embed, EndsBatcher
from swarm.gateway.in_flight import InFlight
from swarm.gateway.metrics import QueryMetrics
from swarm.gateway.replies import Replies
from swarm.gateway.sampling import Sampler
from swarm.gateway.trace import Stopwatch, spans_of
from swarm.models.picture_prompts import Prompt
from swarm.models.texts import Answer
from swarm.speculation.pacer import Pacer
from swarm.wire import swarm_pb2 as pb
from swarm.wire.places import places_of, planes_in

FORCED = -1
"""The kind of guesses that the form of an answer leaves no choice about: they cost nothing to make, and are right."""


@dataclass(slots=True)
class PreparedQuery:
    """A query that was looked through, and how far its answer is.

    `most`: tokens that the answer may have; `ends`: tokens that end it; `alternatives`: how many tokens to tell the
    log-probabilities of beside the chosen one, None: of none; `pacer`: what decides on guesses, if there are any;
    `complete`: it has the form that is asked for, and nothing may follow.
    """

    prompt: Prompt
    tokens: list[int]
    most: int
    ends: frozenset[int]
    sampler: Sampler
    answer: Answer
    alternatives: int | None
    pacer: Pacer | None
    clock: Stopwatch
    traced: bool = False
    complete: bool = False

    @property
    def length(self) -> int:
        """Positions of prompt and answer."""
        return len(self.prompt.tokens) + len(self.tokens)

    @property
    def text(self) -> list[int]:
        """Tokens of prompt and answer."""
        return [*self.prompt.tokens, *self.tokens]

    @property
    def over(self) -> pb.Finished.Reason | None:
        """Why the answer ends here, if it does."""
        if self.answer.stopped or self.complete or (self.tokens and self.tokens[-1] in self.ends):
            return pb.Finished.STOP
        return pb.Finished.LENGTH if len(self.tokens) >= self.most else None


class Writing:
    """Writes the answer to `query` over `session`, which ends with it, and tells it through `replies`."""

    def __init__(
        self, query: PreparedQuery, session: Session, ends: EndsBatcher, replies: Replies, metrics: QueryMetrics
    ) -> None:
        self._query = query
        self._session = session
        self._ends = ends
        self._replies = replies
        self._metrics = metrics
        self._flight = InFlight(session)

    async def run(self) -> None:
        """Write it to its end, or tell the reader why it cannot be written."""
        try:
            self._repeat()
            reason = self._query.over
            if reason is None:
                reason = await self._write()
                await self._session.settled()
            await self._finish(reason)
        except Exception as error:
            self._replies.fail(error)
        finally:
            # Whoever leaves in this very moment must not keep the hops from hearing of it.
            await asyncio.shield(self._session.close())

    def _repeat(self) -> None:
        """Take in what the asker has, so that texts continue where they were."""
        answer = self._query.answer
        for token in self._query.tokens:
            if text := answer.add(token):
                self._replies.put(pb.QueryReply(delta=pb.Delta(text=text, sent_bytes=answer.sent)))

    async def _write(self) -> pb.Finished.Reason:
        """Go on until the answer is over. Raises what `Session.step` raises."""
        query = self._query
        if query.pacer is not None:
            self._session.expect_rollback()
        with query.clock.computing():
            hidden, places = await self._begin()
        try:
            self._flight.send([(query.text[-1], None)], hidden, places)
            while True:
                hidden = await self._take()
                if query.over is not None:
                    return query.over
                await self._replies.room()
                await self._send(hidden)
        finally:
            await self._flight.close()

    async def _begin(self) -> tuple[bytes, bytes]:
        """Hidden states of prompt and answer for the first block, and where they stand."""
        query, prompt = self._query, self._query.prompt
        if not prompt.pictures:
            return await self._ends.embed(Embed(query.text)), b""
        seen, count = await self._ends.see(prompt), len(prompt.tokens)
        query.prompt = Prompt(prompt.tokens)  # what was looked at is large, and not needed any more
        self._flight.shift = seen.shift
        if not query.tokens:
            return seen.hidden, seen.places
        behind = places_of(count + seen.shift, len(query.tokens), planes_in(seen.places, count))
        return seen.hidden + await self._ends.embed(Embed(query.tokens, count)), seen.places + behind

    async def _take(self) -> bytes:
        """Tell what the oldest window brings; returns the hidden states of the last token."""
        query, flight = self._query, self._flight
        window, rows = await flight.receive()
        if query.pacer is not None and window.alone and query.clock.tokens:
            query.pacer.came_back(len(rows), asyncio.get_running_loop().time() - window.sent)
        drafts = flight.windows.following(window)
        asked = Choose(rows, query.sampler, query.length, [token for token, _ in drafts], query.alternatives)
        with query.clock.computing():
            done = await self._ends.choose(asked)
        right = False
        for index, choice in enumerate(done.choices):
            right = index < len(drafts) and drafts[index][0] == choice.token
            if index < len(drafts):
                self._verified(drafts[index][1], right=right)
            self._tell(choice)
            if query.over is not None:
                return b""
        if right:
            flight.windows.confirm()
        else:
            flight.back_to(query.length - 1)
        return done.hidden

    def _verified(self, kind: int | None, *, right: bool) -> None:
        if self._query.pacer is not None and kind != FORCED:
            self._query.pacer.verified(kind, right=right)
            self._metrics.verified(right=right)

    async def _send(self, hidden: bytes) -> None:
        """Send the last token, unless it is on its way, and guesses behind it, as many as pay."""
        query, windows = self._query, self._flight.windows
        while True:
            certain = [] if windows else [(query.tokens[-1], None)]
            drafts = await self._guess()
            if not certain and not drafts:
                return
            states = hidden if certain else b""
            if drafts:
                guessed = Embed([token for token, _ in drafts], query.length + len(windows.drafts))
                with query.clock.computing():
                    states += await self._ends.embed(guessed)
            self._flight.send([*certain, *drafts], states)
            if not drafts or windows.full:
                return

    async def _guess(self) -> list[tuple[int, int]]:
        query, windows = self._query, self._flight.windows
        constraint = query.sampler.constraint
        if (query.pacer is None and constraint is None) or not self._session.can_rollback:
            return []
        room = query.most - len(query.tokens) - 1
        flying = windows.drafts
        if constraint is not None:
            # Nothing else asks it now: the next choice is made when this is sent.
            forced = await asyncio.to_thread(constraint.forced, flying)
            if forced := forced[: max(min(room - len(flying), windows.largest), 0)]:
                return [(token, FORCED) for token in forced]
        if query.pacer is None:
            return []
        text = query.text
        query.pacer.drafter.learn(text)
        drafts = query.pacer.drafts([*text, *flying], len(flying), room, windows.largest)
        if constraint is not None and drafts:
            fitting = constraint.fitting([*flying, *(token for token, _ in drafts)])
            drafts = drafts[: max(fitting - len(flying), 0)]
        return drafts

    def _tell(self, choice: ChosenToken) -> None:
        """One token more."""
        query = self._query
        self._metrics.token(query.clock.token(), first=query.clock.tokens == 1)
        query.tokens.append(choice.token)
        query.complete = choice.last
        text = query.answer.add(choice.token)
        delta = pb.Delta(tokens=[choice.token], text=text, sent_bytes=query.answer.sent)
        if query.alternatives is not None:
            delta.logprobs.append(self._logprob(choice))
        self._replies.put(pb.QueryReply(delta=delta))

    def _logprob(self, choice: ChosenToken) -> pb.Logprob:
        piece = self._query.answer.piece
        top = [pb.Logprob(token=token, logprob=value, text=piece(token)) for token, value in choice.top]
        return pb.Logprob(token=choice.token, logprob=choice.logprob, text=piece(choice.token), top=top)

    async def _finish(self, reason: pb.Finished.Reason) -> None:
        query = self._query
        if rest := query.answer.end():
            self._replies.put(pb.QueryReply(delta=pb.Delta(text=rest, sent_bytes=query.answer.sent)))
        finished = pb.Finished(
            reason=reason, prompt_tokens=len(query.prompt.tokens), completion_tokens=len(query.tokens)
        )
        finished.stop = query.answer.stop
        finished.seconds = asyncio.get_running_loop().time() - query.clock.began
        self._metrics.finished(pb.Finished.Reason.Name(reason).lower(), finished.seconds)
        if query.traced:
            finished.trace.extend(spans_of(query.clock, await self._session.trace()))
        self._replies.put(pb.QueryReply(finished=finished))
