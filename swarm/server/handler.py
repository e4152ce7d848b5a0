"""The streams of a server: who may open a session on what it hosts, what is read from whom, and when a session ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from swarm.accounting.account import Account
from swarm.accounting.entries import check_accounting
from swarm.accounting.stream import Friends, serve_receipts
from swarm.config import CONTROL_FRAME_LIMIT, ServerConfig
from swarm.contract import Contract
from swarm.errors import (
    BookFailed,
    ContextTooLong,
    ContractMismatch,
    Gap,
    Implausible,
    LimitExceeded,
    MalformedFrame,
    ServerBusy,
    SessionNotFound,
    StreamClosed,
    SwarmError,
    Unauthorized,
    Unsigned,
)
from swarm.net.base import Host, Stream
from swarm.net.flight import Flight
from swarm.net.guard import Guard
from swarm.net.identity import Identity
from swarm.server.control import Control
from swarm.server.ends_service import EndsService
from swarm.server.given import Given
from swarm.server.hosted import Hosted
from swarm.server.offering import Offering
from swarm.server.session import Session
from swarm.server.training import Training
from swarm.tasks import Tasks, ended
from swarm.types import PeerId
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.ends import ENDS_PROTOCOL
from swarm.wire.training import TRAINING_PROTOCOL

log = logging.getLogger(__name__)

HELLO_LIMIT = 4096
MOST_REASONS = 4
"""Spans of which a client is told why they are not what it asks for."""

TOLD_TO_CLIENT = (ServerBusy, Gap, ContextTooLong, LimitExceeded, Implausible, Unsigned)
"""Trouble with a step that the client must hear of, whoever sent the step."""


@dataclass(frozen=True, slots=True)
class HandlerStatistics:
    """Sessions that are open on all spans, and control streams."""

    sessions: int
    controls: int


class Handler:
    """Serves sessions over a host, each on that of the `hosted` spans whose contract it asks for.

    `account`: in whose name that is done, None: in nobody's; `identity`: signs what clients are sent, where they want
    that.
    """

    def __init__(
        self,
        *,
        host: Host,
        config: ServerConfig,
        flight: Flight | None = None,
        account: Account | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.host = host
        self.identity = identity
        self.account = account
        self._friends = None if account is None else Friends(host, account)
        self.flight = flight or Guard().flight
        """The bytes of all peers that are on their way through here."""
        self.config = config
        self.hosted: list[Hosted] = []
        self.offering = Offering(lambda: self.hosted, config)
        self.training = Training(host, self._trained, config)
        self.ends = EndsService(lambda: () if self.draining else self.hosted, config)
        self.draining = False
        self.refused: Counter[str] = Counter()
        self._one_ended = asyncio.Event()
        self._housekeeping: dict[Hosted, asyncio.Task[None]] = {}
        self._controls: dict[bytes, Control] = {}
        self._tasks = Tasks(log)

    async def start(self) -> None:
        """Register the protocols."""
        await self.host.serve(messages.CONTROL_PROTOCOL, self._serve_control)
        await self.host.serve(messages.DATA_PROTOCOL, self._serve_data)
        await self.host.serve(messages.BLOCKS_PROTOCOL, self.offering.serve)
        await self.host.serve(ENDS_PROTOCOL, self.ends.serve)
        if self.account is not None:
            await serve_receipts(self.host, self.account)
        if self.config.training_bytes:
            await self.host.serve(TRAINING_PROTOCOL, self.training.serve)
            self._tasks.spawn(self.training.keep_house(), name="housekeeping of training")

    def add(self, hosted: Hosted) -> None:
        """From now on sessions are taken on this span, too."""
        self.hosted.append(hosted)
        self._housekeeping[hosted] = self._tasks.spawn(hosted.keep_house(), name=f"housekeeping of {hosted}")

    async def release(self, hosted: Hosted, timeout: float) -> None:
        """Take no new sessions on one span, ask the clients to move on, and let go of it when they have, or `timeout`
        s have passed."""
        hosted.draining = True
        await self._empty(hosted.sessions, timeout)
        for session in list(hosted.sessions.values()):
            self._end(session)
        self.hosted.remove(hosted)
        await ended(self._housekeeping.pop(hosted))
        await hosted.close()
        await hosted.engine.close()

    @property
    def sessions(self) -> Iterator[Session]:
        """All that are open."""
        for hosted in self.hosted:
            yield from hosted.sessions.values()

    def statistics(self) -> HandlerStatistics:
        """As of now."""
        sessions = sum(len(hosted.sessions) for hosted in self.hosted)
        return HandlerStatistics(sessions=sessions, controls=len(self._controls))

    def head(self) -> bytes:
        """The end of the account's chain, for records; empty where there is none."""
        if self.account is None:
            return b""
        try:
            return self.account.head(self.host.peer_id).SerializeToString()
        except BookFailed as error:
            log.warning("the account is not announced: %s", error)
            return b""

    async def drain(self, timeout: float) -> None:
        """Take no new sessions, ask the clients to move on, and return when all are gone or `timeout` s passed."""
        self.draining = True
        await asyncio.gather(*(self._empty(hosted.sessions, timeout) for hosted in self.hosted))

    async def _empty(self, sessions: Mapping[bytes, Session], timeout: float) -> None:
        """Tell sessions that they have so many seconds to move on, and wait until they have, or these are over."""
        for session in list(sessions.values()):
            if session.receipts is not None and session.receipts.tab.is_open:
                session.receipts.claim()
            session.tell(pb.ControlReply(leaving=pb.Leaving(deadline=timeout)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while sessions:
                    self._one_ended.clear()
                    await self._one_ended.wait()

    async def close(self) -> None:
        """End every session and stop."""
        for session in list(self.sessions):
            self._end(session)
        await self._tasks.close()
        for hosted in self.hosted:
            await hosted.close()

    # ---- control ----------------------------------------------------------------------------------------------

    async def _serve_control(self, stream: Stream) -> None:
        try:
            frame = await asyncio.wait_for(stream.receive(CONTROL_FRAME_LIMIT), self.config.open_timeout)
            request = messages.decode(pb.ControlRequest, frame)
            if request.WhichOneof("kind") == "recall":
                await self._last_word(stream, pb.ControlReply(kept=self._recall(request.recall)))
                return
            session = self._enter(request, stream)
        except (StreamClosed, TimeoutError):
            return
        except SwarmError as error:
            self.refused[type(error).__name__] += 1
            await self._last_word(stream, pb.ControlReply(failure=messages.failure(error)))
            return
        stream.concerns(span=session.span, session=session.id)
        control = Control(session, stream)
        previous, self._controls[session.id] = self._controls.get(session.id), control
        if previous is not None:
            previous.stream.close()
        try:
            greeting = self._owner(session.id).greeting(session)
            await control.run(pb.ControlReply(opened=greeting))
        except SwarmError as error:
            log.debug("%s: control stream over: %s", session, error, extra=session.subject)
            if not isinstance(error, StreamClosed):
                await self._last_word(stream, pb.ControlReply(failure=messages.failure(error)))
        finally:
            if self._controls.get(session.id) is control:
                self._detach(session, control)

    async def _last_word(self, stream: Stream, message: pb.ControlReply | pb.Data) -> None:
        """Say why a stream ends, to whoever still listens."""
        with contextlib.suppress(StreamClosed, TimeoutError):
            await asyncio.wait_for(stream.send(message.SerializeToString()), self.config.open_timeout)

    def _enter(self, request: pb.ControlRequest, stream: Stream) -> Session:
        """The first message of a control stream: a new session, or one that is taken up again."""
        match request.WhichOneof("kind"):
            case "open":
                return self._open(messages.check_open(request.open), stream)
            case "attach":
                return self._owned(request.attach.session, stream)
            case kind:
                raise MalformedFrame(f"a control stream begins with open or attach, not {kind}")

    def _recall(self, message: pb.Recall) -> pb.Kept:
        """Whether a beginning is kept. Nobody knows its digest who was not told of it."""
        digest = messages.check_recall(message).digest
        hosted = self._fitting(messages.contract_of(message.contract))
        gone = self.draining or hosted.draining
        return pb.Kept(positions=0 if gone else hosted.prefixes.holds(digest), digest=digest)

    def _open(self, message: pb.Open, stream: Stream) -> Session:
        if any(message.session in hosted.sessions for hosted in self.hosted):
            raise Unauthorized("this session id is taken")
        asked = messages.contract_of(message.contract)
        hosted = self._fitting(asked)
        if self.draining or hosted.draining:
            raise ServerBusy("this server is leaving", retry_after=60.0)
        if (sessions := self.statistics().sessions) >= self.config.max_sessions:
            raise ServerBusy(f"{sessions} sessions are open")
        if (mine := sum(session.client == stream.peer_id for session in self.sessions)) >= (
            self.config.max_sessions_per_peer
        ):
            raise ServerBusy(f"you have {mine} sessions here, which is all that one peer may have", retry_after=5.0)
        payer = self._payer(message, stream.peer_id)
        given = Given(message.adapter, lambda: self.training.adapter(stream.peer_id, message.adapter))
        given.get()
        # Of adapters and places a promise says nothing.
        signs = message.commit and not message.adapter and not asked.places
        identity = self.identity if signs else None
        session = hosted.open(message.session, stream.peer_id, asked, message.positions, given, identity)
        if self.account is not None and payer is not None:
            hosted.bill(session, self.account, self._friends, payer)
        log.info("%s: opened by %s", session, stream.peer_id, extra={**session.subject, "peer": stream.peer_id})
        return session

    def _payer(self, message: pb.Open, client: PeerId) -> bytes | None:
        """The account on which a client wants to be served. Raises MalformedFrame where it is not its own."""
        if self.account is None or not message.HasField("accounting"):
            return None
        return check_accounting(message.accounting, message.session, client, self.host.peer_id)

    def _trained(self, asked: Contract) -> Hosted:
        """What gradients are asked of. Raises ContractMismatch and ServerBusy."""
        hosted = self._fitting(asked)
        if self.draining or hosted.draining:
            raise ServerBusy("this server is leaving", retry_after=60.0)
        return hosted

    def _fitting(self, asked: Contract) -> Hosted:
        """What is asked for, of all that is hosted. Raises ContractMismatch with what differs."""
        differences = []
        for hosted in self.hosted:
            difference = hosted.contract.difference(asked)
            if difference is None:
                return hosted
            differences.append(difference)
        raise ContractMismatch(f"this server {'; '.join(differences[:MOST_REASONS]) or 'hosts nothing yet'}")

    def _owner(self, session: bytes) -> Hosted:
        """Where a session is. Raises SessionNotFound."""
        for hosted in self.hosted:
            if session in hosted.sessions:
                return hosted
        raise SessionNotFound("no such session here")

    def _named(self, session: bytes) -> Session:
        return self._owner(session).sessions[session]

    def _owned(self, session_id: bytes, stream: Stream) -> Session:
        session = self._named(session_id)
        if session.client != stream.peer_id:
            raise Unauthorized("this session belongs to another peer")
        return session

    def _detach(self, session: Session, control: Control) -> None:
        """The control stream is over: at once if the client said so, else after a time of grace."""
        if control.said_close:
            self._end(session)
        else:
            self._tasks.spawn(self._grace(session, control), name=f"grace of {session}")

    async def _grace(self, session: Session, control: Control) -> None:
        await asyncio.sleep(self.config.grace)
        # Otherwise the session was taken up again, or has ended, and its id may be another session's.
        if self._controls.get(session.id) is control:
            log.info("%s: its client has been gone for %.0f s", session, self.config.grace, extra=session.subject)
            self._end(session)

    def _end(self, session: Session) -> None:
        self._owner(session.id).end(session)
        control = self._controls.pop(session.id, None)
        if control is not None:
            control.stream.close()
        self._one_ended.set()

    # ---- data -------------------------------------------------------------------------------------------------

    async def _serve_data(self, stream: Stream) -> None:
        session: Session | None = None
        try:
            frame = await asyncio.wait_for(stream.receive(HELLO_LIMIT), self.config.open_timeout)
            data = messages.decode(pb.Data, frame)
            if data.WhichOneof("kind") != "hello":
                raise MalformedFrame("a data stream begins with a hello")
            session = self._named(data.hello.session)
            stream.concerns(span=session.span, session=session.id)
            if data.hello.role == pb.Hello.RESULTS:
                await session.serve_results(stream, data.hello.epoch)
            else:
                await session.feed(stream, data.hello.epoch)
        except (StreamClosed, TimeoutError):
            return
        except SwarmError as error:
            await self._refuse(stream, session, error)

    async def _refuse(self, stream: Stream, session: Session | None, error: SwarmError) -> None:
        log.debug("data from %s refused: %s", stream.peer_id, error)
        if session is not None and isinstance(error, TOLD_TO_CLIENT):
            session.tell(pb.ControlReply(failure=messages.failure(error, session.epoch)))
        await self._last_word(stream, pb.Data(failure=messages.failure(error)))
