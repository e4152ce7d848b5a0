"""A control stream as the server serves it."""

from __future__ import annotations

import asyncio
from typing import Any

from swarm.config import CONTROL_FRAME_LIMIT
from swarm.errors import MalformedFrame, SwarmError
from swarm.net.base import Stream
from swarm.server.receipts import Receipts
from swarm.server.session import Session
from swarm.tasks import ended
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

PADDED_REPLIES = 4
"""Replies that may be waiting to be read when padding is added to one."""
MAX_REPLIES = 1024
"""Replies that a client may leave unread before it is hung up on."""


class Control:
    """Of one session: one task reads, one writes, one changes epochs, so that none waits for another."""

    def __init__(self, session: Session, stream: Stream) -> None:
        self.session = session
        self.stream = stream
        self.said_close = False
        self._replies: asyncio.Queue[pb.ControlReply] = asyncio.Queue()
        self._changes: asyncio.Queue[pb.ControlRequest] = asyncio.Queue(maxsize=16)
        session.tell = self._tell

    async def run(self, first: pb.ControlReply) -> None:
        """Serve until the stream ends. Raises StreamClosed, ProtocolError."""
        self._replies.put_nowait(first)
        if self.session.receipts is not None:
            self.session.receipts.remind()
        tasks = [asyncio.ensure_future(work) for work in (self._read(), self._change(), self._write())]
        try:
            # Not until writing fails: what the client said last, which may be that it closes, is still to be read.
            done, _ = await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await ended(*tasks)
            if self.session.tell == self._tell:
                self.session.tell = lambda reply: None

    async def _read(self) -> None:
        while True:
            request = messages.decode(pb.ControlRequest, await self.stream.receive(CONTROL_FRAME_LIMIT))
            match request.WhichOneof("kind"):
                case "probe":
                    if request.probe.commit:
                        self.session.commit()
                    self._reply(progress=self._progress(messages.check_probe(request.probe)))
                case "prepare":
                    if self.session.fence(messages.check_prepare(request.prepare).epoch):
                        await self._changes.put(request)
                case "resume":
                    messages.check_resume(request.resume)
                    await self._changes.put(request)
                case "receipt" | "settle":
                    await self._changes.put(request)
                case "close":
                    self.said_close = True
                    return
                case kind:
                    raise MalformedFrame(f"{kind} may only be the first message of a control stream")

    def _progress(self, probe: pb.Probe) -> pb.Progress:
        progress = self.session.progress(probe.nonce)
        # Who asks for more than it reads does not have it kept here.
        if self._replies.qsize() < PADDED_REPLIES:
            progress.padding = bytes(probe.reply_bytes)
        if probe.tallies:
            progress.tallies.extend(self.session.tallies)
        return progress

    async def _change(self) -> None:
        while True:
            request = await self._changes.get()
            try:
                if request.WhichOneof("kind") == "prepare":
                    have = await self.session.prepare(request.prepare)
                    if have is not None:
                        self._reply(have=have)
                elif request.WhichOneof("kind") == "resume":
                    await self.session.resume(request.resume)
                elif self.session.receipts is not None:
                    await self._sign(self.session.receipts, request)
            except SwarmError as error:
                self._reply(failure=messages.failure(error, self.session.epoch))

    async def _sign(self, receipts: Receipts, request: pb.ControlRequest) -> None:
        if request.WhichOneof("kind") == "receipt":
            await receipts.take(request.receipt)
        else:
            receipts.claim(settles=True)

    async def _write(self) -> None:
        while True:
            reply = await self._replies.get()
            await self.stream.send(reply.SerializeToString())

    def _reply(self, **kind: Any) -> None:
        self._tell(pb.ControlReply(**kind))

    def _tell(self, reply: pb.ControlReply) -> None:
        if self._replies.qsize() >= MAX_REPLIES:
            self.stream.close()
        else:
            self._replies.put_nowait(reply)
