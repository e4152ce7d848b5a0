"""The past of a sequence once more, along a given route: to its servers work like any other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from swarm.client.blame import Blame
from swarm.client.choice import Choice
from swarm.client.epoch import Epochs, Hearing
from swarm.client.link import Event, HopLink
from swarm.client.sequences import Expected, Piece, Sequences
from swarm.client.vetting import Vetting
from swarm.client.view import View
from swarm.errors import StreamClosed, SwarmError
from swarm.net.base import Host
from swarm.tasks import Tasks
from swarm.types import Hop, Route, Rows
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that one may take: whoever is slower is not judged."""
TELL_TALE = 16
"""Positions at the end that are given one by one, as in a generation, where a server is to be found out."""


@dataclass(frozen=True, slots=True)
class Past:
    """A sequence's inputs, those of all positions, and the first whose output is of interest."""

    inputs: bytes
    first: int
    row_bytes: int

    @property
    def length(self) -> int:
        """Positions."""
        return len(self.inputs) // self.row_bytes

    def upto(self, length: int) -> Past:
        """The beginning of it."""
        return Past(self.inputs[: length * self.row_bytes], self.first, self.row_bytes)


class Replays:
    """Makes replays for one session. `pins`: fingerprints that blocks must have."""

    def __init__(self, host: Host, view: View, pins: Mapping[int, bytes]) -> None:
        self._host = host
        self._view = view
        self._pins = pins

    async def along(self, route: Route, past: Past, *, one_by_one: bool = False) -> bytes:
        """The outputs of positions `past.first` to the end. `one_by_one`: the last few of them as in a generation.

        Raises SwarmError for whatever goes wrong on the way; TimeoutError after a while.
        """
        outputs, _ = await self._made(route, past, one_by_one=one_by_one)
        return outputs

    async def signed(self, hop: Hop, past: Past) -> tuple[bytes, list[pb.Commitment]]:
        """The same of one hop alone, generating, with its signature: of what travels as it is. Raises as `along`."""
        return await self._made(Route((hop,), frozenset()), past, one_by_one=True, sign=True)

    async def _made(
        self, route: Route, past: Past, *, one_by_one: bool, sign: bool = False
    ) -> tuple[bytes, list[pb.Commitment]]:
        replay = _Replay(self._host, self._view, route, past, self._pins, "raw" if sign else None)
        try:
            async with asyncio.timeout(PATIENCE):
                outputs = await replay.outputs(min(TELL_TALE, past.length - past.first) if one_by_one else 0)
                return outputs, await replay.commitments() if sign else []
        finally:
            await asyncio.shield(replay.close())


class _Replay:
    """One session of one epoch: what fails is not repaired."""

    def __init__(
        self, host: Host, view: View, route: Route, past: Past, pins: Mapping[int, bytes], codec: str | None
    ) -> None:
        self._past = past
        self._tasks = Tasks(log)
        self._sequences = Sequences(past.row_bytes)
        self._expected: list[Expected] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._epochs = Epochs(
            host,
            view,
            self._sequences,
            Blame(view.trust, view.config),
            self._tasks,
            Hearing(self._take, lambda index, error: self._fail(error), self._on_event),
            Vetting(view.contract, self._sequences),
            dict(pins),
            Choice(view, route.span, pins, only=route),
            codec=codec,
        )

    async def outputs(self, singles: int) -> bytes:
        past, size = self._past, self._past.row_bytes
        together = past.length - singles
        self._append(past.inputs[: together * size], together - past.first)
        await self._epochs.begin()
        for position in range(together, past.length):
            piece = self._append(past.inputs[position * size : (position + 1) * size], 1)
            self._epochs.put(self._sequences.pack([piece], 1))
        await self._done
        return b"".join(expected.outputs for expected in self._expected)

    async def commitments(self) -> list[pb.Commitment]:
        """What the first hop has signed of this, in order; nothing where it signs nothing."""
        link = self._epochs.links[0]
        if link.commits:
            await link.commit()
        return list(link.commitments)

    def _append(self, rows: bytes, want: int) -> Piece:
        piece, expected = self._sequences.append(Rows(0, rows, want))
        self._expected.append(expected)
        return piece

    def _take(self, step: pb.Step) -> None:
        self._sequences.deliver(step)
        whole = self._sequences.length(0) == self._past.length
        if whole and all(expected.complete for expected in self._expected) and not self._done.done():
            self._done.set_result(None)

    def _on_event(self, link: HopLink, event: Event) -> None:
        if isinstance(event, pb.Failure):
            self._fail(link.error_of(event))
        elif isinstance(event, pb.LinkDown):
            self._fail(StreamClosed(f"{link}: cannot send on: {event.reason[:200]}"))
        elif isinstance(event, SwarmError):
            self._fail(event)

    def _fail(self, error: SwarmError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    async def close(self) -> None:
        with contextlib.suppress(SwarmError):
            await self._epochs.close()
        await self._tasks.close()
        if self._done.done() and not self._done.cancelled():
            self._done.exception()
