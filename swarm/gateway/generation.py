"""Answers to queries, generated over the swarm: the `Answerer` of a query node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry

from swarm.client.matrices import NOTHING, Matrices
from swarm.client.session import Session
from swarm.client.view import View
from swarm.config import GatewayConfig, check_speculation
from swarm.errors import ContextTooLong, InvalidInput, MissingBlocks, NetworkError, ServerBusy
from swarm.gateway.answers import Embedded
from swarm.gateway.constrained.compiler import Compiler
from swarm.gateway.constrained.grammars import grammar_of
from swarm.gateway.embedding import embedded
from swarm.gateway.ends_batcher import EndsBatcher
from swarm.gateway.metrics import QueryMetrics
from swarm.gateway.notices import Notices
from swarm.gateway.prompts import Prompts
from swarm.gateway.recommended import Recommended
from swarm.gateway.replies import Replies
from swarm.gateway.sampling import MOST_ALTERNATIVES, Sampler, settings_of
from swarm.gateway.trace import Stopwatch
from swarm.gateway.writing import PreparedQuery, Writing
from swarm.models.picture_prompts import PicturePrompts
from swarm.models.texts import Answer, Texts
from swarm.net.base import Host
from swarm.speculation.drafts import NgramDrafter
from swarm.speculation.pacer import Pacer
from swarm.tasks import ended
from swarm.types import Span, is_called
from swarm.wire import swarm_pb2 as pb

QUERY_BYTES = 16
EMBEDDED_TOGETHER = 8
"""Texts of one request that are on their way through the blocks at a time."""


class Generator:
    """Answers queries for one model with its own ends and the swarm's blocks. Satisfies `Answerer`.

    `pictures`: where the model sees, what makes prompts of conversations with pictures.
    """

    def __init__(
        self,
        host: Host,
        view: View,
        texts: Texts,
        ends: EndsBatcher,
        recommended: Recommended,
        config: GatewayConfig,
        metrics: QueryMetrics | None = None,
        pictures: PicturePrompts | None = None,
        adapter: tuple[str, Matrices] | None = None,
    ) -> None:
        """`adapter`: its name, which follows the model's, and what it adds."""
        self.view = view
        self.model = view.model if adapter is None else replace(view.model, name=f"{view.model.name}:{adapter[0]}")
        self._matrices = NOTHING if adapter is None else adapter[1]
        self.texts = texts
        self.config = config
        self.running = 0
        self._host = host
        self._ends = ends
        self._recommended = recommended
        self._metrics = metrics or QueryMetrics(CollectorRegistry())
        self._prompts = Prompts(texts, ends.ends.vocabulary, pictures)
        self._compiler = Compiler(texts, ends.ends.vocabulary, recommended.ends)

    @property
    def converses(self) -> bool:
        return self.texts.converses

    @property
    def sees(self) -> bool:
        return self._prompts.sees

    @property
    def capacity(self) -> int:
        return self.config.capacity

    @property
    def missing(self) -> MissingBlocks | None:
        try:
            self.view.route(Span(0, self.model.blocks))
        except MissingBlocks as missing:
            return missing
        return None

    async def look(self) -> MissingBlocks | None:
        """See `Answerer`."""
        if self.missing is not None:
            with contextlib.suppress(NetworkError):
                # All who ask at a time share one reading.
                await self.view.refresh(0.0)
        return self.missing

    async def count(self, query: pb.Query) -> int:
        """See `Answerer`."""
        return len((await self._prompts.of(query)).tokens)

    async def embed(self, queries: Sequence[pb.Query], pooling: str) -> list[Embedded]:
        """See `Answerer`. All of them together count as one query."""
        with self._counted():
            vocabulary, context = self._ends.ends.vocabulary, self.model.context_length
            prompts = [await asyncio.to_thread(self.texts.prompt, query, vocabulary) for query in queries]
            for prompt in prompts:
                if context is not None and len(prompt) > context:
                    raise ContextTooLong(f"a text of {len(prompt)} tokens does not fit into {context}", field="input")
            room = asyncio.Semaphore(EMBEDDED_TOGETHER)

            async def one(prompt: Sequence[int]) -> Embedded:
                async with room:
                    session = self._session()
                    return Embedded(await embedded(session, self._ends, prompt, pooling), len(prompt))

            tasks = [asyncio.create_task(one(prompt), name="embedding") for prompt in prompts]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                await ended(*tasks)

    def close(self) -> None:
        """Answer nothing more."""
        self._compiler.close()

    async def answer(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        """See `Answerer`."""
        with self._counted():
            prepared = await self._prepare(query)
            count = len(prepared.prompt.tokens)
            self._metrics.accepted(count)
            accepted = pb.Accepted(model=self.model.key, name=self.model.name, prompt_tokens=count)
            accepted.seed = prepared.sampler.settings.seed
            replies = Replies(accepted)
            writing = asyncio.create_task(self._writing(prepared, replies).run(), name="query")
            try:
                async for reply in replies:
                    yield reply
                await writing
            finally:
                await ended(writing)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a query for as long as the block lasts. Raises ServerBusy when there is no room for it."""
        try:
            if self.running >= self.capacity:
                raise ServerBusy(f"{self.running} queries are being answered here", self.config.retry_after)
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1
        except BaseException as error:
            self._metrics.failed(error)
            raise

    def _writing(self, query: PreparedQuery, replies: Replies) -> Writing:
        notices = Notices(replies, lambda: bool(query.tokens), self.config.retry_after, self._metrics)
        return Writing(query, self._session(on_notice=notices), self._ends, replies, self._metrics)

    def _session(self, **options: Any) -> Session:
        span, config = Span(0, self.model.blocks), self.view.config
        return Session(self._host, self.view, span, config=config, matrices=self._matrices, **options)

    async def _prepare(self, query: pb.Query) -> PreparedQuery:
        """Raises InvalidInput, ContextTooLong."""
        if query.model and query.model != self.model.key and not is_called(self.model.name, query.model):
            raise InvalidInput(f"this node answers for {self.model.name}, not for {query.model}")
        if len(query.id) != QUERY_BYTES:
            raise InvalidInput(f"a query's id has {QUERY_BYTES} bytes")
        sampling, vocabulary = query.sampling, self._ends.ends.vocabulary
        settings = settings_of(sampling, self._recommended.values, vocabulary)
        prompt = await self._prompts.of(query)
        most = self._most(len(prompt.tokens), sampling)
        grammar = self._grammar(query)
        tokens = list(query.generated)
        if len(tokens) > most or any(token >= vocabulary for token in tokens):
            raise InvalidInput(f"{len(tokens)} tokens generated of at most {most}, each below {vocabulary}")
        constraint = None if grammar is None else await self._compiler.compile(*grammar, tokens)
        return PreparedQuery(
            prompt=prompt,
            tokens=tokens,
            most=most,
            ends=frozenset() if sampling.ignore_eos else self._recommended.ends,
            sampler=Sampler(settings, prompt.tokens, tokens, constraint),
            answer=Answer(self.texts, prompt.tokens, sampling.stop, query.sent_bytes),
            alternatives=min(sampling.top_logprobs, MOST_ALTERNATIVES) if sampling.logprobs else None,
            pacer=pacer_of(sampling.speculation or self.config.speculation),
            clock=Stopwatch(asyncio.get_running_loop().time()),
            traced=query.trace,
            complete=constraint is not None and constraint.over,
        )

    def _grammar(self, query: pb.Query) -> tuple[str, str] | None:
        """What the answer must look like, and the field that says so. Raises InvalidInput."""
        sampling = query.sampling
        constraint = sampling.constraint if sampling.HasField("constraint") else None
        choice = query.tool_choice if query.HasField("tool_choice") else None
        grammar = grammar_of(constraint, self.texts.tools(query), choice, self.texts.tool_style)
        if grammar is None:
            return None
        if sampling.ignore_eos:
            words = "ignore_eos: an answer of a certain form ends where the form does"
            raise InvalidInput(words, field="ignore_eos")
        return grammar

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


def pacer_of(speculation: str) -> Pacer | None:
    """What decides on guesses. Raises InvalidInput for a kind of speculation that there is not."""
    check_speculation(speculation)
    return Pacer(NgramDrafter()) if speculation == "ngram" else None
