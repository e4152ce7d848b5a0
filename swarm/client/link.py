"""The client's end of one hop: the control stream with its questions and answers, and the data streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from swarm.client.control import Control
from swarm.client.diagnosis import Moved, Report
from swarm.client.encoding import LinkEnd, Rates
from swarm.client.paying import Payer, Paying
from swarm.client.questions import Kind
from swarm.client.resume import Holding, HopState
from swarm.client.trust import Limits
from swarm.config import ClientConfig
from swarm.contract import FINGERPRINT_BYTES
from swarm.errors import ContractMismatch, MalformedFrame, SwarmError, Unsigned
from swarm.net.base import Host, Stream
from swarm.net.commitments import opened
from swarm.speculation.pacer import MOST, WINDOW
from swarm.tasks import Tasks
from swarm.types import Hop
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import INT8

MOST_COMMITMENTS = 256
"""Of a session, that are kept; the oldest are forgotten first."""

Event = pb.LinkDown | pb.Leaving | pb.Failure | pb.ShorterWay | pb.Kept | SwarmError


class HopLink:
    """One open session at one server. `on_event(link, what)` hears what the server says unasked, or how it was lost.

    `tasks`: who owns the reading of the control stream, and awaits its end; `payer`: who signs for what is done.
    """

    def __init__(
        self,
        host: Host,
        hop: Hop,
        config: ClientConfig,
        on_event: Callable[[HopLink, Event], None],
        tasks: Tasks,
        payer: Payer | None = None,
    ) -> None:
        self.hop = hop
        self.session = os.urandom(messages.SESSION_BYTES)
        self.paying = None if payer is None else Paying(payer, host.peer_id, hop, self.session)
        self.lost = False
        self.ended = False
        """Whether the session was closed from here, or is not known there: there is nothing to take up again."""
        self.can_rollback = True
        """Whether positions can be forgotten: as many as windows of guesses have, at least, once that is wanted."""
        self.any_length = True
        """Whether sequences can go back to any length, wanted or not."""
        self.limits = Limits()
        self.prefix_chunk = 0
        self.commits = False
        """Whether what it sends is signed."""
        self.commitments: deque[pb.Commitment] = deque(maxlen=MOST_COMMITMENTS)
        self.rtt_ms: float | None = None
        self.codecs = hop.server.codecs
        self.rates = Rates()
        self._config = config
        self._on_event = on_event
        self._tasks = tasks
        self._control = Control(host, hop, self.session, config, tasks, self._take, self._on_lost)
        self._settled = 0
        """Probes up to this nonce count as answered."""
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
        if self.paying is not None:
            self.paying.ask(request)
        await self._control.connect()
        asks: list[tuple[pb.ControlRequest, Kind]] = [(pb.ControlRequest(open=request), "opened")]
        if prepare is not None:
            asks.append((self._begin(prepare), "have"))
        (answer, seconds), *have = await self._control.ask(asks)
        self.rtt_ms = seconds * 1000.0
        greeting = answer.opened
        self.any_length = greeting.can_rollback
        self.can_rollback = self.any_length or greeting.rollback >= MOST + 2 * WINDOW
        self.limits = _limits_of(greeting)
        self.commits = greeting.commits
        self.prefix_chunk = greeting.prefix_chunk
        self.codecs = tuple(greeting.codecs)
        short = b"".join(whole[:FINGERPRINT_BYTES] for whole in greeting.fingerprints)
        if short != request.contract.fingerprints:
            raise ContractMismatch(f"{self}: the fingerprints it opened with are not those that it announced")
        if self.paying is not None:
            self.paying.opened(greeting)
        if self._config.codec == "auto" and INT8 in self.codecs:
            self.rates = await self._control.measure()
        return self._state(prepare, have[0][0]) if prepare is not None else None

    async def attach(self) -> None:
        """Take the session up again over a new control stream. Raises SessionNotFound and what `open` raises."""
        await self._control.connect()
        self.lost = True
        ((_, seconds),) = await self._control.ask(
            [(pb.ControlRequest(attach=pb.Attach(session=self.session)), "opened")]
        )
        self.rtt_ms = seconds * 1000.0
        self.lost = False
        for receipt in () if self.paying is None else self.paying.unanswered:
            await self._control.say(pb.ControlRequest(receipt=receipt))

    @property
    def outdated(self) -> bool:
        """Whether the control stream could take a shorter way."""
        return self._control.outdated

    async def prepare(self, request: pb.Prepare) -> HopState:
        """Begin an epoch at this hop; returns what it has. Raises as `open` does."""
        ((reply, _),) = await self._control.ask([(self._begin(request), "have")])
        return self._state(request, reply)

    def _begin(self, request: pb.Prepare) -> pb.ControlRequest:
        self._epoch = request.epoch
        return pb.ControlRequest(prepare=request)

    def _state(self, request: pb.Prepare, reply: pb.ControlReply) -> HopState:
        issued = {s.id: s.length for s in request.sequences}
        if any(h.length > issued.get(h.sequence, 0) for h in reply.have.held):
            raise MalformedFrame(f"{self}: says that it holds positions that were never issued")
        held = {h.sequence: self._holding(h) for h in reply.have.held}
        self._moved, self._heard, self._settled = {}, False, self._control.nonce
        self._changed = asyncio.get_running_loop().time()
        return HopState(held)

    def _holding(self, held: pb.Held) -> Holding:
        reach = 0 if self.any_length else max(held.length - held.rollback, 0)
        return Holding(held.length, min(held.history, held.length), reach)

    async def resume(self, request: pb.Resume) -> None:
        """Tell the hop what to forget and what to send again; there is no answer. Raises as `open` does."""
        try:
            async with asyncio.timeout(self._config.open_timeout):
                await self._control.say(pb.ControlRequest(resume=request))
        except TimeoutError:
            raise self._control.unreachable(f"takes nothing for {self._config.open_timeout:.0f} s") from None

    async def probe(self) -> None:
        """Ask how far it is, and wait for the answer, which changes `report`. Raises what ended the stream instead."""
        _, seconds = await self._control.probe(pb.Probe())
        self.rtt_ms = seconds * 1000.0

    async def trace(self) -> Sequence[pb.Tally]:
        """Where the time of this session's steps went at the hop. Raises PeerUnreachable, and as `open` does."""
        return list((await self._control.probe_soon(pb.Probe(tallies=True))).progress.tallies)

    async def commit(self) -> None:
        """Let it sign what it has sent so far. Raises PeerUnreachable, and as `open` does."""
        await self._control.probe_soon(pb.Probe(commit=True))

    @property
    def link_end(self) -> LinkEnd:
        """What decides how hidden states travel to and from this hop."""
        return LinkEnd(self.codecs, self.rates, self.hop.server.prefill_rate / len(self.hop.span))

    def report(self) -> Report:
        """What it last said."""
        return Report(self._control.questions.unanswered_since(self._settled), self._changed, self._moved, self._heard)

    def _on_lost(self, error: SwarmError, told: bool) -> None:
        self.lost = True
        if not told:
            self._on_event(self, error)

    def _take(self, reply: pb.ControlReply) -> None:
        match reply.WhichOneof("kind"):
            case "link_down":
                self._event(reply.link_down.epoch, reply.link_down)
            case "leaving":
                self._on_event(self, reply.leaving)
            case "shorter_way":
                self._event(reply.shorter_way.epoch, reply.shorter_way)
            case "kept":
                self._on_event(self, messages.check_kept(reply.kept))
            case "failure":
                self._fail(reply.failure)
            case "claim" | "receipt":
                self._tasks.spawn(self._sign(reply), name=f"receipts of {self}")
            case "commitment":
                self._keep(reply.commitment)
            case "progress":
                self._note(reply.progress)
                self._control.questions.settle(reply)
            case _:
                self._control.questions.settle(reply)

    async def _sign(self, reply: pb.ControlReply) -> None:
        """Sign for what the server says that it has done, or keep that it has signed."""
        if self.paying is None:
            return
        if reply.WhichOneof("kind") == "receipt":
            await self.paying.answered(reply.receipt)
            return
        try:
            entry = await self.paying.sign(reply.claim)
            if entry is not None:
                await self._control.say(pb.ControlRequest(receipt=entry))
        except Unsigned as error:
            self._on_event(self, messages.failure(error))
        except SwarmError:
            pass  # The control stream is gone, which its reader tells; what was signed is sent when it is asked for.

    def _keep(self, commitment: pb.Commitment) -> None:
        who, promise = opened(commitment)
        if who != self.hop.peer_id or promise.session != self.session:
            raise MalformedFrame(f"{self}: a commitment of {who} in another session")
        self.commitments.append(commitment)

    def _fail(self, failure: pb.Failure) -> None:
        """It is the answer to what was asked, if anything was, or says what went wrong unasked."""
        if failure.epoch in (0, self._epoch) and not self._control.questions.refuse(self.error_of(failure)):
            self._on_event(self, failure)

    def error_of(self, failure: pb.Failure) -> SwarmError:
        """The error that a failure of this hop stands for."""
        hop = self.hop
        return messages.error_of(failure, hop.peer_id, where=str(self), span=hop.span, session=self.session)

    def _event(self, epoch: int, what: Event) -> None:
        if epoch in (0, self._epoch):
            self._on_event(self, what)

    def _note(self, progress: pb.Progress) -> None:
        if progress.epoch != self._epoch:
            return
        now = asyncio.get_running_loop().time()
        self._settled = max(self._settled, progress.nonce)
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
        stream = await self._control.dial(messages.DATA_PROTOCOL)
        hello = pb.Hello(session=self.session, epoch=epoch, role=role)
        await stream.send(pb.Data(hello=hello).SerializeToString())
        return stream

    # ---- the end ----------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Free the session at the server at once, if it still listens."""
        try:
            async with asyncio.timeout(1.0):
                await self._settle()
                await self._control.say(pb.ControlRequest(close=pb.Close()))
        except (SwarmError, TimeoutError):
            pass
        finally:
            self.drop()

    async def _settle(self) -> None:
        """Sign for the rest, before the session ends; that takes half of the time at most."""
        if self.paying is None or not self.paying.owes or self.lost:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._control.say(pb.ControlRequest(settle=pb.Settle()))
                await self.paying.settled()

    def drop(self) -> None:
        """Let go without a word: the server keeps the session for its time of grace."""
        self.lost = True
        self._control.drop()


def _limits_of(opened: pb.Opened) -> Limits:
    return Limits(opened.max_sequences, opened.max_total_positions, opened.max_positions)
