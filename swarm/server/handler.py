"""The streams of a server: who may open a session, what is read from whom, and when a session ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from swarm.config import CONTROL_FRAME_LIMIT, ServerConfig
from swarm.contract import Contract
from swarm.errors import (
    ContextTooLong,
    ContractMismatch,
    Gap,
    LimitExceeded,
    MalformedFrame,
    ServerBusy,
    SessionNotFound,
    StreamClosed,
    SwarmError,
    Unauthorized,
)
from swarm.jobs import Change, Kind
from swarm.net.base import Host, Stream
from swarm.server.budget import CacheBudget
from swarm.server.engine import Engine
from swarm.server.prefixes import OWNER, PrefixCache
from swarm.server.sessions import Session, Surroundings
from swarm.types import SequenceKey, ServerRecord, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import RAW, Codec, codec_of

log = logging.getLogger(__name__)

HELLO_LIMIT = 4096
PADDED_REPLIES = 4
"""Replies that may be waiting to be read when padding is added to one."""
MAX_REPLIES = 1024
"""Replies that a client may leave unread before it is hung up on."""

TOLD_TO_CLIENT = (ServerBusy, Gap, ContextTooLong, LimitExceeded)
"""Trouble with a step that the client must hear of, whoever sent the step."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What this server serves. `contract`: with fingerprints of 32 bytes a block; `max_positions`: 0 for no limit;
    `verify` checks a signed record and raises RecordRefused; `codecs`: how hidden states may travel."""

    contract: Contract
    verify: Callable[[bytes], ServerRecord]
    max_positions: int = 0
    codecs: tuple[str, ...] = (RAW,)

    def codec(self, name: str) -> Codec:
        """The codec of this name; an empty name is raw. Raises ContractMismatch for one that is not offered."""
        if name not in ("", RAW, *self.codecs):
            raise ContractMismatch(f"this server speaks {', '.join(self.codecs)}, not {name}")
        return codec_of(name, self.contract.dtype, self.contract.hidden_size, self.contract.row_bytes)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the server is. `free_tokens`: positions of KV cache for its whole span."""

    free_tokens: int
    queue: int
    sessions: int
    kv_bytes: int
    history_bytes: int
    prefix_bytes: int = 0


