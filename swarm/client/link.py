"""The client's end of one hop: the control stream with its questions and answers, and the data streams."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from swarm.client.diagnosis import Moved, Report
from swarm.client.encoding import Party, Rates, rates_of
from swarm.client.resume import Holding, HopState
from swarm.config import CONTROL_FRAME_LIMIT, ClientConfig
from swarm.errors import ContractMismatch, MalformedFrame, PeerUnreachable, StreamClosed, SwarmError
from swarm.net.base import Host, Stream
from swarm.types import Hop
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import INT8

Event = pb.LinkDown | pb.Leaving | pb.Failure | SwarmError


class HopLink:
    """One open session at one server. `on_event(link, what)` hears what the server says unasked, or how it was lost."""

    def __init__(self, host: Host, hop: Hop, config: ClientConfig, on_event: Callable[[HopLink, Event], None]) -> None:
        self.hop = hop
        self.session = os.urandom(messages.SESSION_BYTES)
        self.lost = False
        self.ended = False
        """Whether the session was closed from here, or is not known there: there is nothing to take up again."""
        self.can_rollback = True
        self.max_positions = 0
        self.rtt_ms: float | None = None
        self.codecs = hop.server.codecs
        self.rates = Rates()
        self._host = host
        self._config = config
        self._on_event = on_event
        self._stream: Stream | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answers: deque[asyncio.Future[pb.ControlReply]] = deque()
        self._probes: dict[int, float] = {}
        self._traces: dict[int, asyncio.Future[Sequence[pb.Tally]]] = {}
        self._nonce = 0
        self._timings: asyncio.Queue[tuple[float, pb.Progress | SwarmError]] | None = None
        self._epoch = 0
        self._progress: tuple[object, ...] = ()
        self._moved: dict[int, Moved] = {}
        self._changed = 0.0
        self._heard = False

    def __str__(self) -> str:
        return f"{self.hop.span} at {self.hop.peer_id}"

    # ---- control ----------------------------------------------------------------------------------------------

    async def open(self, request: pb.Open, prepare: pb.Prepare | None = None) -> HopState | None:
        """Open the session at the server and, with `prepare`, begin its first epoch in the same round trip.

        Returns what the hop has, None without `prepare`.

        Raises PeerUnreachable, StreamClosed, MalformedFrame, ContractMismatch, or what the server answers.
        """
        request.session = self.session
        self._stream = await self._dial(messages.CONTROL_PROTOCOL)
        self._reader = asyncio.ensure_future(self._read(self._stream))
        asks = [(pb.ControlRequest(open=request), "opened")]
        if prepare is not None:
            asks.append((self._begin(prepare), "have"))
        opened, *have = await self._ask(asks)
        self.can_rollback = opened.opened.can_rollback
        self.max_positions = opened.opened.max_positions
        self.codecs = tuple(opened.opened.codecs)
        short = [whole[: messages.FINGERPRINT_BYTES] for whole in opened.opened.fingerprints]
        if short != list(request.fingerprints):
            raise ContractMismatch(f"{self}: the fingerprints it opened with are not those that it announced")
        if self._config.codec == "auto" and INT8 in self.codecs:
            self.rates = await self._measure()
        return self._state(prepare, have[0]) if prepare is not None else None

    async def attach(self) -> None:
        """Take the session up again over a new control stream. Raises SessionNotFound and what `open` raises."""
        self._stop_reading()
        self._stream = await self._dial(messages.CONTROL_PROTOCOL)
        self._reader = asyncio.ensure_future(self._read(self._stream))
        await self._ask([(pb.ControlRequest(attach=pb.Attach(session=self.session)), "opened")])
        self.lost = False

    async def prepare(self, request: pb.Prepare) -> HopState:
        """Begin an epoch at this hop; returns what it has. Raises as `open` does."""
        (reply,) = await self._ask([(self._begin(request), "have")])
        return self._state(request, reply)

    def _begin(self, request: pb.Prepare) -> pb.ControlRequest:
        self._epoch = request.epoch
        return pb.ControlRequest(prepare=request)

    def _state(self, request: pb.Prepare, reply: pb.ControlReply) -> HopState:
        issued = {s.id: s.length for s in request.sequences}
        if any(h.length > issued.get(h.sequence, 0) for h in reply.have.held):
            raise MalformedFrame(f"{self}: says that it holds positions that were never issued")
        held = {h.sequence: Holding(h.length, min(h.history, h.length)) for h in reply.have.held}
        self._moved, self._probes = {}, {}
        self._heard = False
        self._changed = asyncio.get_running_loop().time()
        return HopState(held, self.can_rollback)

    async def resume(self, request: pb.Resume) -> None:
        """Tell the hop what to forget and what to send again; there is no answer. Raises as `open` does."""
        try:
            async with asyncio.timeout(self._config.open_timeout):
                await self._say(pb.ControlRequest(resume=request))
        except TimeoutError:
            raise PeerUnreachable(f"{self}: takes nothing for {self._config.open_timeout:.0f} s") from None

    async def probe(self) -> None:
        """Ask how far it is; the answer changes `report`."""
        self._nonce += 1
        self._probes[self._nonce] = asyncio.get_running_loop().time()
        await self._say(pb.ControlRequest(probe=pb.Probe(nonce=self._nonce)))

    async def trace(self) -> Sequence[pb.Tally]:
        """Where the time of this session's steps went at the hop. Raises PeerUnreachable, and as `open` does."""
        self._nonce += 1
        traced: asyncio.Future[Sequence[pb.Tally]] = asyncio.get_running_loop().create_future()
        self._traces[self._nonce] = traced
        try:
            async with asyncio.timeout(self._config.silence):
                await self._say(pb.ControlRequest(probe=pb.Probe(nonce=self._nonce, tallies=True)))
                return await traced
        except TimeoutError:
            raise PeerUnreachable(f"{self}: no answer for {self._config.silence:.0f} s") from None
        finally:
            self._traces.clear()

    async def _measure(self) -> Rates:
        """How many bytes a second go there and back; only what is known by the time that a hop counts as silent."""
        self._timings, times = asyncio.Queue(), list[float]()
        padding = messages.MAX_PADDING
        try:
            async with asyncio.timeout(self._config.silence):
                for probe in (pb.Probe(), pb.Probe(padding=bytes(padding)), pb.Probe(reply_bytes=padding)):
                    self._nonce += 1
                    probe.nonce = self._nonce
                    await self._say(pb.ControlRequest(probe=probe))
                for asked in (0, 0, padding):
                    times.append(await self._answered(self._timings, asked))
        except TimeoutError:
            times.append(asyncio.get_running_loop().time())
        finally:
            self._timings = None
        return rates_of(times, padding)

    async def _answered(self, timings: asyncio.Queue[tuple[float, pb.Progress | SwarmError]], asked: int) -> float:
        """When the next probe was answered. Raises what ended the stream instead."""
        time, answer = await timings.get()
        if isinstance(answer, SwarmError):
            raise answer
        if len(answer.padding) != asked:
            raise MalformedFrame(f"{self}: answered with {len(answer.padding)} bytes of padding instead of {asked}")
        return time

    @property
    def party(self) -> Party:
        """What decides how hidden states travel to and from this hop."""
        return Party(self.codecs, self.rates, self.hop.server.prefill_rate / len(self.hop.span))

    def report(self) -> Report:
        """What it last said."""
        return Report(min(self._probes.values(), default=None), self._changed, self._moved, self._heard)

    async def _dial(self, protocol: str) -> Stream:
        record = self.hop.server
        try:
            async with asyncio.timeout(self._config.open_timeout):
                return await self._host.open_stream(record.peer_id, protocol, record.addresses)
        except TimeoutError:
            raise PeerUnreachable(f"{self}: no connection within {self._config.open_timeout:.0f} s") from None

    async def _say(self, request: pb.ControlRequest) -> None:
        if self._stream is None:
            raise StreamClosed(f"{self}: the control stream is closed")
        await self._stream.send(request.SerializeToString())

    async def _ask(self, asks: Sequence[tuple[pb.ControlRequest, str]]) -> list[pb.ControlReply]:
        """Send requests and wait for the reply of its kind to each. Raises what the server answers instead."""
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[pb.ControlReply]] = [loop.create_future() for _ in asks]
        self._answers, asked, replies = deque(answers), loop.time(), list[pb.ControlReply]()
        try:
            async with asyncio.timeout(self._config.open_timeout):
                for request, _ in asks:
                    await self._say(request)
                for answer, (_, kind) in zip(answers, asks, strict=True):
                    replies.append(reply := await answer)
                    if reply.WhichOneof("kind") != kind:
                        raise MalformedFrame(f"{self}: answered with {reply.WhichOneof('kind')} instead of {kind}")
                    if kind == "opened":
                        self.rtt_ms = (loop.time() - asked) * 1000.0
            return replies
        except TimeoutError:
            raise PeerUnreachable(f"{self}: no answer within {self._config.open_timeout:.0f} s") from None
        finally:
            self._answers = deque()
            for answer in answers:
                answer.cancel()

    async def _read(self, stream: Stream) -> None:
        try:
            while True:
                self._take(messages.decode(pb.ControlReply, await stream.receive(CONTROL_FRAME_LIMIT)))
        except SwarmError as error:
            self.lost = True
            if self._answers:
                self._answers[0].set_exception(error)
                self._answers.clear()
            elif self._timings is not None:
                self._timings.put_nowait((asyncio.get_running_loop().time(), error))
            else:
                self._on_event(self, error)

    def _take(self, reply: pb.ControlReply) -> None:
        kind = reply.WhichOneof("kind")
        if kind == "progress" and self._timings is not None:
            self._timings.put_nowait((asyncio.get_running_loop().time(), reply.progress))
        elif kind == "progress":
            self._note(reply.progress)
        elif kind == "link_down":
            self._event(reply.link_down.epoch, reply.link_down)
        elif kind == "leaving":
            self._on_event(self, reply.leaving)
        elif kind == "failure" and not self._answers:
            self._event(reply.failure.epoch, reply.failure)
        elif kind == "failure":
            if reply.failure.epoch in (0, self._epoch):
                self._answers.popleft().set_exception(messages.error_of(reply.failure, str(self)))
        elif self._answers and (kind != "have" or reply.have.epoch == self._epoch):
            self._answers.popleft().set_result(reply)

    def _event(self, epoch: int, what: Event) -> None:
        if epoch in (0, self._epoch):
            self._on_event(self, what)

    def _note(self, progress: pb.Progress) -> None:
        traced = self._traces.pop(progress.nonce, None)
        if traced is not None and not traced.done():
            traced.set_result(list(progress.tallies))
        if progress.epoch != self._epoch:
            return
        now = asyncio.get_running_loop().time()
        sent = self._probes.get(progress.nonce)
        if sent is not None:
            self.rtt_ms = (now - sent) * 1000.0
        self._probes = {nonce: at for nonce, at in self._probes.items() if nonce > progress.nonce}
        moved = {m.sequence: Moved(m.received, m.computed, m.forwarded) for m in progress.moved}
        if (progress.beat, moved) != self._progress or not self._heard:
            self._progress, self._changed = (progress.beat, moved), now
        self._moved, self._heard = moved, True

    # ---- data -------------------------------------------------------------------------------------------------

    async def open_inputs(self, epoch: int) -> Stream:
        """A stream on which steps go to this hop."""
        return await self._open_data(epoch, pb.Hello.INPUTS)

    async def open_results(self, epoch: int) -> Stream:
        """A stream on which what this hop computes comes back."""
        return await self._open_data(epoch, pb.Hello.RESULTS)

    async def _open_data(self, epoch: int, role: Any) -> Stream:
        stream = await self._dial(messages.DATA_PROTOCOL)
        hello = pb.Hello(session=self.session, epoch=epoch, role=role)
        await stream.send(pb.Data(hello=hello).SerializeToString())
        return stream

    # ---- the end ----------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Free the session at the server at once, if it still listens."""
        try:
            async with asyncio.timeout(1.0):
                await self._say(pb.ControlRequest(close=pb.Close()))
        except (SwarmError, TimeoutError):
            pass
        finally:
            self.drop()

    def drop(self) -> None:
        """Let go without a word: the server keeps the session for its time of grace."""
        self.lost = True
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        if self._stream is not None:
            self._stream.close()
        self._reader = self._stream = None
