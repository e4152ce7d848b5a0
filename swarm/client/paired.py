"""What two routes made of the same: nothing is given on until both have come to the same. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from swarm.client.comparing import FAILED, errors
from swarm.client.integrity import least_noise
from swarm.client.sequences import Sequences
from swarm.errors import MalformedFrame
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import values_of


@dataclass(frozen=True, slots=True)
class Agreed:
    """Rows that both routes have made alike, and how far they are from each other at most."""

    step: pb.Step
    apart: float


@dataclass(frozen=True, slots=True)
class Dispute:
    """At this position both came to something else."""

    sequence: int
    position: int
    rows: tuple[bytes, bytes]


class Paired:
    """Rows of two routes, 0 and 1, that wait for each other."""

    def __init__(self, sequences: Sequences, dtype: str) -> None:
        self.noise = least_noise(dtype)
        """How far honest servers are taken to be from each other: as little as may be, as others are asked then."""
        self._sequences = sequences
        self._dtype = dtype
        self._rows: tuple[dict[int, dict[int, bytes]], dict[int, dict[int, bytes]]] = {}, {}

    def offer(self, route: int, step: pb.Step) -> None:
        """Outputs of one of the routes. Raises MalformedFrame for positions that were not issued."""
        begin, size = 0, self._sequences.row_bytes
        for row in step.rows:
            length, missing = self._sequences.length(row.sequence), self._sequences.missing(row.sequence)
            if length and row.start + row.count > length:
                raise MalformedFrame(f"outputs up to {row.start + row.count} of a sequence of {length} positions")
            for position in range(row.start, row.start + row.count):
                if missing is not None and position >= missing:
                    self._rows[route].setdefault(row.sequence, {})[position] = step.hidden[begin : begin + size]
                begin += size

    def forget(self, route: int) -> None:
        """What this route has made is of no use: it makes all that is missing once more."""
        self._rows[route].clear()

    def settle(self) -> Iterator[Agreed | Dispute]:
        """What both have by now of what is missing next, by sequence; a dispute stays until a route forgets."""
        for sequence in {**self._rows[0], **self._rows[1]}:
            missing = self._sequences.missing(sequence)
            ours, theirs = (rows.get(sequence, {}) for rows in self._rows)
            if missing is None:
                self._drop(sequence)
            elif missing in ours and missing in theirs:
                yield self._compared(sequence, missing, ours, theirs)

    def _drop(self, sequence: int) -> None:
        for rows in self._rows:
            rows.pop(sequence, None)

    def _compared(
        self, sequence: int, first: int, ours: dict[int, bytes], theirs: dict[int, bytes]
    ) -> Agreed | Dispute:
        last, worst, limit = first, 0.0, FAILED * self.noise
        while last in ours and last in theirs:
            apart = self._apart(sequence, last, ours[last], theirs[last])
            if apart > limit:
                break
            last, worst = last + 1, max(worst, apart)
        if last == first:
            return Dispute(sequence, first, (ours[first], theirs[first]))
        hidden = b"".join(ours.pop(position) for position in range(first, last))
        for position in range(first, last):
            del theirs[position]
        rows = pb.Rows(sequence=sequence, start=first, count=last - first, want=last - first)
        return Agreed(pb.Step(rows=[rows], hidden=hidden), worst)

    def _apart(self, sequence: int, position: int, one: bytes, other: bytes) -> float:
        if one == other:
            return 0.0
        size, inputs = len(one), self._sequences.inputs(sequence, position, position + 1)
        given, ours, theirs = (values_of(row, self._dtype, size) for row in (inputs, one, other))
        if given is None or ours is None or theirs is None:
            return float(np.inf)
        return float(errors(given, ours, theirs)[0])
