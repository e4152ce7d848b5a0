"""Rows that say where they stand: a hidden state, then the places of its position.

A model counts positions from 0, one by one, unless it is told otherwise: then each position has one place, or several
(time, height and width of a piece of an image). Places travel and are kept as a part of the row, so that whatever
happens to a row happens to them: little-endian int32, `planes` of them behind the hidden state. A session has them for
all its positions, or for none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swarm.errors import InvalidInput, MalformedFrame
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import Codec
from swarm.wire.messages import MAX_PLACES, MAX_POSITION
from swarm.wire.rows import Buffer

PLACE_BYTES = 4

_PLACE = np.dtype("<i4")
_Bytes = npt.NDArray[np.uint8]


def places_of(start: int, count: int, planes: int) -> bytes:
    """Those of positions that are counted one by one from `start`."""
    return np.repeat(np.arange(start, start + count, dtype=_PLACE), planes).tobytes()


def planes_in(places: Buffer, count: int) -> int:
    """How many places each of `count` positions has. Raises InvalidInput where they have not all as many."""
    planes, rest = divmod(len(places), PLACE_BYTES * count) if count else (0, len(places))
    if rest or planes > MAX_PLACES:
        raise InvalidInput(f"{len(places)} bytes are no places of {count} positions")
    return planes


def check_places(places: Buffer) -> None:
    """Raises MalformedFrame for places beyond any context."""
    numbers = np.frombuffer(places, _PLACE)
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < MAX_POSITION):
        raise MalformedFrame("a place beyond any context")


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Rows of `hidden_bytes` of hidden state and `planes` places each."""

    hidden_bytes: int
    planes: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.hidden_bytes + PLACE_BYTES * self.planes

    def join(self, hidden: Buffer, places: Buffer) -> Buffer:
        """Rows of these hidden states and places."""
        if not self.planes:
            return hidden
        states = np.frombuffer(hidden, np.uint8).reshape(-1, self.hidden_bytes)
        behind = np.frombuffer(places, np.uint8).reshape(len(states), -1)
        return np.concatenate([states, behind], axis=1).tobytes()

    def part(self, rows: Buffer) -> tuple[Buffer, bytes]:
        """The hidden states of rows, and their places."""
        if not self.planes:
            return rows, b""
        whole: _Bytes = np.frombuffer(rows, np.uint8).reshape(-1, self.row_bytes)
        return whole[:, : self.hidden_bytes].tobytes(), whole[:, self.hidden_bytes :].tobytes()

    def fitted(self, places: Buffer, start: int, count: int) -> bytes:
        """Places in as many planes as the rows have: none are counted from `start`, one stands for all.

        Raises InvalidInput for any other number.
        """
        planes = planes_in(places, count)
        if planes == self.planes:
            return bytes(places)
        if not planes:
            return places_of(start, count, self.planes)
        if planes > 1:
            raise InvalidInput(f"{planes} places a position, in a sequence whose positions have {self.planes}")
        return np.repeat(np.frombuffer(places, _PLACE), self.planes).tobytes()

    def widened(self, rows: Buffer, start: int, wider: RowLayout) -> Buffer:
        """Rows of positions from `start` on, in a layout with more places."""
        hidden, places = self.part(rows)
        return wider.join(hidden, wider.fitted(places, start, len(hidden) // self.hidden_bytes))


def bare(step: pb.Step, layout: RowLayout) -> pb.Step:
    """The rows of a step without their places."""
    return pb.Step(rows=step.rows, hidden=bytes(layout.part(step.hidden)[0])) if layout.planes else step


class Placed:
    """A codec for rows with places, which travel as they are behind what `inner` makes of the hidden state."""

    def __init__(self, inner: Codec, planes: int) -> None:
        self._inner = inner
        self._raw = RowLayout(inner.raw_bytes, planes)
        self._encoded = RowLayout(inner.row_bytes, planes)
        self.name = inner.name
        self.raw_bytes, self.row_bytes = self._raw.row_bytes, self._encoded.row_bytes

    def encode(self, buffer: Buffer) -> bytes:
        """Rows as they travel."""
        hidden, places = self._raw.part(buffer)
        return bytes(self._encoded.join(self._inner.encode(hidden), places))

    def decode(self, buffer: Buffer) -> bytes:
        """Rows as they are computed with. Raises MalformedFrame for what no `encode` writes."""
        hidden, places = self._encoded.part(buffer)
        return bytes(self._raw.join(self._inner.decode(hidden), places))


def placed(codec: Codec, planes: int) -> Codec:
    """The codec for rows of hidden states that `codec` knows, with so many places each."""
    return Placed(codec, planes) if planes else codec
