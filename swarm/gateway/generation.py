"""Answers to queries, generated over the swarm: the `Answerer` of a query node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from swarm.client.session import Notice, Session
from swarm.client.view import View
from swarm.config import GatewayConfig, check_speculation
from swarm.errors import ContextTooLong, InvalidInput, MissingBlocks, NetworkError, ServerBusy
from swarm.gateway.compute import Ask, Choice, Compute, Text
from swarm.gateway.flight import Flight
from swarm.gateway.metrics import QueryMetrics
from swarm.gateway.sampling import MOST_ALTERNATIVES, Sampler, settings_of
from swarm.gateway.texts import Answer, Texts
from swarm.gateway.trace import Stopwatch, spans_of
from swarm.models.drafts import NgramDrafter
from swarm.models.pacer import Pacer
from swarm.net.base import Host
from swarm.types import ModelInfo, Route, Span, is_called
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

QUERY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Recommended:
    """What the model's authors say of generation. `values`: of sampling, by its names; `ends`: what ends a text."""

    values: Mapping[str, Any]
    ends: frozenset[int]
    max_tokens: int | None = None

    @classmethod
    def of(cls, generation: Any, tokenizer: Any) -> Recommended:
        """Out of transformers' GenerationConfig. What is there for sampling counts only where they sample."""
        names = ("temperature", "top_p", "top_k", "min_p") if generation.do_sample else ()
        values = {name: getattr(generation, name, None) for name in (*names, "repetition_penalty")}
        if generation.do_sample and values["temperature"] is None:
            values["temperature"] = 1.0
        ends = generation.eos_token_id
        known = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
        return cls(values, frozenset(known - {None}), generation.max_new_tokens)


class Replies:
    """Replies on their way to an asker who may be slow. One reader, one writer."""

    MOST = 64

    def __init__(self) -> None:
        self._replies: deque[pb.QueryReply] = deque()
        self._error: BaseException | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, reply: pb.QueryReply) -> None:
        """Never waits: what happens to a route must be told whether there is room or not."""
        self._replies.append(reply)
        if len(self._replies) >= self.MOST:
            self._room.clear()
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """After what is there, the reader meets this."""
        self._error = self._error or error
        self._changed.set()

    async def room(self) -> None:
        """Wait until the reader has come so far that more may be put."""
        await self._room.wait()

    async def get(self) -> pb.QueryReply:
        """The next one, or raise the error."""
        while not self._replies:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        if len(self._replies) <= self.MOST // 2:
            self._room.set()
        return self._replies.popleft()


@dataclass(slots=True)
class _Query:
    """A query that was looked through."""

    prompt: list[int]
    tokens: list[int]
    most: int
    sampler: Sampler
    answer: Answer
    sampling: pb.Sampling
    began: float
    clock: Stopwatch
    pacer: Pacer | None
    traced: bool = False

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def text(self) -> list[int]:
        return [*self.prompt, *self.tokens]

    @property
    def alternatives(self) -> int | None:
        return min(self.sampling.top_logprobs, MOST_ALTERNATIVES) if self.sampling.logprobs else None


