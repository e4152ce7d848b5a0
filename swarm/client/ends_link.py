"""The client's end of a stream on which the ends of a model are asked for, one thing after the other."""

from __future__ import annotations

import asyncio
from typing import Self

from swarm.config import ENDS_FRAME_LIMIT, ClientConfig
from swarm.errors import MalformedFrame, PeerUnreachable
from swarm.net.base import Host, Stream
from swarm.types import PeerId, ServerRecord
from swarm.wire import ends as wire
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb


class EndsLink:
    """An open stream to a server of the ends. `used`: whether it has answered before."""

    def __init__(self, stream: Stream, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.used = False
        self._stream = stream

    @classmethod
    async def open(
        cls, host: Host, record: ServerRecord, vocabulary: int, row_bytes: int, config: ClientConfig
    ) -> Self:
        """To a server whose record announces ends. Raises PeerUnreachable, StreamClosed, ProtocolError, RemoteError."""
        assert record.ends is not None
        dtype, mark = record.contract.dtype, record.ends.fingerprint
        wanted = pb.EndsWanted(model=record.model, dtype=dtype, fingerprint=mark)
        try:
            async with asyncio.timeout(config.open_timeout):
                stream = await host.open_stream(record.peer_id, wire.ENDS_PROTOCOL, record.addresses)
        except TimeoutError:
            text = f"no connection to the ends at {record.peer_id} within {config.open_timeout:.0f} s"
            raise PeerUnreachable(text).attach(peer=record.peer_id) from None
        link = cls(stream, record.peer_id)
        try:
            reply = await link.ask(pb.EndsRequest(open=wanted), "opened", config.open_timeout)
            wire.check_opened(reply.opened, mark, vocabulary, row_bytes, dtype)
        except BaseException:
            link.close()
            raise
        link.used = False
        return link

    async def ask(self, request: pb.EndsRequest, kind: str, patience: float) -> pb.EndsReply:
        """The answer, of this kind. Raises PeerUnreachable where none comes within `patience` s, StreamClosed,
        MalformedFrame, and what the server says instead."""
        try:
            async with asyncio.timeout(patience):
                await self._stream.send(request.SerializeToString())
                frame = await self._stream.receive(ENDS_FRAME_LIMIT)
        except TimeoutError:
            text = f"the ends at {self.peer_id} are silent for {patience:.0f} s"
            raise PeerUnreachable(text).attach(peer=self.peer_id) from None
        reply = messages.decode(pb.EndsReply, frame)
        if reply.WhichOneof("kind") == "failure":
            raise messages.error_of(reply.failure, self.peer_id, where=f"the ends at {self.peer_id}")
        if reply.WhichOneof("kind") != kind:
            raise MalformedFrame(f"the ends at {self.peer_id}: an answer with no {kind}")
        self.used = True
        return reply

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
