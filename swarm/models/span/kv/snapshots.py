"""How a sequence goes back in blocks that keep a running state: states at the beginnings of earlier passes.

A state cannot give up a position. It is put back to where it was when an earlier pass began, and computes what lies
between once more, out of inputs that are kept; mostly together with what comes next, so that going back costs no pass
of its own. Two snapshots lie `APART` positions apart, but the newest is that of the last pass: a window of guesses that
stands alone goes back by itself only, and of several that follow each other the first is still in reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

APART = 64
"""Positions that can be forgotten at any time, once so many were computed in short passes."""
LONGEST = 64
"""A pass over more positions is a prompt's: nobody goes back into it."""
MOST = 3
"""Snapshots of a sequence at once, at most: all but the newest are `APART` from each other, all but the oldest in reach
of `APART`."""
ROWS = 2 * APART + LONGEST
"""Positions of which inputs are kept, at most."""

States = Mapping[int, Any]
"""The running state of each block that has one. Passes make new ones and leave these as they are."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The states behind `position` positions."""

    position: int
    states: States


@dataclass(frozen=True, slots=True)
class Inputs:
    """What came in from position `start` on: `hidden` `[1, count, hidden_size]`, `places` `[planes, count]` if any."""

    start: int
    hidden: torch.Tensor
    places: torch.Tensor | None = None

    @property
    def stop(self) -> int:
        """The position behind them."""
        return self.start + self.hidden.shape[1]

    def between(self, start: int, stop: int) -> Inputs:
        """The part from `start` to `stop`."""
        cut = slice(max(start - self.start, 0), stop - self.start)
        return Inputs(self.start + cut.start, self.hidden[:, cut], None if self.places is None else self.places[:, cut])

    def copied(self) -> Inputs:
        """In tensors of their own, so that nobody else's rows are kept with them."""
        return Inputs(self.start, self.hidden.clone(), None if self.places is None else self.places.clone())

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.hidden.nbytes + (0 if self.places is None else self.places.nbytes)


class Snapshots:
    """Of one sequence, with the inputs behind the oldest."""

    def __init__(self) -> None:
        self._kept: list[Snapshot] = []
        self._inputs: list[Inputs] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def reach(self) -> int | None:
        """The shortest length to go back to; None: there are no snapshots."""
        return self._kept[0].position if self._kept else None

    def note(self, before: Snapshot, inputs: Inputs) -> None:
        """A pass over these inputs is complete, which began at `before`, or further on with what was behind it."""
        if inputs.hidden.shape[1] > LONGEST:
            self.clear()
            return
        kept = self._kept
        if not kept or before.position > kept[-1].position:
            if len(kept) > 1 and kept[-1].position - kept[-2].position < APART:
                kept.pop()
            kept.append(before)
        self._inputs.append(inputs.copied())
        while len(kept) > 1 and inputs.stop - kept[1].position >= APART:
            kept.pop(0)
        self._inputs = [part for part in self._inputs if part.stop > kept[0].position]

    def back_to(self, length: int) -> Snapshot:
        """The newest snapshot of at most `length` positions, which is to be the state now; what is behind `length` is
        forgotten. `length` is not below `reach`."""
        while self._kept[-1].position > length:
            self._kept.pop()
        self._inputs = [
            part if part.stop <= length else part.between(part.start, length).copied()
            for part in self._inputs
            if part.start < length
        ]
        return self._kept[-1]

    def inputs(self, start: int, stop: int) -> Inputs:
        """What came in from `start` to `stop`, which is in reach."""
        parts = [part.between(start, stop) for part in self._inputs if part.stop > start and part.start < stop]
        places = [part.places for part in parts if part.places is not None]
        return Inputs(
            start, torch.cat([part.hidden for part in parts], dim=1), torch.cat(places, dim=1) if places else None
        )

    def fork(self) -> Snapshots:
        """The same for a copy of the sequence; states and inputs are shared, as nobody changes them."""
        twin = Snapshots()
        twin._kept, twin._inputs = list(self._kept), list(self._inputs)
        return twin

    def clear(self) -> None:
        """Forget all."""
        self._kept, self._inputs = [], []

    @property
    def states(self) -> list[States]:
        """Of all snapshots."""
        return [snapshot.states for snapshot in self._kept]

    @property
    def input_bytes(self) -> int:
        """Bytes of the inputs."""
        return sum(part.nbytes for part in self._inputs)
