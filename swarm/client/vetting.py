"""Whether what comes out of a route can be what its blocks compute, before anybody gets it. Pure.

What does not pass is computed once more elsewhere. Where two servers come to the same, or what was put in explains it,
it is what the model makes of its inputs, and nothing is looked at any more.
"""

from __future__ import annotations

import numpy as np

from swarm.client.sequences import Sequences
from swarm.contract import Contract
from swarm.errors import Implausible
from swarm.types import PeerId
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import values_of
from swarm.wire.places import bare
from swarm.wire.plausible import Plausible

RUN = 1024
"""Positions with the same input, or all there are, after which blocks may come to the same at two of them."""


class Vetting:
    """Of the outputs of one lane. `sequences`: what the session put in; `enabled`: whether anything is looked at."""

    def __init__(self, contract: Contract, sequences: Sequences) -> None:
        self.enabled = True
        self._contract = contract
        self._sequences = sequences
        self._plausible = Plausible(contract.dtype, contract.row_bytes)
        self._flagged: dict[tuple[int, int], PeerId] = {}

    def look(self, step: pb.Step) -> None:
        """Raises Implausible for outputs that no blocks compute from the session's inputs; of what is none of its
        sequences', nothing is known."""
        step = bare(step, self._sequences.layout)
        known = all(row.start + row.count <= self._sequences.length(row.sequence) for row in step.rows)
        if not self.enabled or not step.hidden or not known:
            return
        self._plausible.look(step)
        begin, size, outputs = 0, self._contract.row_bytes, memoryview(step.hidden)
        for row in step.rows:
            for position in range(row.start, row.start + row.count):
                if outputs[begin : begin + size] == self._input(row.sequence, position):
                    text = f"the output of position {position} of sequence {row.sequence} is its input"
                    raise Implausible(text, row.sequence, position, position)
                begin += size

    def passed(self) -> None:
        """What was looked at last is taken."""
        self._plausible.remember()

    def convinced(self, suspicion: Implausible, suspect: PeerId, *, told: bool) -> bool:
        """Whether this counts against a server. If not, everything passes from now on.

        `told`: on the word of another server, of whom two accused servers are no evidence either.
        """
        if self._explained(suspicion):
            self.enabled = False
        elif not told:
            place = suspicion.sequence, suspicion.position
            self.enabled = self._flagged.setdefault(place, suspect) == suspect
        return self.enabled

    def _explained(self, suspicion: Implausible) -> bool:
        """Whether it is what was put in that is odd: nothing but the same up to there, or no numbers."""
        sequence, twin = suspicion.sequence, suspicion.twin
        if twin is not None and twin != suspicion.position:
            first, last = sorted((twin, suspicion.position))
            first = min(first, max(last - RUN, 0))
            own = self._input(sequence, last)
            if own and self._sequences.inputs(sequence, first, last) == own * (last - first):
                return True
        rows = self._sequences.inputs(sequence, 0, suspicion.position + 1)
        values = values_of(rows, self._contract.dtype, self._contract.row_bytes)
        return values is not None and not bool(np.isfinite(values).all())

    def _input(self, sequence: int, position: int) -> bytes:
        """Nothing where there is none any more."""
        return self._sequences.inputs(sequence, position, position + 1)
