"""Many answers as one stream, for as long as somebody reads it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from swarm.errors import SwarmError
from swarm.gateway.heartbeat import Heartbeat
from swarm.gateway.http.choice import Choice
from swarm.gateway.http.errors import ApiError, api_error
from swarm.tasks import ended, first_of
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")

ALIVE = b": still here\n\n"


class ClientGone(Exception):
    """Whoever asked has gone."""


async def departure(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """The result of `work`, which is cancelled if the client goes. Raises ClientGone, and what the work raises."""
    task: asyncio.Future[Any] = asyncio.ensure_future(work)
    if task not in await first_of(task, departure(receive)):
        raise ClientGone
    result: T = task.result()
    return result


async def merged(
    answers: Sequence[AsyncGenerator[pb.QueryReply, None]],
) -> AsyncGenerator[tuple[int, pb.QueryReply], None]:
    """The replies of all answers as they come, each with its answer's place. What one raises ends all."""
    waiting = {asyncio.ensure_future(anext(answer)): place for place, answer in enumerate(answers)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                place = waiting.pop(task)
                try:
                    reply = task.result()
                except StopAsyncIteration:
                    continue
                yield place, reply
                waiting[asyncio.ensure_future(anext(answers[place]))] = place
    finally:
        await ended(*waiting)
        for answer in answers:
            await answer.aclose()


class EventStream(Response):
    """Server-sent events, until they end or nobody reads them. A reader who takes nothing is given up.

    Where nothing came for `heartbeat` seconds, a comment says that it goes on: proxies end silent connections.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], heartbeat: float, stuck: float) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._heartbeat = heartbeat
        self._stuck = stuck

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientGone, TimeoutError, OSError):
            await unless_gone(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with Heartbeat(self._events, self._heartbeat) as events:
            async for event in events:
                async with asyncio.timeout(self._stuck):
                    await send({"type": "http.response.body", "body": event or ALIVE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Telling(Protocol):
    """How an API tells of answers: as one object, or as events, each a piece of a stream of server-sent events."""

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """All answers, once they are there."""

    def events(self, choice: Choice, reply: pb.QueryReply) -> list[bytes]:
        """What a stream says of one reply, which `choice` has yet to take."""

    def end(self, choices: Sequence[Choice]) -> list[bytes]:
        """What it says when all has been told."""

    def failed(self, error: ApiError) -> list[bytes]:
        """What it says when no more will come, for this reason."""


async def events_of(
    replies: AsyncGenerator[tuple[int, pb.QueryReply], None], choices: Sequence[Choice], telling: Telling
) -> AsyncGenerator[bytes, None]:
    """All replies as events. An error ends the stream."""
    try:
        async with contextlib.aclosing(replies):
            async for place, reply in replies:
                for event in telling.events(choices[place], reply):
                    yield event
        last = telling.end(choices)
    except SwarmError as error:
        last = telling.failed(api_error(error))
    except Exception:
        log.exception("an answer ended by an error of ours")
        last = telling.failed(ApiError(500, "the gateway failed", "server_error"))
    for event in last:
        yield event


def waiting(reply: pb.QueryReply) -> bytes:
    """A comment on what an answer waits for."""
    return f": {' '.join(reply.waiting.words.split())}\n\n".encode()


def event_of(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event, of a name where the API names them."""
    named = b"" if name is None else f"event: {name}\n".encode()
    return named + b"data: " + json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n\n"
