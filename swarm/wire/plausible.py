"""What cannot be hidden states, seen at a glance: a look at every step that costs far less than computing it. Pure.

Nothing here proves that somebody computes wrong, and much that is wrong passes. What does not pass is computed once
more elsewhere; where that comes to the same, it was right.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from swarm.errors import Implausible
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import Array, values_of
from swarm.wire.rows import Buffer

FEW = 16
"""Positions of a step up to which each is compared with those before; prompts are not, which repeat themselves most."""
REMEMBERED = 1024
"""Rows of a session that later ones are compared with."""
LEARNING = 8
"""Rows whose norms say what is usual."""
BEYOND = 1000.0
"""So many times larger or smaller than all before is not believed. Single positions are a hundred times the others in
healthy models (Sun et al., 2024, "Massive activations")."""


class Plausible:
    """Looks at the rows of one session as they come from one place. `dtype`: of their numbers; of one that is not known
    only bytes are compared."""

    def __init__(self, dtype: str, row_bytes: int) -> None:
        self.dtype = dtype
        self.row_bytes = row_bytes
        self._seen: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._least, self._most, self._rows = np.inf, 0.0, 0
        self._fresh: dict[tuple[int, int], int] = {}
        self._norms: Array | None = None

    def look(self, step: pb.Step) -> None:
        """Raises Implausible for rows that are not finite, beyond all norms before, or those of another position."""
        if not step.hidden:
            return
        values = values_of(step.hidden, self.dtype, self.row_bytes)
        self._norms = None if values is None else self._measured(step, values)
        self._fresh = self._compared(step) if len(step.hidden) <= FEW * self.row_bytes else {}

    def remember(self) -> None:
        """What was looked at last is taken: what follows is compared with it, too."""
        if self._norms is not None:
            self._least = min(self._least, float(self._norms.min()))
            self._most = max(self._most, float(self._norms.max()))
            self._rows += len(self._norms)
        self._seen.update(self._fresh)
        self._norms, self._fresh = None, {}
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _measured(self, step: pb.Step, values: Array) -> Array:
        """The norm of each row."""
        with np.errstate(over="ignore", invalid="ignore"):
            norms: Array = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
        # A sum of squares is finite where all numbers are: float32's squares fit into float64.
        wrong = ~np.isfinite(norms)
        if wrong.any():
            raise self._implausible(step, int(wrong.argmax()), "has numbers that are not finite")
        known = self._rows >= LEARNING
        beyond = (norms > BEYOND * self._most) | (norms < self._least / BEYOND) if known else norms == 0.0
        if beyond.any():
            row = int(beyond.argmax())
            usual = f", where {self._least:.3g} to {self._most:.3g} is usual" if known else ""
            raise self._implausible(step, row, f"has a norm of {norms[row]:.3g}{usual}")
        return norms

    def _compared(self, step: pb.Step) -> dict[tuple[int, int], int]:
        """What is to be remembered of the rows."""
        fresh: dict[tuple[int, int], int] = {}
        for row, (sequence, position) in enumerate(_places(step)):
            key = sequence, hash(bytes(self._row(step.hidden, row)))
            before = fresh.get(key, self._seen.get(key, position))
            if before != position:
                raise self._implausible(step, row, f"is the same as that of position {before}", before)
            fresh[key] = position
        return fresh

    def _row(self, hidden: Buffer, row: int) -> Buffer:
        return memoryview(hidden)[row * self.row_bytes : (row + 1) * self.row_bytes]

    def _implausible(self, step: pb.Step, row: int, what: str, twin: int | None = None) -> Implausible:
        sequence, position = _places(step)[row]
        text = f"the hidden state of position {position} of sequence {sequence} {what}"
        return Implausible(text, sequence, position, twin)


def _places(step: pb.Step) -> list[tuple[int, int]]:
    """Sequence and position of each row."""
    return [(row.sequence, row.start + index) for row in step.rows for index in range(row.count)]
