"""Replies on their way from who writes an answer to an asker, who may be slow."""

from __future__ import annotations

import asyncio
from collections import deque

from swarm.wire import swarm_pb2 as pb


class Replies:
    """A queue of one reader and one writer, which ends with `finished`.

    `accepted` comes before the first: who is refused before anything was done for him hears of nothing else.
    """

    MOST = 64

    def __init__(self, accepted: pb.Accepted) -> None:
        self._accepted = pb.QueryReply(accepted=accepted)
        self._replies: deque[pb.QueryReply] = deque()
        self._begun = self._finished = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, reply: pb.QueryReply) -> None:
        """Never waits: what happens to a route must be told whether there is room or not."""
        if not self._begun:
            self._begun = True
            self._replies.append(self._accepted)
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

    def __aiter__(self) -> Replies:
        return self

    async def __anext__(self) -> pb.QueryReply:
        """The next one, or raise the error. May be cancelled: nothing is lost."""
        if self._finished:
            raise StopAsyncIteration
        while not self._replies:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        if len(self._replies) <= self.MOST // 2:
            self._room.set()
        reply = self._replies.popleft()
        self._finished = reply.WhichOneof("kind") == "finished"
        return reply
