"""The requests that come on a training stream, of which one may be looked for before its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from swarm.config import TRAINING_FRAME_LIMIT
from swarm.errors import StreamClosed, SwarmError
from swarm.net.base import Stream
from swarm.tasks import ended, first_of
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

T = TypeVar("T")


class Requests:
    """Of one stream. `patience`: seconds that the next may take."""

    def __init__(self, stream: Stream, patience: float) -> None:
        self._stream = stream
        self._patience = patience
        self._coming: asyncio.Future[pb.TrainingRequest] | None = None

    async def next(self) -> pb.TrainingRequest:
        """The next one. Raises TimeoutError where none comes, MalformedFrame, StreamClosed."""
        coming = self._look()
        try:
            async with asyncio.timeout(self._patience):
                return await coming
        finally:
            self._coming = None

    async def until_next(self, work: Coroutine[Any, Any, None]) -> SwarmError | None:
        """Let something go on until it is over, or a request is here. Returns why it did not come to its end."""
        task = asyncio.ensure_future(work)
        both: list[asyncio.Future[Any]] = [task, asyncio.shield(self._look())]
        await first_of(*both)
        if task.cancelled():
            return StreamClosed("the client does not wait for it")
        error = task.exception()
        if error is None or isinstance(error, SwarmError):
            return error
        raise error

    async def meanwhile(self, awaited: asyncio.Future[T], patience: float) -> T:
        """What is awaited for at most `patience` s, as long as who asks stays. Raises StreamClosed, TimeoutError."""
        both: list[asyncio.Future[Any]] = [awaited, self._look()]
        async with asyncio.timeout(patience):
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not awaited.done():
                self._look().result()  # raises where that is the end; what is asked has its turn later
            return await awaited

    async def close(self) -> None:
        """Look for nothing any more."""
        if self._coming is not None:
            await ended(self._coming)

    def _look(self) -> asyncio.Future[pb.TrainingRequest]:
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._receive())
        return self._coming

    async def _receive(self) -> pb.TrainingRequest:
        return messages.decode(pb.TrainingRequest, await self._stream.receive(TRAINING_FRAME_LIMIT))
