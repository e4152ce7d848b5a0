"""Streams of which a peer, and all together, may have so many at a time; what goes wrong on one is told there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable

from swarm.errors import ServerBusy, StreamClosed, SwarmError
from swarm.net.base import Stream
from swarm.net.quota import Places
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

Answer = Callable[[Stream], Awaitable[None]]
Tell = Callable[[Stream, pb.Failure], Awaitable[None]]


class FewAtATime:
    """`answer` talks on a stream until its end; `tell` sends a failure, the last word; `busy`: why there is no room."""

    def __init__(self, places: Places, busy: str, answer: Answer, tell: Tell) -> None:
        self._places = places
        self._busy = busy
        self._answer = answer
        self._tell = tell

    async def serve(self, stream: Stream) -> None:
        """Answer a peer until it leaves."""
        peer = stream.peer_id
        if not self._places.allows(peer):
            await self._refuse(stream, ServerBusy(self._busy))
            return
        self._places.take(peer)
        try:
            await self._answer(stream)
        except (StreamClosed, TimeoutError):
            return
        except SwarmError as error:
            log.debug("%s is refused: %s", peer, error)
            await self._refuse(stream, error)
        finally:
            self._places.give(peer)

    async def _refuse(self, stream: Stream, error: SwarmError) -> None:
        with contextlib.suppress(StreamClosed, TimeoutError):
            await self._tell(stream, messages.failure(error))