class Handler:
    """Serves sessions of one offer over a host."""

    def __init__(self, *, host: Host, engine: Engine, offer: Offer, config: ServerConfig) -> None:
        self.host = host
        self.engine = engine
        self.offer = offer
        self.config = config
        self.prefixes = PrefixCache(config.prefix_chunk, self._free_prefix)
        self.budget = CacheBudget(
            config.cache_bytes, config.history_share, config.evict_after, config.prefix_share, self.prefixes
        )
        self.sessions: dict[bytes, Session] = {}
        self.draining = False
        self.opened = 0
        self.refused: Counter[str] = Counter()
        self._around = Surroundings(
            host,
            engine,
            self.budget,
            config,
            offer.contract.row_bytes,
            offer.max_positions,
            offer.verify,
            offer.contract.model,
            offer.codec,
            self.prefixes,
        )
        self._empty = asyncio.Event()
        self._controls: dict[bytes, _Control] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Register the protocols and begin to watch for what expires."""
        await self.host.serve(messages.CONTROL_PROTOCOL, self._serve_control)
        await self.host.serve(messages.DATA_PROTOCOL, self._serve_data)
        self._spawn(self._housekeeping())

    def load(self) -> Load:
        """How much is held and how much is free."""
        per_token = max(self.engine.runner.bytes_per_token(self.offer.contract.span), 1)
        return Load(
            free_tokens=self.budget.free_bytes // per_token,
            queue=self.engine.queue,
            sessions=len(self.sessions),
            kv_bytes=self.budget.kv_bytes,
            history_bytes=self.budget.history_bytes,
            prefix_bytes=self.prefixes.nbytes,
        )

    async def drain(self, timeout: float) -> None:
        """Take no new sessions, ask the clients to move on, and return when all are gone or `timeout` s passed."""
        self.draining = True
        for session in self.sessions.values():
            session.tell(pb.ControlReply(leaving=pb.Leaving(deadline=timeout)))
        if self.sessions:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout)

    async def close(self) -> None:
        """End every session and stop."""
        for session in list(self.sessions.values()):
            self._end(session)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- control ----------------------------------------------------------------------------------------------

    async def _serve_control(self, stream: Stream) -> None:
        try:
            session = await self._enter(stream)
        except (StreamClosed, TimeoutError):
            return
        except SwarmError as error:
            self.refused[type(error).__name__] += 1
            await self._last_word(stream, pb.ControlReply(failure=messages.failure(error)))
            return
        stream.concerns(span=session.span, session=session.id)
        control = _Control(session, stream)
        previous, self._controls[session.id] = self._controls.get(session.id), control
        if previous is not None:
            previous.stream.close()
        try:
            await control.run(self._opened(session))
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

    async def _enter(self, stream: Stream) -> Session:
        """Read the first message of a control stream: a new session, or one that is taken up again."""
        frame = await asyncio.wait_for(stream.receive(CONTROL_FRAME_LIMIT), self.config.open_timeout)
        request = messages.decode(pb.ControlRequest, frame)
        match request.WhichOneof("kind"):
            case "open":
                return self._open(messages.check_open(request.open), stream)
            case "attach":
                return self._owned(request.attach.session, stream)
            case kind:
                raise MalformedFrame(f"a control stream begins with open or attach, not {kind}")

    def _open(self, message: pb.Open, stream: Stream) -> Session:
        asked = messages.contract_of(message.contract)
        self._check_contract(message.session, asked)
        self._check_admission(message.positions, asked.span)
        session = Session(message.session, stream.peer_id, asked.span, self._around)
        self.sessions[session.id] = session
        self.opened += 1
        self.budget.holders.append(session)
        log.info("%s: opened by %s", session, stream.peer_id, extra={**session.subject, "peer": stream.peer_id})
        return session

    def _check_contract(self, session: bytes, asked: Contract) -> None:
        if session in self.sessions:
            raise Unauthorized("this session id is taken")
        difference = self.offer.contract.difference(asked)
        if difference is not None:
            raise ContractMismatch(f"this server {difference}")

    def _check_admission(self, positions: int, span: Span) -> None:
        if self.draining:
            raise ServerBusy("this server is leaving", retry_after=60.0)
        if len(self.sessions) >= self.config.max_sessions:
            raise ServerBusy(f"{len(self.sessions)} sessions are open")
        wanted, most = positions * self.engine.runner.bytes_per_token(span), self._most_positions(span)
        if positions > most:
            raise LimitExceeded(
                f"{positions} positions in one session; there is room for {most}", "positions", most, positions
            )
        if not self.budget.make_room(wanted, None, asyncio.get_running_loop().time()):
            raise ServerBusy("the KV cache has no room for this session", retry_after=self.config.evict_after)

    def _owned(self, session_id: bytes, stream: Stream) -> Session:
        session = self.sessions.get(session_id)
        if session is None:
            raise SessionNotFound("no such session here")
        if session.client != stream.peer_id:
            raise Unauthorized("this session belongs to another peer")
        return session

    def _opened(self, session: Session) -> pb.ControlReply:
        prints = self.offer.contract.on(session.span).fingerprints
        opened = pb.Opened(
            session=session.id,
            can_rollback=self.engine.runner.can_rollback,
            max_positions=self.offer.max_positions,
            fingerprints=prints,
            codecs=self.offer.codecs,
            max_sequences=self.config.max_sequences,
            max_total_positions=self._most_positions(session.span),
            prefix_chunk=self.config.prefix_chunk,
        )
        return pb.ControlReply(opened=opened)

    def _most_positions(self, span: Span) -> int:
        """Positions that one session on `span` may have, if nobody else has any."""
        return self.budget.total // max(self.engine.runner.bytes_per_token(span), 1)

    def _detach(self, session: Session, control: _Control) -> None:
        """The control stream is over: at once if the client said so, else after a time of grace."""
        if control.said_close:
            self._end(session)
        else:
            self._spawn(self._grace(session, control))

    async def _grace(self, session: Session, control: _Control) -> None:
        await asyncio.sleep(self.config.grace)
        # Otherwise the session was taken up again, or has ended, and its id may be another session's.
        if self._controls.get(session.id) is control:
            log.info("%s: its client has been gone for %.0f s", session, self.config.grace, extra=session.subject)
            self._end(session)

    def _end(self, session: Session) -> None:
        del self.sessions[session.id]
        self.budget.holders.remove(session)
        session.close()
        control = self._controls.pop(session.id, None)
        if control is not None:
            control.stream.close()
        if not self.sessions:
            self._empty.set()

    # ---- data -------------------------------------------------------------------------------------------------

    async def _serve_data(self, stream: Stream) -> None:
        session: Session | None = None
        try:
            frame = await asyncio.wait_for(stream.receive(HELLO_LIMIT), self.config.open_timeout)
            data = messages.decode(pb.Data, frame)
            if data.WhichOneof("kind") != "hello":
                raise MalformedFrame("a data stream begins with a hello")
            session = self._named(data.hello)
            stream.concerns(span=session.span, session=session.id)
            if data.hello.role == pb.Hello.RESULTS:
                await session.serve_results(stream, data.hello.epoch)
            else:
                await session.feed(stream, data.hello.epoch)
        except (StreamClosed, TimeoutError):
            return
        except SwarmError as error:
            await self._refuse(stream, session, error)

    def _named(self, hello: pb.Hello) -> Session:
        session = self.sessions.get(hello.session)
        if session is None:
            raise SessionNotFound("no such session here")
        return session

    async def _refuse(self, stream: Stream, session: Session | None, error: SwarmError) -> None:
        log.debug("data from %s refused: %s", stream.peer_id, error)
        if session is not None and isinstance(error, TOLD_TO_CLIENT):
            session.tell(pb.ControlReply(failure=messages.failure(error, session.epoch)))
        await self._last_word(stream, pb.Data(failure=messages.failure(error)))

    # ---- life -------------------------------------------------------------------------------------------------

    async def _housekeeping(self) -> None:
        """Drop caches that nobody has used for long."""
        while True:
            await asyncio.sleep(min(self.config.idle_expiry / 4, 5.0))
            horizon = asyncio.get_running_loop().time() - self.config.idle_expiry
            for session in self.sessions.values():
                if session.last_used < horizon and (session.kv_bytes or session.history_bytes):
                    session.evict()

    def _free_prefix(self, key: SequenceKey) -> None:
        self.engine.change(OWNER, [Change(Kind.FREE, key)])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Control:
    """A control stream: one task reads, one writes, one changes epochs, so that none waits for another."""

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
        tasks = [asyncio.ensure_future(work) for work in (self._read(), self._change(), self._write())]
        try:
            # Not until writing fails: what the client said last, which may be that it closes, is still to be read.
            done, _ = await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.session.tell == self._tell:
                self.session.tell = lambda reply: None

    async def _read(self) -> None:
        while True:
            request = messages.decode(pb.ControlRequest, await self.stream.receive(CONTROL_FRAME_LIMIT))
            match request.WhichOneof("kind"):
                case "probe":
                    self._reply(progress=self._progress(messages.check_probe(request.probe)))
                case "prepare":
                    if self.session.fence(messages.check_prepare(request.prepare).epoch):
                        await self._changes.put(request)
                case "resume":
                    messages.check_resume(request.resume)
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
                else:
                    await self.session.resume(request.resume)
            except SwarmError as error:
                self._reply(failure=messages.failure(error, self.session.epoch))

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
