"""A whole swarm on the simulated network, with an engine whose every mistake shows.

Each block's output is an integer hash of all inputs it has seen for the sequence: a lost, doubled, reordered or
stale position changes every later token, without ties and without floats.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from swarm.client.session import Notice, Session
from swarm.client.view import View
from swarm.config import ClientConfig, ServerConfig
from swarm.contract import Contract
from swarm.errors import StepVoid, StreamClosed, SwarmError
from swarm.jobs import compute
from swarm.server.handler import Handler, Offer
from swarm.server.runner import Runner
from swarm.testing.conditions import LinkConditions
from swarm.testing.engine import InlineEngine
from swarm.testing.network import MemoryDirectory, MemoryHost, MemoryStream, SimulatedNetwork
from swarm.testing.runner import ByteRunner
from swarm.types import ModelInfo, Rows, Segment, SequenceKey, ServerRecord, ServerState, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import offered
from swarm.wire.rows import Buffer

ROW = struct.Struct("<Q")
MASK = (1 << 64) - 1
VOCABULARY = 997


class ExactRunner(ByteRunner):
    """Computes blocks as hashes. Raises when a sequence does not go on exactly where it ended."""

    can_rollback: bool = True

    def __init__(self) -> None:
        self.on_block: Callable[[], None] | None = None
        self.states: dict[SequenceKey, dict[int, list[int]]] = {}
        self.computed = 0
        self.complaints: list[str] = []
        """What it was asked that cannot be done; a server in order never asks such a thing."""

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        inputs = [value for (value,) in ROW.iter_unpack(hidden)]
        outputs: list[int] = []
        for segment in segments:
            rows, inputs = inputs[: segment.count], inputs[segment.count :]
            outputs += self._through(span, segment, rows)
        self.computed += len(outputs)
        return memoryview(b"".join(map(ROW.pack, outputs)))

    def _through(self, span: Span, segment: Segment, rows: list[int]) -> list[int]:
        blocks = self.states.setdefault(segment.sequence, {})
        for block in span:
            past = blocks.setdefault(block, [])
            if len(past) != segment.start:
                self.complaints.append(f"{segment} does not continue the {len(past)} positions of block {block}")
                raise AssertionError(self.complaints[-1])
            state = past[-1] if past else block
            after = []
            for row in rows:
                state = hash((state, row, block)) & MASK
                after.append(state)
            past += after
            rows = after
        return rows

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        self.states[target] = {block: past[:length] for block, past in self.states[source].items()}

    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        self.fork(source, target, length)
        del self.states[source]

    def truncate(self, sequence: SequenceKey, length: int) -> None:
        for past in self.states.get(sequence, {}).values():
            del past[length:]

    def free(self, sequence: SequenceKey) -> None:
        self.states.pop(sequence, None)

    def bytes_held(self) -> int:
        return sum(8 * len(past) for blocks in self.states.values() for past in blocks.values())

    def bytes_per_token(self, span: Span) -> int:
        return 8 * len(span)


class ForgetlessRunner(ExactRunner):
    """Blocks with a running state, as in linear attention: no position can be taken back."""

    can_rollback = False

    def truncate(self, sequence: SequenceKey, length: int) -> None:
        held = max((len(past) for past in self.states.get(sequence, {}).values()), default=0)
        if length < held:
            self.complaints.append("this state cannot roll back")
            raise AssertionError(self.complaints[-1])


@dataclass(frozen=True)
class Arithmetic:
    """What is computed in a simulation: rows of `row_bytes`, from tokens, through a runner, to tokens.

    With a `dtype` that codecs know and its `hidden_size`, servers offer them.
    """

    row_bytes: int
    embed: Callable[[int, int], bytes]
    token_of: Callable[[bytes], int]
    make_runner: Callable[[Span], Runner]
    dtype: str = "exact"
    hidden_size: int = 1


@dataclass
class SimulatedServer:
    """A server as a process would be: host, engine, handler, announcements."""

    world: World
    name: str
    span: Span
    host: MemoryHost
    directory: MemoryDirectory
    handler: Handler
    record: ServerRecord
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def runner(self) -> ExactRunner:
        """The runner of an exact simulation."""
        assert isinstance(self.handler.engine.runner, ExactRunner)
        return self.handler.engine.runner

    def bytes_held(self) -> int:
        """KV cache that is held for sessions: all that there is, but for what the prefix cache says that it owns."""
        return self.handler.engine.runner.bytes_held() - self.handler.prefixes.kv_bytes

    async def announce(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            load = self.handler.load()
            self.record = replace(self.record, expires=now + 60.0, free_tokens=load.free_tokens, queue=load.queue)
            await self.directory.announce(self.record, self.world.model)
            await asyncio.sleep(20.0)

    async def drain(self, timeout: float = 60.0) -> None:
        self.tasks.pop().cancel()
        self.record = replace(self.record, state=ServerState.DRAINING)
        await self.directory.announce(self.record, self.world.model)
        await self.handler.drain(timeout)
        await self.directory.withdraw(self.record)
        await self.stop()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.handler.engine.close()
        await self.handler.close()
        await self.host.close()


class World:
    """A swarm of `blocks` blocks on a simulated network; all randomness from `seed`."""

    def __init__(
        self,
        seed: int = 0,
        *,
        blocks: int = 9,
        conditions: LinkConditions | None = None,
        make_runner: Callable[[], Runner] = ExactRunner,
        arithmetic: Arithmetic | None = None,
        server_config: ServerConfig | None = None,
        step_seconds: Callable[[int], float] = lambda positions: 0.002 + 0.0002 * positions,
    ) -> None:
        self.network = SimulatedNetwork(seed, conditions)
        self.random = random.Random(seed)
        self.servers: dict[str, SimulatedServer] = {}
        self.clients: list[MemoryHost] = []
        self.notices: list[Notice] = []
        self.runners: list[Runner] = []
        self.arithmetic = arithmetic or Arithmetic(ROW.size, embed, token_of, lambda span: make_runner())
        self.model = ModelInfo("model", "exact", blocks, self.arithmetic.hidden_size, 4096)
        self.server_config = server_config or ServerConfig()
        self.step_seconds = step_seconds
        self._sessions: list[Session] = []
        self._happenings: list[asyncio.Task[None]] = []

    @property
    def span(self) -> Span:
        return Span(0, self.model.blocks)

    @property
    def contract(self) -> Contract:
        return self.model.contract(self.arithmetic.dtype, self.arithmetic.row_bytes)

    async def add(
        self,
        name: str,
        span: Span,
        *,
        fingerprint: bytes = b"",
        decode_ms: float = 1.0,
        codecs: tuple[str, ...] | None = None,
        max_positions: int = 4096,
        **changes: Any,
    ) -> SimulatedServer:
        """Start a server and wait until it is announced. `codecs`: those that it offers; None: all it can;
        `max_positions`: of one sequence; `changes`: fields of its contract that differ from the others'."""
        host = self.network.host(name)
        directory = self.network.directory(host)
        prints = tuple(fingerprint.ljust(32, b"\0") or bytes(32) for _ in span)
        dtype, size = self.arithmetic.dtype, self.arithmetic.hidden_size
        codecs = offered(dtype, size) if codecs is None else codecs
        contract = replace(self.contract.on(span), fingerprints=prints, **changes)
        offer = Offer(contract, directory.verify, max_positions, codecs)
        self.runners.append(self.arithmetic.make_runner(span))
        engine = InlineEngine(self.runners[-1], seconds=self.step_seconds)
        handler = Handler(host=host, engine=engine, offer=offer, config=self.server_config)
        await handler.start()
        record = ServerRecord(
            name, contract.announced, addresses=tuple(host.addresses),
            free_tokens=10_000, decode_ms=decode_ms, codecs=codecs,
        )  # fmt: skip
        server = SimulatedServer(self, name, span, host, directory, handler, record)
        self.servers[name] = server
        server.tasks.append(asyncio.ensure_future(server.announce()))
        await asyncio.sleep(0.02)
        return server

    async def kill(self, name: str) -> None:
        """As SIGKILL does; the record stays in the directory until it expires."""
        server = self.servers.pop(name)
        self.network.kill(name)
        await server.stop()

    def later(self, seconds: float, happening: Coroutine[Any, Any, Any]) -> None:
        """Let something happen in `seconds`."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            await happening

        self._happenings.append(asyncio.ensure_future(wait()))

    def session(self, config: ClientConfig | None = None, name: str = "") -> Session:
        """A session of a client of its own, or of the one of this name."""
        host = next((client for client in self.clients if client.peer_id == name and client.alive), None)
        if host is None:
            host = self.network.host(name or f"client{len(self.clients)}")
            self.clients.append(host)
        config = config or ClientConfig()
        contract = replace(self.contract, quantization=config.quantization)
        view = View(self.network.directory(host), self.model, contract, config)
        session = Session(
            host, view, self.span, config=config, on_notice=self.notices.append,
            rng=random.Random(self.random.random()),
        )  # fmt: skip
        self._sessions.append(session)
        return session

    async def close(self) -> None:
        """Stop everything. Raises what escaped from any handler."""
        await asyncio.gather(*self._happenings)
        for session in self._sessions:
            await session.close()
            await session.view.close()
        for server in list(self.servers.values()):
            await server.stop()
        for host in [*self.network.hosts.values()]:
            await host.close()
            if host.failures:
                raise host.failures[0]


def embed(token: int, position: int) -> bytes:
    """The hidden state of a token."""
    return ROW.pack(hash((token, position)) & MASK)


def token_of(output: bytes) -> int:
    """The next token, from the last row."""
    return int(ROW.unpack(output[-ROW.size :])[0] % VOCABULARY)


def reference(prompt: Sequence[int], count: int, blocks: int = 9) -> list[int]:
    """What one process generates."""
    runner, tokens, start = ExactRunner(), list(prompt), 0
    while len(tokens) < len(prompt) + count:
        rows = b"".join(embed(token, start + i) for i, token in enumerate(tokens[start:]))
        output = compute(runner, Span(0, blocks), [Segment((b"", 0), start, len(tokens) - start)], rows)
        start = len(tokens)
        tokens.append(token_of(bytes(output)))
    return tokens[len(prompt) :]


async def generate(
    session: Session,
    prompt: Sequence[int],
    count: int,
    *,
    sequence: int = 0,
    on_token: Callable[[int], object] | None = None,
    arithmetic: Arithmetic | None = None,
) -> list[int]:
    """What the swarm generates after a prompt that goes on where the sequence ends.

    `on_token(i)` is called before token i is asked for; it may return a coroutine.
    """
    to_row, to_token = (arithmetic.embed, arithmetic.token_of) if arithmetic else (embed, token_of)
    base = session.length(sequence)
    tokens, sent = list(prompt), 0
    while len(tokens) < len(prompt) + count:
        if on_token is not None:
            happening = on_token(len(tokens) - len(prompt))
            if asyncio.iscoroutine(happening):
                await happening
        rows = b"".join(to_row(token, base + sent + i) for i, token in enumerate(tokens[sent:]))
        sent = len(tokens)
        (output,) = await session.step([Rows(sequence, rows, 1)])
        tokens.append(to_token(output))
    return tokens[len(prompt) :]


async def speculate(
    session: Session,
    arithmetic: Arithmetic,
    prompt: Sequence[int],
    truth: Sequence[int],
    rng: random.Random,
    *,
    on_token: Callable[[int], object] | None = None,
) -> list[int]:
    """As `generate`, with guesses sent ahead in several windows; some are wrong, and what follows them is void.

    `truth`: what has to come, of which the guesses are made.
    """
    size = arithmetic.row_bytes
    whole, text, sent, done, sequence = [*prompt, *truth], list(prompt), list[int](), 0, 0
    windows: deque[tuple[int, asyncio.Task[list[bytes]]]] = deque()
    void: list[asyncio.Task[list[bytes]]] = []
    operations: list[pb.Operation] = []
    try:
        while len(text) < len(whole):
            if on_token is not None and asyncio.iscoroutine(happening := on_token(len(text) - len(prompt))):
                await happening
            while len(windows) < rng.randint(1, 4):
                begin, ahead = len(sent), max(len(sent), len(text))
                guesses = [token + (rng.random() < 0.2) for token in whole[ahead : ahead + rng.randint(0, 5)]]
                window = text[begin:] + guesses
                if not window:
                    break
                rows = b"".join(arithmetic.embed(token, begin + i) for i, token in enumerate(window))
                step = asyncio.ensure_future(session.step([Rows(sequence, rows, len(window))], operations))
                await asyncio.sleep(0)
                windows.append((len(window), step))
                sent, operations = sent + window, []
            count, step = windows.popleft()
            (outputs,) = await step
            for index in range(count):
                done += 1
                if done < len(text):
                    continue
                text.append(arithmetic.token_of(outputs[index * size : (index + 1) * size]))
                if done < len(sent) and sent[done] != text[-1]:
                    del sent[done:]
                    void += [step for _, step in windows]
                    windows.clear()
                    move = pb.Operation(kind=pb.Operation.MOVE, source=sequence, target=sequence + 1, length=done)
                    sequence, operations = sequence + 1, [move]
                    break
    finally:
        void += [step for _, step in windows]
        for step in void:
            step.cancel()
        ends = await asyncio.gather(*void, return_exceptions=True)
    assert all(isinstance(end, list | StepVoid | asyncio.CancelledError) for end in ends), ends
    return text[len(prompt) : len(whole)]


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
