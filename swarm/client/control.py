"""The control stream of one session at one hop: dialled, read, and what is asked on it with the answers that come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from swarm.client.encoding import Rates, rates_of
from swarm.client.questions import Kind, Question, Questions
from swarm.config import CONTROL_FRAME_LIMIT, ClientConfig
from swarm.errors import MalformedFrame, PeerUnreachable, StreamClosed, SwarmError
from swarm.net.base import Host, Stream
from swarm.tasks import Tasks
from swarm.types import Hop
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb


class Control:
    """Streams of one session at `hop`. `tasks`: who owns the reading, and awaits its end.

    `take`: hears every reply; those to questions it gives to `questions`. `lost`: hears how the stream ended; the
    second argument says whether somebody who asked is told anyway.
    """

    def __init__(
        self,
        host: Host,
        hop: Hop,
        session: bytes,
        config: ClientConfig,
        tasks: Tasks,
        take: Callable[[pb.ControlReply], None],
        lost: Callable[[SwarmError, bool], None],
    ) -> None:
        self.questions = Questions(f"{hop.span} at {hop.peer_id}")
        self.nonce = 0
        """Of the last probe."""
        self._host = host
        self._hop = hop
        self._session = session
        self._config = config
        self._tasks = tasks
        self._take = take
        self._lost = lost
        self._stream: Stream | None = None
        self._reader: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return self.questions.who

    @property
    def outdated(self) -> bool:
        """Whether the stream could take a shorter way."""
        return self._stream is not None and self._stream.outdated.is_set()

    async def dial(self, protocol: str) -> Stream:
        """A stream to the hop. Raises PeerUnreachable and what hosts raise, with what it was for."""
        record = self._hop.server
        try:
            async with asyncio.timeout(self._config.open_timeout):
                stream = await self._host.open_stream(record.peer_id, protocol, record.addresses)
        except TimeoutError:
            raise self.unreachable(f"no connection within {self._config.open_timeout:.0f} s") from None
        except SwarmError as error:
            error.attach(span=self._hop.span, session=self._session)
            raise
        stream.concerns(span=self._hop.span, session=self._session)
        return stream

    async def connect(self) -> None:
        """A new control stream in place of the one there was. Raises as `dial` does."""
        stream = await self.dial(messages.CONTROL_PROTOCOL)
        self.drop()
        self._stream = stream
        self._reader = self._tasks.spawn(self._read(stream), name=f"control stream of {self}")

    async def say(self, request: pb.ControlRequest) -> None:
        """Send what has no answer. Raises StreamClosed and what streams raise."""
        if self._stream is None:
            raise StreamClosed(f"{self}: the control stream is closed")
        await self._stream.send(request.SerializeToString())

    async def ask(self, asks: Sequence[tuple[pb.ControlRequest, Kind]]) -> list[tuple[pb.ControlReply, float]]:
        """Send requests and wait for the reply of its kind to each, with the seconds it took.

        Raises PeerUnreachable, and what the server answers instead.
        """
        questions = [self.questions.ask(kind, request.prepare.epoch) for request, kind in asks]
        try:
            async with asyncio.timeout(self._config.open_timeout):
                for request, _ in asks:
                    await self.say(request)
                return [(await question.reply, question.answered - question.asked) for question in questions]
        except TimeoutError:
            raise self.unreachable(f"no answer within {self._config.open_timeout:.0f} s") from None
        finally:
            self.questions.forget(*questions)

    async def probe(self, probe: pb.Probe) -> tuple[pb.ControlReply, float]:
        """The answer to one probe, however long it takes, with the seconds it took. Raises what ended the stream."""
        (question,) = await self._inquire(probe)
        try:
            return await question.reply, question.answered - question.asked
        finally:
            self.questions.forget(question)

    async def probe_soon(self, probe: pb.Probe) -> pb.ControlReply:
        """As `probe`, for as long as a hop may be silent. Raises PeerUnreachable, too."""
        try:
            async with asyncio.timeout(self._config.silence):
                return (await self.probe(probe))[0]
        except TimeoutError:
            raise self.unreachable(f"no answer for {self._config.silence:.0f} s") from None

    async def measure(self) -> Rates:
        """How many bytes a second go there and back; only what is known by the time that a hop counts as silent."""
        padding, times = messages.MAX_PADDING, list[float]()
        probes = pb.Probe(), pb.Probe(padding=bytes(padding)), pb.Probe(reply_bytes=padding)
        questions: list[Question] = []
        try:
            async with asyncio.timeout(self._config.silence):
                questions = await self._inquire(*probes)
                for question, probe in zip(questions, probes, strict=True):
                    self._check_padding(await question.reply, probe.reply_bytes)
                    times.append(question.answered)
        except TimeoutError:
            times.append(asyncio.get_running_loop().time())
        finally:
            self.questions.forget(*questions)
        return rates_of(times, padding)

    def _check_padding(self, reply: pb.ControlReply, asked: int) -> None:
        got = len(reply.progress.padding)
        if got != asked:
            raise MalformedFrame(f"{self}: answered with {got} bytes of padding instead of {asked}")

    async def _inquire(self, *probes: pb.Probe) -> list[Question]:
        """Send probes without waiting between them."""
        questions: list[Question] = []
        try:
            for probe in probes:
                self.nonce += 1
                probe.nonce = self.nonce
                questions.append(self.questions.ask("progress", probe.nonce))
                await self.say(pb.ControlRequest(probe=probe))
        except BaseException:
            self.questions.forget(*questions)
            raise
        return questions

    async def _read(self, stream: Stream) -> None:
        try:
            while True:
                self._take(messages.decode(pb.ControlReply, await stream.receive(CONTROL_FRAME_LIMIT)))
        except SwarmError as error:
            self._lost(error, self.questions.fail(error))

    def unreachable(self, what: str) -> PeerUnreachable:
        """The hop does not do what it was asked, as an error."""
        error = PeerUnreachable(f"{self}: {what}")
        error.attach(peer=self._hop.peer_id, span=self._hop.span, session=self._session)
        return error

    def drop(self) -> None:
        """Let go of the stream; whoever asks is told."""
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        if self._stream is not None:
            self._stream.close()
        self._reader = self._stream = None
        self.questions.fail(StreamClosed(f"{self}: the control stream is closed"))
