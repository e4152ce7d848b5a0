"""A simulated network in memory: hosts, links that are slow, lossy or cut, peers that die or freeze."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import logging
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NoReturn

from swarm.errors import DaemonFailed, FrameTooLarge, PeerUnreachable, RecordRefused, StreamClosed
from swarm.net.base import DirectoryStatistics, HostStatistics, PeerStream, StreamHandler, serve_stream
from swarm.net.identity import Identity
from swarm.net.network import Network
from swarm.net.twins import Twins
from swarm.tasks import Tasks
from swarm.testing.conditions import Line, LinkConditions
from swarm.types import ModelInfo, PeerId, ServerRecord
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

WINDOW = 1 << 20
"""Bytes in flight or unread on one direction of a stream before `send` waits."""


class SimulatedNetwork:
    """Hosts and the links between them. All randomness comes from `seed`."""

    def __init__(self, seed: int = 0, conditions: LinkConditions | None = None) -> None:
        self.random = random.Random(seed)
        self.default = conditions or LinkConditions()
        self.hosts: dict[PeerId, MemoryHost] = {}
        self.records: dict[tuple[str, PeerId, int], ServerRecord] = {}
        self.infos: dict[str, ModelInfo] = {}
        self.nodes: dict[tuple[str, PeerId], tuple[pb.QueryNode, float]] = {}
        self._conditions: dict[tuple[PeerId, PeerId], LinkConditions] = {}
        self._lines: dict[tuple[PeerId, PeerId], Line] = {}
        self._cut: set[frozenset[PeerId]] = set()
        self._frozen: set[PeerId] = set()
        self._thaws: dict[PeerId, asyncio.Event] = {}
        self.pipes: dict[_Pipe, None] = {}
        self.instances = itertools.count(1)

    def host(self, name: str) -> MemoryHost:
        """A new host; `name` is its peer id. A name may be used again after its host was killed or closed."""
        previous = self.hosts.get(name)
        if previous is not None and previous.alive:
            raise ValueError(f"a host named {name} is alive")
        host = MemoryHost(self, name)
        self.hosts[name] = host
        return host

    def join(self, name: str) -> Network:
        """A new host and its view of the directory, as `swarm.net.open` gives them. Its identity is made from `name`;
        the host's peer id, here, is the name itself."""
        host = self.host(name)
        identity = Identity(hashlib.sha256(name.encode()).digest())
        return Network(host, self.directory(host), identity, host.lost)

    def directory(self, host: MemoryHost) -> MemoryDirectory:
        """The directory as `host` reads and writes it."""
        return MemoryDirectory(self, host)

    def set_link(self, one: PeerId, other: PeerId, conditions: LinkConditions) -> None:
        """Change both directions of a link; frames under way keep their arrival."""
        self._conditions[one, other] = self._conditions[other, one] = conditions

    def conditions(self, source: PeerId, target: PeerId) -> LinkConditions:
        return self._conditions.get((source, target), self.default)

    def line(self, source: PeerId, target: PeerId) -> Line:
        """What all streams from source to target share."""
        return self._lines.setdefault((source, target), Line(self.random))

    def kill(self, name: PeerId) -> None:
        """The process dies: others see its streams end after one delay; nothing that it does arrives any more."""
        self.hosts[name].die()

    def freeze(self, name: PeerId) -> None:
        """The process stops without closing anything: nothing reaches it, nothing leaves it, until `thaw`."""
        self._frozen.add(name)

    def thaw(self, name: PeerId) -> None:
        self._frozen.discard(name)
        self._thaws.pop(name, asyncio.Event()).set()
        self._release()

    def cut(self, one: PeerId, other: PeerId, *, silent: bool = True) -> None:
        """Cut a link: silently (frames wait for `mend`), or so that both ends notice and streams break."""
        self._cut.add(frozenset((one, other)))
        if not silent:
            for host, peer in ((self.hosts[one], other), (self.hosts[other], one)):
                host.drop_streams(peer)

    def shorten(self, one: PeerId, other: PeerId, conditions: LinkConditions) -> None:
        """A shorter way comes up, for the streams that are opened from now on."""
        for pipe in self.pipes:
            if {pipe.source, pipe.target} == {one, other} and pipe.conditions is None:
                pipe.conditions = self.conditions(pipe.source, pipe.target)
        for here, there in ((one, other), (other, one)):
            for stream in self.hosts[here].streams:
                if stream.peer_id == there:
                    stream.outdated.set()
        self.set_link(one, other, conditions)

    def mend(self, one: PeerId, other: PeerId) -> None:
        self._cut.discard(frozenset((one, other)))
        self._release()

    async def thawed(self, name: PeerId) -> None:
        """Wait while `name` is frozen."""
        if name in self._frozen:
            await self._thaws.setdefault(name, asyncio.Event()).wait()

    def holds(self, source: PeerId, target: PeerId) -> bool:
        """Whether frames from source to target have to wait now."""
        return source in self._frozen or target in self._frozen or frozenset((source, target)) in self._cut

    def _release(self) -> None:
        for pipe in self.pipes:
            pipe.arm()


