"""Takes HTTP requests to the answerers, and their answers back."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence

from fastapi import Request as HttpRequest
from openai.types import Model as ModelObject
from starlette.responses import JSONResponse, Response

from swarm.errors import Refuted, SwarmError
from swarm.gateway.answers import Answerer
from swarm.gateway.http.asked import Asked
from swarm.gateway.http.choice import Choice
from swarm.gateway.http.errors import ApiError, api_error
from swarm.gateway.http.guard import HttpSettings
from swarm.gateway.http.schema import Health
from swarm.gateway.http.streams import ClientGone, EventStream, Telling, events_of, merged, unless_gone
from swarm.gateway.openai.embeddings import EmbeddingRequest, queries_of, told_of
from swarm.gateway.picture_urls import PictureUrls
from swarm.models.picture_parts import KIND
from swarm.types import is_called
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

GONE = 499
"""What some proxies call a client that has gone; nobody reads it."""
REFUTED_TRIES = 4
"""Times that an answer is computed that nobody has seen yet, where audits find each of them wrong."""

Replies = AsyncGenerator[tuple[int, pb.QueryReply], None]


class Endpoint:
    """Serves the models of some answerers, each under its name. `urls`: fetches pictures; None: it does not."""

    def __init__(
        self, answerers: Mapping[str, Answerer], settings: HttpSettings, urls: PictureUrls | None = None
    ) -> None:
        self.answerers = answerers
        self.settings = settings
        self._urls = urls
        self._began = int(time.time())

    def models(self) -> list[ModelObject]:
        """All that are answered for."""
        return [self._model(name) for name in self.answerers]

    def model(self, name: str) -> ModelObject:
        """One of them. Raises ApiError."""
        self.answerer(name)
        return self._model(name)

    def _model(self, name: str) -> ModelObject:
        return ModelObject(id=name, created=self._began, object="model", owned_by="swarm")

    def answerer(self, name: str) -> Answerer:
        """Who answers for a model. Raises ApiError."""
        found = next((answerer for known, answerer in self.answerers.items() if is_called(known, name)), None)
        if found is None:
            known = ", ".join(self.answerers)
            raise ApiError(404, f"there is no model {name!r} here, but {known}", code="model_not_found", param="model")
        return found

    def health(self) -> Health:
        """As of now."""
        gaps = {name: answerer.missing for name, answerer in self.answerers.items()}
        words = [f"{name}: {gap}" for name, gap in gaps.items() if gap is not None]
        running = sum(answerer.running for answerer in self.answerers.values())
        return Health(status="waiting" if words else "ok", detail="; ".join(words), running=running)

    async def count(self, model: str, query: pb.Query) -> int:
        """Tokens of a prompt. Raises ApiError."""
        answerer = self.answerer(model)
        try:
            (seen,) = await self._seen(answerer, [query])
            return await answerer.count(seen)
        except SwarmError as error:
            raise api_error(error) from error

    async def _seen(self, answerer: Answerer, queries: Sequence[pb.Query]) -> Sequence[pb.Query]:
        """The queries of one request with the pictures that their messages tell the address of. Raises InvalidInput."""
        messages = queries[0].messages
        if self._urls is None or not answerer.sees or KIND not in messages:
            return queries
        fetched = await self._urls.fetched(messages)
        for query in queries:
            query.messages = fetched
        return queries

    async def embed(self, request: EmbeddingRequest, http: HttpRequest) -> Response:
        """Vectors of texts. Raises ApiError."""
        answerer, queries = self.answerer(request.model), queries_of(request)
        if (gap := await answerer.look()) is not None:
            raise api_error(gap)
        try:
            made = await unless_gone(answerer.embed(queries, request.pooling or "mean"), http.receive)
        except SwarmError as error:
            raise api_error(error) from error
        except ClientGone:
            return Response(status_code=GONE)
        return JSONResponse(told_of(request, made))

    async def serve(self, asked: Asked, http: HttpRequest) -> Response:
        """Answer a request, whole or as a stream. Raises ApiError."""
        answerer = self.answerer(asked.model)
        gap = await answerer.look()
        if gap is not None:
            raise api_error(gap)
        try:
            queries = await unless_gone(self._seen(answerer, asked.queries), http.receive)
        except SwarmError as error:
            raise api_error(error) from error
        except ClientGone:
            return Response(status_code=GONE)
        telling = asked.telling(answerer.model)
        try:
            if not asked.stream:
                return await unless_gone(_whole(asked, answerer, queries, telling), http.receive)
            choices, replies = _begun(asked, answerer, queries)
            first = await unless_gone(anext(replies), http.receive)
        except SwarmError as error:
            raise api_error(error) from error
        except ClientGone:
            return Response(status_code=GONE)
        events = events_of(_behind(first, replies), choices, telling)
        return EventStream(events, self.settings.heartbeat, self.settings.stuck)


def _begun(asked: Asked, answerer: Answerer, queries: Sequence[pb.Query]) -> tuple[list[Choice], Replies]:
    choices = [Choice(index, asked.parser()) for index in range(len(queries))]
    return choices, merged([answerer.answer(query) for query in queries])


async def _whole(asked: Asked, answerer: Answerer, queries: Sequence[pb.Query], telling: Telling) -> Response:
    """What turns out wrong before it is given is computed anew, without whoever was wrong."""
    for tries in range(REFUTED_TRIES):
        choices, replies = _begun(asked, answerer, queries)
        try:
            async with contextlib.aclosing(replies):
                async for place, reply in replies:
                    choices[place].take(reply)
            break
        except Refuted as error:
            if tries == REFUTED_TRIES - 1:
                raise
            log.warning("%s: computing it anew", error.message)
    body = json.dumps(telling.whole(choices), ensure_ascii=False).encode(errors="replace")
    return Response(body, media_type="application/json")


async def _behind(first: tuple[int, pb.QueryReply], replies: Replies) -> Replies:
    async with contextlib.aclosing(replies):
        yield first
        async for reply in replies:
            yield reply
