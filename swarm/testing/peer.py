"""Somebody who speaks the protocol by hand, well or badly."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from swarm.errors import StreamClosed, SwarmError
from swarm.testing.network import MemoryStream
from swarm.testing.world import World
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb


class Peer:
    """Somebody who speaks the protocol by hand, well or badly."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.host = world.network.host(name)

    async def control(self, server: str, first: pb.ControlRequest | bytes | None = None) -> Talk:
        """A control stream; `first` is said at once."""
        talk = Talk(await self.host.open_stream(server, messages.CONTROL_PROTOCOL), pb.ControlReply)
        if first is not None:
            await talk.say(first)
        return talk

    async def data(self, server: str, session: bytes, epoch: int, role: Any = pb.Hello.INPUTS) -> Talk:
        """A data stream with its hello."""
        talk = Talk(await self.host.open_stream(server, messages.DATA_PROTOCOL), pb.Data)
        await talk.say(pb.Data(hello=pb.Hello(session=session, epoch=epoch, role=role)))
        return talk

    def opening(self, server: str, id: bytes, **changes: Any) -> pb.ControlRequest:
        """What opens a session on all that a server hosts."""
        opening = pb.Open(session=changes.pop("session", id), positions=changes.pop("positions", 0))
        opening.contract.CopyFrom(messages.contract_message(self.world.servers[server].record.contract))
        opening.contract.adapters.extend(changes.pop("adapters", ()))
        for name, value in changes.items():
            setattr(opening.contract, name, value)
        return pb.ControlRequest(open=opening)


class Talk:
    """One stream, and all that was heard on it so far."""

    def __init__(self, stream: MemoryStream, kind: Any) -> None:
        self.stream = stream
        self.heard: list[Any] = []
        self.over = False
        self._kind = kind
        self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        try:
            while True:
                message = messages.decode(self._kind, await self.stream.receive(1 << 30))
                self.heard.append(message)
        except SwarmError:
            self.over = True

    async def say(self, what: Any) -> None:
        """Send a message, or any bytes; whether anybody still listens does not matter."""
        with contextlib.suppress(StreamClosed):
            await self.stream.send(what if isinstance(what, bytes) else what.SerializeToString())

    def take(self) -> list[Any]:
        """What was heard since the last time."""
        heard, self.heard = self.heard, []
        return heard

    @property
    def failures(self) -> list[int]:
        """The codes of the failures heard."""
        return [message.failure.code for message in self.heard if message.WhichOneof("kind") == "failure"]

    def close(self) -> None:
        self._listening.cancel()
        self.stream.close()