class _Pipe:
    """One direction of a stream: frames under way, in order, each with its time of arrival."""

    def __init__(self, network: SimulatedNetwork, source: PeerId, target: PeerId) -> None:
        self.network = network
        self.source = source
        self.target = target
        self.under_way: deque[tuple[float, bytes | None]] = deque()
        self.arrived: deque[bytes] = deque()
        self.pending = 0
        self.conditions: LinkConditions | None = None
        """Those of the way that it was opened on, once new streams take another."""
        self.sealed = False
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._last_arrival = 0.0
        self._timer: asyncio.TimerHandle | None = None
        network.pipes[self] = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def put(self, frame: bytes | None) -> None:
        """Send a frame, or the end of the stream."""
        size, link = len(frame or b""), self.conditions or self.network.conditions(self.source, self.target)
        self.pending += size
        line = self.network.line(self.source, self.target)
        self._last_arrival = max(self._last_arrival, line.arrival(self._loop.time(), size, link))
        self.under_way.append((self._last_arrival, frame))
        self.arm()

    def arm(self) -> None:
        """Set the timer for the next frame, unless the link holds frames back."""
        if self._timer is None and self.under_way and not self.network.holds(self.source, self.target):
            self._timer = self._loop.call_at(self.under_way[0][0], self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        if self.network.holds(self.source, self.target):
            return
        while self.under_way and self.under_way[0][0] <= self._loop.time():
            self._arrive(self.under_way.popleft()[1])
        self.arm()

    def _arrive(self, frame: bytes | None) -> None:
        if frame is None:
            self.network.pipes.pop(self, None)
            self.close()
        elif not self.closed:
            self.arrived.append(frame)
            self._wake("_reader")

    def close(self) -> None:
        self.closed = True
        self._wake("_reader")
        self._wake("_writer")

    async def get(self) -> bytes:
        while not self.arrived:
            if self.closed:
                raise StreamClosed(f"the stream from {self.source} ended")
            await self._sleep("_reader")
        frame = self.arrived.popleft()
        self.pending -= len(frame)
        self._wake("_writer")
        return frame

    async def room(self) -> None:
        while self.pending > WINDOW and not (self.closed or self.sealed):
            await self._sleep("_writer")
        if self.closed:
            raise StreamClosed(f"the stream to {self.target} ended")

    async def _sleep(self, side: str) -> None:
        future = self._loop.create_future()
        setattr(self, side, future)
        try:
            await future
        finally:
            setattr(self, side, None)

    def _wake(self, side: str) -> None:
        future = getattr(self, side)
        if future is not None and not future.done():
            future.set_result(None)


class MemoryStream(PeerStream):
    """One end of a simulated stream; satisfies `Stream`."""

    def __init__(self, host: MemoryHost, peer_id: PeerId, outgoing: _Pipe, incoming: _Pipe) -> None:
        super().__init__(peer_id)
        self.host = host
        self.outgoing = outgoing
        self.incoming = incoming
        host.streams[self] = None

    async def _send(self, frame: bytes) -> None:
        if self.outgoing.sealed or self.outgoing.closed or not self.host.alive:
            raise StreamClosed(f"the stream to {self._peer_id} is closed")
        self.outgoing.put(bytes(frame))
        await self.outgoing.room()

    async def _receive(self, limit: int) -> bytes:
        frame = await self.incoming.get()
        if len(frame) > limit:
            self.close()
            raise FrameTooLarge(f"a frame of {len(frame)} bytes from {self._peer_id}, above the limit of {limit}")
        return frame

    def close(self) -> None:
        if self in self.host.streams:
            self.outgoing.put(None)
            self.drop()

    def drop(self) -> None:
        """End this side without a word to the other."""
        self.host.streams.pop(self, None)
        self.outgoing.sealed = True
        self.outgoing._wake("_writer")
        self.incoming.close()
        self.incoming.arrived.clear()
        self.host.network.pipes.pop(self.incoming, None)


class MemoryHost:
    """A peer of a simulated network; satisfies `Host`."""

    def __init__(self, network: SimulatedNetwork, name: PeerId) -> None:
        self.network = network
        self._name = name
        self.alive = True
        self._died = asyncio.Event()
        self.streams: dict[MemoryStream, None] = {}
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks = Tasks(log)
        self.failures: list[BaseException] = []
        """What escaped from handlers; empty in a sound program."""

    @property
    def peer_id(self) -> PeerId:
        return self._name

    @property
    def addresses(self) -> Sequence[str]:
        return (f"/memory/{self._name}/p2p/{self._name}",)

    async def open_stream(self, peer_id: PeerId, protocol: str, addresses: Sequence[str] = ()) -> MemoryStream:
        delay = 2 * self.network.conditions(self._name, peer_id).delay
        while self.network.holds(self._name, peer_id):
            await self._wait_out(peer_id)
        await asyncio.sleep(delay)
        target = self.network.hosts.get(peer_id)
        if not self.alive or target is None or not target.alive or protocol not in target._handlers:
            raise PeerUnreachable(f"{peer_id} does not answer under {protocol}").attach(peer=peer_id)
        there = _Pipe(self.network, self._name, peer_id)
        back = _Pipe(self.network, peer_id, self._name)
        target._accept(protocol, MemoryStream(target, self._name, back, there))
        return MemoryStream(self, peer_id, there, back)

    async def _wait_out(self, peer_id: PeerId) -> None:
        await asyncio.sleep(10.0)
        if self.network.holds(self._name, peer_id):
            raise PeerUnreachable(f"no answer from {peer_id} for 10 s").attach(peer=peer_id)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def _accept(self, protocol: str, stream: MemoryStream) -> None:
        self._tasks.spawn(self._serve(self._handlers[protocol], stream, protocol), name="stream")

    async def _serve(self, handler: StreamHandler, stream: MemoryStream, protocol: str) -> None:
        if failure := await serve_stream(handler, stream, protocol, log):
            self.failures.append(failure)

    def statistics(self) -> HostStatistics:
        return HostStatistics(len(self.streams), len(self._tasks))

    def drop_streams(self, peer_id: PeerId) -> None:
        for stream in [s for s in self.streams if s.peer_id == peer_id]:
            stream.drop()

    def die(self) -> None:
        """End as a killed process does."""
        self.alive = False
        self._died.set()
        for stream in list(self.streams):
            stream.close()
        self._tasks.cancel()

    async def lost(self) -> NoReturn:
        """Wait until the host is killed. Raises DaemonFailed then."""
        await self._died.wait()
        raise DaemonFailed(f"{self._name} was killed")

    async def close(self) -> None:
        self.die()
        await self._tasks.close()


class MemoryDirectory:
    """The directory of a simulated network; satisfies `Directory`. Only a record's owner may write it."""

    def __init__(self, network: SimulatedNetwork, host: MemoryHost, delay: float = 0.01) -> None:
        self.network = network
        self.host = host
        self.delay = delay
        self.instance = next(network.instances)
        self._twins = Twins(host.peer_id, self.instance, None)

    async def announce(self, record: ServerRecord, model: ModelInfo) -> ServerRecord:
        await self._reach()
        if record.peer_id != self.host.peer_id:
            raise RecordRefused(f"{self.host.peer_id} cannot announce in the name of {record.peer_id}")
        if self._twins.is_due():
            self._look_for_twins()
        self._twins.announced(record.expires)
        record = dataclasses.replace(record, instance=self.instance)
        signed = hashlib.sha256(repr(dataclasses.replace(record, signed=b"")).encode()).digest()
        record = dataclasses.replace(record, signed=signed)
        self.network.records[record.model, record.peer_id, record.span.first] = record
        self.network.infos[model.key] = model
        return record

    def _look_for_twins(self) -> None:
        for record in self._living().values():
            self._twins.look(record.peer_id, record.instance, record.expires, record.addresses)

    async def withdraw(self, record: ServerRecord) -> None:
        await self._reach()
        self.network.records.pop((record.model, self.host.peer_id, record.span.first), None)

    async def lookup(self, model: str, blocks: int) -> list[ServerRecord]:
        await self._reach()
        return [r for r in self._living().values() if r.model == model and r.span.last <= blocks]

    async def models(self) -> list[ModelInfo]:
        await self._reach()
        return list(self.network.infos.values())

    async def announce_node(self, node: pb.QueryNode, expires: float) -> None:
        await self._reach()
        announced = pb.QueryNode()
        announced.CopyFrom(node)
        announced.peer_id, announced.instance = self.host.peer_id, self.instance
        self.network.nodes[node.contract.model, self.host.peer_id] = (announced, expires)

    async def withdraw_node(self, node: pb.QueryNode) -> None:
        await self._reach()
        self.network.nodes.pop((node.contract.model, self.host.peer_id), None)

    async def query_nodes(self, model: str) -> list[pb.QueryNode]:
        await self._reach()
        now = asyncio.get_running_loop().time()
        return [node for (of, _), (node, expires) in self.network.nodes.items() if of == model and expires > now]

    def verify(self, signed: bytes) -> ServerRecord:
        for record in self._living().values():
            if record.signed == signed:
                return record
        raise RecordRefused("no living record was signed like this")

    def _living(self) -> Mapping[tuple[str, PeerId, int], ServerRecord]:
        now = asyncio.get_running_loop().time()
        return {key: r for key, r in self.network.records.items() if r.expires > now}

    def statistics(self) -> DirectoryStatistics:
        return DirectoryStatistics(len(self.network.records) + len(self.network.nodes), len(self.network.hosts) - 1)

    async def close(self) -> None:
        pass

    async def _reach(self) -> None:
        await asyncio.sleep(self.delay)
        await self.network.thawed(self.host.peer_id)