class Generator:
    """Answers queries for one model with its own ends and the swarm's blocks. Satisfies `Answerer`."""

    def __init__(
        self,
        host: Host,
        view: View,
        texts: Texts,
        compute: Compute,
        recommended: Recommended,
        config: GatewayConfig,
        metrics: QueryMetrics | None = None,
    ) -> None:
        self.view = view
        self.texts = texts
        self.config = config
        self.running = 0
        self._host = host
        self._compute = compute
        self._recommended = recommended
        self._metrics = metrics or QueryMetrics(CollectorRegistry())

    @property
    def model(self) -> ModelInfo:
        return self.view.model

    @property
    def converses(self) -> bool:
        return self.texts.converses

    @property
    def capacity(self) -> int:
        return self.config.capacity

    @property
    def missing(self) -> Span | None:
        try:
            self.view.route(Span(0, self.model.blocks), 1)
        except MissingBlocks as missing:
            return Span(*missing.blocks[0]) if missing.blocks else Span(0, self.model.blocks)
        return None

    async def look(self) -> Span | None:
        """See `Answerer`."""
        if self.missing is not None:
            with contextlib.suppress(NetworkError):
                # All who ask at a time share one reading.
                await self.view.refresh(0.0)
        return self.missing

    async def answer(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        """See `Answerer`."""
        try:
            async with contextlib.aclosing(self._answer(query)) as replies:
                async for reply in replies:
                    yield reply
        except BaseException as error:
            self._metrics.failed(error)
            raise

    async def _answer(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        if self.running >= self.capacity:
            raise ServerBusy(f"{self.running} queries are being answered here", self.config.retry_after)
        self.running += 1
        try:
            ready = await self._look_through(query)
            self._metrics.accepted(len(ready.prompt))
            accepted = pb.Accepted(model=self.model.key, name=self.model.name, prompt_tokens=len(ready.prompt))
            accepted.seed = ready.sampling.seed
            async with contextlib.aclosing(self._replies(ready)) as replies:
                first = await anext(replies)
                yield pb.QueryReply(accepted=accepted)
                yield first
                async for reply in replies:
                    yield reply
        finally:
            self.running -= 1

    async def _replies(self, query: _Query) -> AsyncGenerator[pb.QueryReply, None]:
        replies = Replies()
        work = asyncio.create_task(self._generate(query, replies), name="query")
        try:
            while True:
                reply = await replies.get()
                yield reply
                if reply.WhichOneof("kind") == "finished":
                    await work
                    return
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _look_through(self, query: pb.Query) -> _Query:
        """Raises InvalidInput, ContextTooLong."""
        if query.model and query.model != self.model.key and not is_called(self.model.name, query.model):
            raise InvalidInput(f"this node answers for {self.model.name}, not for {query.model}")
        if len(query.id) != QUERY_BYTES:
            raise InvalidInput(f"a query's id has {QUERY_BYTES} bytes")
        vocabulary = self._compute.ends.vocabulary
        settings = settings_of(query.sampling, self._recommended.values, vocabulary)
        prompt = await asyncio.to_thread(self.texts.prompt, query, vocabulary)
        most = self._most(len(prompt), query.sampling)
        tokens = list(query.generated)
        if len(tokens) > most or any(token >= vocabulary for token in tokens):
            raise InvalidInput(f"{len(tokens)} tokens generated of at most {most}, each below {vocabulary}")
        answer = Answer(self.texts, prompt, query.sampling.stop, query.sent_bytes)
        sampler = Sampler(settings, prompt, tokens)
        pacer = pacer_of(query.sampling.speculation or self.config.speculation)
        began = asyncio.get_running_loop().time()
        clock = Stopwatch(began)
        return _Query(prompt, tokens, most, sampler, answer, query.sampling, began, clock, pacer, query.trace)

    def _most(self, prompt: int, sampling: pb.Sampling) -> int:
        """How many tokens the answer may have. Raises ContextTooLong."""
        context = self.model.context_length
        room = None if context is None else context - prompt + 1
        asked = sampling.max_tokens if sampling.HasField("max_tokens") else None
        if room is not None and (room < 1 or (asked or 1) > room):
            raise ContextTooLong(f"{prompt} tokens of prompt and {asked or 1} new ones do not fit into {context}")
        if asked is not None:
            return asked
        usual = self._recommended.max_tokens or self.config.max_tokens
        return usual if room is None else min(usual, room)

    async def _generate(self, query: _Query, replies: Replies) -> None:
        """Write the answer. Its session ends with it, however it ends."""
        span = Span(0, self.model.blocks)
        row_bytes = self.model.hidden_size * self._compute.ends.dtype.itemsize
        hear = _Hearing(query, replies, self.config.retry_after, self._metrics)
        session = Session(self._host, self.view, span, row_bytes=row_bytes, config=self.view.config, on_notice=hear)
        hear.session = session
        try:
            reason = await self._go_on(query, session, replies)
            rest = query.answer.end()
            if rest:
                replies.put(pb.QueryReply(delta=pb.Delta(text=rest, sent_bytes=query.answer.sent)))
            finished = self._finished(query, reason)
            self._metrics.finished(pb.Finished.Reason.Name(reason).lower(), finished.seconds)
            if query.traced:
                finished.trace.extend(spans_of(query.clock, await session.trace()))
            replies.put(pb.QueryReply(finished=finished))
        except Exception as error:
            replies.fail(error)
        finally:
            # Whoever leaves in this very moment must not keep the hops from hearing of it.
            await asyncio.shield(session.close())

    async def _go_on(self, query: _Query, session: Session, replies: Replies) -> pb.Finished.Reason:
        """From where the answer is to its end."""
        for token in query.tokens:
            # What the asker has, so that texts continue where they were.
            text = query.answer.add(token)
            if text:
                replies.put(pb.QueryReply(delta=pb.Delta(text=text, sent_bytes=query.answer.sent)))
        last = query.tokens[-1] if query.tokens else None
        reason = self._over(query, last)
        if reason is not None:
            return reason
        with query.clock.computing():
            hidden = await self._compute.embed(Text(query.text))
        flight = Flight(session)
        try:
            flight.send([(query.text[-1], None)], hidden)
            while True:
                hidden, reason = await self._take(query, flight, replies)
                if reason is not None:
                    return reason
                await replies.room()
                await self._send(query, flight, hidden, guess=session.can_rollback)
        finally:
            await flight.close()

    async def _take(self, query: _Query, flight: Flight, replies: Replies) -> tuple[bytes, pb.Finished.Reason | None]:
        """Tell what the oldest window brings: the last token's hidden states, and why it is the last, if it is."""
        window, rows = await flight.receive()
        if query.pacer is not None and window.alone and query.clock.tokens:
            query.pacer.came_back(len(rows), asyncio.get_running_loop().time() - window.sent)
        drafts = flight.following(window)
        ask = Ask(rows, query.sampler, query.length, [token for token, _ in drafts], query.alternatives)
        with query.clock.computing():
            done = await self._compute.choose(ask)
        right = False
        for index, choice in enumerate(done.choices):
            right = index < len(drafts) and drafts[index][0] == choice.token
            if query.pacer is not None and index < len(drafts):
                query.pacer.verified(drafts[index][1], right=right)
                self._metrics.verified(right=right)
            self._metrics.token(query.clock.token(), first=query.clock.tokens == 1)
            replies.put(pb.QueryReply(delta=self._delta(query, choice)))
            reason = self._over(query, choice.token)
            if reason is not None:
                return b"", reason
        if right:
            flight.confirm()
        else:
            flight.back_to(query.length - 1)
        return done.hidden, None

    async def _send(self, query: _Query, flight: Flight, hidden: bytes, *, guess: bool) -> None:
        """Send the last token, unless it is on its way, and guesses behind it, as many as pay."""
        while True:
            certain = [] if flight.windows else [(query.tokens[-1], None)]
            drafts = self._guess(query, flight) if guess else []
            if not certain and not drafts:
                return
            states = hidden if certain else b""
            if drafts:
                text = Text([token for token, _ in drafts], query.length + len(flight.drafts))
                with query.clock.computing():
                    states += await self._compute.embed(text)
            flight.send([*certain, *drafts], states)
            if not drafts or len(flight.windows) == flight.most:
                return

    @staticmethod
    def _guess(query: _Query, flight: Flight) -> list[tuple[int, int]]:
        if query.pacer is None:
            return []
        text, flying = query.text, flight.drafts
        query.pacer.drafter.learn(text)
        room = query.most - len(query.tokens) - 1
        return query.pacer.drafts([*text, *flying], len(flying), room, flight.largest)

    def _delta(self, query: _Query, choice: Choice) -> pb.Delta:
        query.tokens.append(choice.token)
        text = query.answer.add(choice.token)
        delta = pb.Delta(tokens=[choice.token], text=text, sent_bytes=query.answer.sent)
        if query.alternatives is not None:
            delta.logprobs.append(self._logprob(choice))
        return delta

    def _logprob(self, choice: Choice) -> pb.Logprob:
        piece = self.texts.piece
        top = [pb.Logprob(token=token, logprob=value, text=piece(token)) for token, value in choice.top]
        return pb.Logprob(token=choice.token, logprob=choice.logprob, text=piece(choice.token), top=top)

    def _over(self, query: _Query, last: int | None) -> pb.Finished.Reason | None:
        """Why the answer ends here, if it does."""
        if query.answer.stopped or (last in self._recommended.ends and not query.sampling.ignore_eos):
            return pb.Finished.STOP
        return pb.Finished.LENGTH if len(query.tokens) >= query.most else None

    def _finished(self, query: _Query, reason: pb.Finished.Reason) -> pb.Finished:
        seconds = asyncio.get_running_loop().time() - query.began
        prompt, completion = len(query.prompt), len(query.tokens)
        return pb.Finished(reason=reason, prompt_tokens=prompt, completion_tokens=completion, seconds=seconds)


def pacer_of(speculation: str) -> Pacer | None:
    """What decides on guesses. Raises InvalidInput for a kind of speculation that there is not."""
    check_speculation(speculation)
    return Pacer(NgramDrafter()) if speculation == "ngram" else None


class _Hearing:
    """Tells an asker what its session says of routes and of waiting."""

    def __init__(self, query: _Query, replies: Replies, retry_after: float, metrics: QueryMetrics) -> None:
        self.session: Session | None = None
        self._metrics = metrics
        self._waited = False
        self._query = query
        self._replies = replies
        self._retry_after = retry_after

    def __call__(self, notice: Notice) -> None:
        if notice.kind == "rerouted":
            self._metrics.rerouted()
        if notice.kind != "waiting" and notice.route is not None:
            self._replies.put(pb.QueryReply(route=self._route(notice, notice.route)))
        elif notice.blocks:
            if not self._waited:
                self._waited = True
                self._metrics.waiting()
            first, last = notice.blocks[0]
            waiting = pb.Waiting(first=first, last=last, since=notice.seconds, words=notice.text)
            self._replies.put(pb.QueryReply(waiting=waiting))
        elif not self._query.tokens:
            # Nothing is lost yet: the asker does better to come again, or to ask another node.
            self._replies.fail(ServerBusy("the swarm has no room for another query now", self._retry_after))

    def _route(self, notice: Notice, route: Route) -> pb.RouteInUse:
        reroutes = 0 if self.session is None else self.session.reroutes
        reason = notice.text if notice.kind == "rerouted" else ""
        return pb.RouteInUse(hops=_hops(route), reroutes=reroutes, reason=reason)


def _hops(route: Route) -> Sequence[pb.RouteHop]:
    return [
        pb.RouteHop(peer_id=hop.peer_id, name=hop.server.name, first=hop.span.first, last=hop.span.last)
        for hop in route.hops
    ]
