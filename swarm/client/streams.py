"""The data streams of one epoch: what this client sends to the hops of a route, reads from them and carries between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from swarm.client.given import Given
from swarm.client.link import HopLink
from swarm.config import FRAME_LIMIT
from swarm.errors import MalformedFrame, SwarmError
from swarm.net.base import Stream
from swarm.tasks import Tasks
from swarm.types import Route
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import Codec
from swarm.wire.transcode import decoded, frame_of


class EpochStreams:
    """Sends steps to the first hop, takes results from the last, and carries what a relayed link cannot.

    `codecs`: of every link, from the one into the first hop to the one out of the last; `on_result(step)` takes
    results; `on_broken(index, error)` hears which hop's stream failed, at most once; `tasks` owns what sends and reads.
    `given`: what it has been given, and what is still to come.
    """

    def __init__(
        self,
        route: Route,
        links: tuple[HopLink, ...],
        epoch: int,
        codecs: Sequence[Codec],
        on_result: Callable[[pb.Step], None],
        on_broken: Callable[[int, SwarmError], None],
        tasks: Tasks,
        given: Given,
    ) -> None:
        self.given = given
        self.route = route
        self.links = links
        self.epoch = epoch
        self.codecs = codecs
        self.unconfirmed = 0
        """Bytes sent since the last output came: they may still be on their way."""
        self._on_result = on_result
        self._on_broken = on_broken
        self._outgoing: asyncio.Queue[pb.Step] = asyncio.Queue()
        self._streams: list[Stream] = []
        self._tasks = tasks
        self._running: list[asyncio.Task[None]] = []
        self._over = False

    async def open(self) -> list[tuple[int, SwarmError]]:
        """Open the data streams and start. Returns the hops that could not be reached; then nothing was started."""
        last = len(self.links) - 1
        relayed = sorted(self.route.relayed_links)
        fed, read = [0, *(i + 1 for i in relayed)], [*relayed, last]
        opening = [self.links[i].open_inputs(self.epoch) for i in fed]
        opening += [self.links[i].open_results(self.epoch) for i in read]
        opened = await asyncio.gather(*opening, return_exceptions=True)
        self._streams = [stream for stream in opened if not isinstance(stream, BaseException)]
        failures = [(i, error) for i, error in zip(fed + read, opened, strict=True) if isinstance(error, BaseException)]
        for _, error in failures:
            if not isinstance(error, SwarmError):
                raise error
        if not failures:
            self._start_all(fed, self._streams[: len(fed)], read, self._streams[len(fed) :])
        return [(i, error) for i, error in failures if isinstance(error, SwarmError)]

    def _start_all(self, fed: list[int], inputs: list[Stream], read: list[int], results: list[Stream]) -> None:
        self._start(0, self._send(inputs[0]))
        for index, stream in zip(fed, inputs, strict=True):
            self._start(index, _hear_failure(stream, self.codecs[index].row_bytes))
        for index, source, target in zip(read, results, inputs[1:], strict=False):
            self._start(index, self._carry(source, target, self.codecs[index + 1].row_bytes))
        self._start(read[-1], self._receive(results[-1]))

    @property
    def outdated(self) -> bool:
        """Whether one of them could take a shorter way."""
        return any(stream.outdated.is_set() for stream in self._streams)

    def put(self, steps: Iterable[pb.Step]) -> None:
        """Queue steps for the first hop."""
        for step in steps:
            self.unconfirmed += len(step.hidden)
            self.given.put(step)
            self._outgoing.put_nowait(step)

    async def _send(self, stream: Stream) -> None:
        while True:
            step = await self._outgoing.get()
            await stream.send(await frame_of(step, self.codecs[0]))

    async def _receive(self, stream: Stream) -> None:
        while True:
            self._on_result(await decoded(await _next_data(stream), self.codecs[-1]))

    async def _carry(self, source: Stream, target: Stream, row_bytes: int) -> None:
        """Pass on what one hop computed to the next, who cannot be dialled by it, encoded as it is."""
        while True:
            step = await _next_step(source, row_bytes)
            await target.send(pb.Data(step=step).SerializeToString())

    def _start(self, index: int, work: Coroutine[Any, Any, None]) -> None:
        name = f"data stream with {self.links[index]}"
        self._running.append(self._tasks.spawn(self._guard(index, work), name=name))

    async def _guard(self, index: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except SwarmError as error:
            if not self._over:
                self._over = True
                self._on_broken(index, error)

    def close(self) -> None:
        """Close the data streams; the hops stay open."""
        self._over = True
        for task in self._running:
            if task is not asyncio.current_task():
                task.cancel()
        for stream in self._streams:
            stream.close()


async def _next_data(stream: Stream) -> pb.Step:
    """The next step, not checked yet."""
    data = messages.decode(pb.Data, await stream.receive(FRAME_LIMIT))
    if data.WhichOneof("kind") == "failure":
        raise messages.error_of(data.failure, stream.peer_id)
    if data.WhichOneof("kind") != "step":
        raise MalformedFrame(f"{stream.peer_id} sent a {data.WhichOneof('kind')} instead of results")
    return data.step


async def _next_step(stream: Stream, row_bytes: int) -> pb.Step:
    return messages.check_step(await _next_data(stream), row_bytes)


async def _hear_failure(stream: Stream, row_bytes: int) -> None:
    """On a stream of inputs a server says nothing but why it ends. Raises that."""
    await _next_step(stream, row_bytes)
    raise MalformedFrame(f"{stream.peer_id} sent steps back on a stream of inputs")
