"""Where what a session computes goes to, epoch by epoch: to the next hop, or to the client, who reads it here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from swarm.config import FRAME_LIMIT
from swarm.errors import MalformedFrame, NetworkError, SwarmError, Unauthorized
from swarm.net.base import Stream
from swarm.server.outbox import Outbox
from swarm.server.session_context import SessionContext
from swarm.tasks import until_first
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)


class Onward:
    """Of one session, called `name`. `tell`: puts a reply on its control stream; `subject`: of lines of the log."""

    def __init__(
        self, name: str, context: SessionContext, tell: Callable[[pb.ControlReply], None], subject: Mapping[str, str]
    ) -> None:
        self.downstream: pb.Downstream | None = None
        """The next hop; None: the client reads."""
        self._name = name
        self._context = context
        self._tell = tell
        self._subject = subject
        self._relayed = False
        self._moves = False
        """Whether the client is told when the link could take a shorter way."""
        self._epoch = 0
        self._outbox: Outbox | None = None
        self._results: Stream | None = None
        self._over = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    def direct(self, message: pb.Prepare) -> None:
        """Where it goes in the epoch that the client prepares."""
        self.downstream = message.downstream if message.HasField("downstream") else None
        self._relayed = message.relayed
        self._moves = message.moves

    @property
    def wanted_only(self) -> bool:
        """Whether only those outputs are sent that the client wants."""
        return self.downstream is None and not self._relayed

    def begin(self, epoch: int, outbox: Outbox) -> None:
        """From now on what is in the outbox goes out, until `hang_up`."""
        self._epoch, self._outbox = epoch, outbox
        if self.downstream is not None or self._results is not None:
            self._start()

    async def serve(self, stream: Stream) -> None:
        """The client reads here, until the epoch ends."""
        self._results, over = stream, self._over
        if self._outbox is not None and self._sender is None:
            self._start()
        await over.wait()

    def hang_up(self) -> None:
        """Nothing more goes out in this epoch."""
        self._over.set()
        self._over = asyncio.Event()
        if self._sender is not None:
            self._sender.cancel()
        if self._results is not None:
            self._results.close()
        self._epoch = 0
        self._sender = self._results = self._outbox = None

    def _start(self) -> None:
        self._sender = self._context.tasks.spawn(self._send(self._epoch), name=f"sender of {self._name}")

    async def _send(self, epoch: int) -> None:
        """Hand on what is computed; a link that breaks is reported to the client, who decides."""
        try:
            stream = self._results or await self._dial(epoch)
            outbox = self._outbox
            if outbox is None:
                return
            await self._until_broken(stream, outbox, epoch)
        except SwarmError as error:
            if epoch == self._epoch:
                log.info("%s: the link onward is down: %s", self._name, error, extra=self._subject)
                self._over.set()
                self._tell(pb.ControlReply(link_down=pb.LinkDown(epoch=epoch, reason=str(error)[:500])))

    async def _dial(self, epoch: int) -> Stream:
        """Open the link to the next hop, at the addresses of its own signed record and nowhere else."""
        target = self.downstream
        if target is None:
            raise NetworkError("there is nobody to send to")
        record = self._context.verify(target.record)
        if record.model != self._context.contract.model:
            raise Unauthorized(f"{record.peer_id} serves another model")
        stream = await self._context.host.open_stream(record.peer_id, messages.DATA_PROTOCOL, record.addresses)
        hello = pb.Hello(session=target.session, epoch=epoch, role=pb.Hello.INPUTS)
        await stream.send(pb.Data(hello=hello).SerializeToString())
        return stream

    async def _until_broken(self, stream: Stream, outbox: Outbox, epoch: int) -> None:
        """Send, and listen for the other side's last word at the same time."""
        sending = outbox.drain(stream, self._context.config.stuck)
        try:
            if self._moves and self.downstream is not None:
                await until_first(_last_word(stream), sending, self._look_for_shorter(stream, epoch))
            else:
                await until_first(_last_word(stream), sending)
        finally:
            stream.close()

    async def _look_for_shorter(self, stream: Stream, epoch: int) -> None:
        """Tell the client, who may begin an epoch for it, when the link could take a shorter way. Never ends."""
        await stream.outdated.wait()
        log.info("%s: a shorter way to %s has come up", self._name, stream.peer_id, extra=self._subject)
        self._tell(pb.ControlReply(shorter_way=pb.ShorterWay(epoch=epoch)))
        await asyncio.Event().wait()


async def _last_word(stream: Stream) -> None:
    """Wait for the receiver's Failure or the end of the stream; raise what it was."""
    data = messages.decode(pb.Data, await stream.receive(FRAME_LIMIT))
    if data.WhichOneof("kind") == "failure":
        raise messages.error_of(data.failure, stream.peer_id)
    raise MalformedFrame(f"{stream.peer_id} sent something back on a link that goes one way")
