"""Whole sequences through the blocks of a span, and gradients, by torch's autograd.

As much as there is room for is kept of a forward pass: the graphs of the first blocks, and what went into the others,
which are computed again (recomputation, Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost",
2016). Where nothing was kept, whoever wants gradients sends the inputs along, so that any server of the blocks can give
them. Both go block by block, and yield in between: others have decode steps to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from swarm.config import MIB
from swarm.models.lora import Pair, Place
from swarm.models.span.attention.base import Lane
from swarm.models.span.passes import Passes
from swarm.models.span.saved import Saved
from swarm.types import Span

Matrices = Mapping[Place, Pair]
LEAST_ROOM = 64 * MIB
"""Bytes that what goes into the blocks may take in any case while gradients are computed; beyond it blocks are computed
several times."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """What goes through the blocks together. `counts`: positions of each; `adapter`: what is added; `seed`: of what
    that drops, another for each sequence, 0 for nothing; `narrow`: lets the model have these blocks only; `weights`:
    where their numbers are."""

    passes: Passes[Any]
    narrow: Callable[[Span], None]
    counts: Sequence[int]
    adapter: Matrices | None = None
    seed: int = 0
    weights: frozenset[int] = frozenset()

    @property
    def adapted(self) -> set[int]:
        """The blocks in which something is added."""
        return {place.block for place in self.adapter or ()}

    def through(self, block: int, hidden: torch.Tensor, adapter: Matrices | None) -> torch.Tensor:
        """`[T, hidden_size]` → the same."""
        self.narrow(Span(block, block + 1))
        seeds = [b"%d:%d" % (self.seed, index) if self.seed else b"" for index in range(len(self.counts))]
        lanes = [
            Lane(0, count, self.passes.no_cache(), adapter=adapter, seed=seed)
            for count, seed in zip(self.counts, seeds, strict=True)
        ]
        return self.passes.run(lanes, hidden.unsqueeze(0))[0]

    @torch.no_grad()
    def forward(self, block: int, hidden: torch.Tensor) -> torch.Tensor:
        """As `through`, without gradients."""
        return self.through(block, hidden, self.adapter)


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """One block's part of the way: what went in and came out, and the matrices beside its layers, which learn."""

    given: torch.Tensor
    made: torch.Tensor
    learning: dict[Place, Pair]
    nbytes: int

    def back(self, gradient: torch.Tensor, inputs_wanted: bool) -> tuple[torch.Tensor, dict[Place, Pair]]:
        """Gradients of what went in, `[0, hidden_size]` unless they are wanted, and of the matrices."""
        matrices = [matrix for pair in self.learning.values() for matrix in (pair.a, pair.b)]
        wanted = [self.given, *matrices] if inputs_wanted else matrices
        found = list(torch.autograd.grad(self.made, wanted, gradient, allow_unused=True, materialize_grads=True))
        of_given = found.pop(0) if inputs_wanted else gradient[:0]
        pairs = zip(found[::2], found[1::2], strict=True)
        return of_given, {place: Pair(a, b) for place, (a, b) in zip(self.learning, pairs, strict=True)}


@torch.enable_grad()
def _graph(sequences: Sequences, block: int, hidden: torch.Tensor, *, learns: bool) -> _Graph:
    """`learns`: whether a gradient of what goes in is wanted."""
    given = hidden.detach().clone().requires_grad_(learns)
    adapter = sequences.adapter or {}
    learning = {
        place: replace(pair, a=_learning(pair.a), b=_learning(pair.b))
        for place, pair in adapter.items()
        if place.block == block
    }
    saved = Saved(sequences.weights)
    with saved:
        made = sequences.through(block, given, learning or None)
    return _Graph(given, made, learning, given.nbytes + saved.nbytes)


def _learning(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.detach().clone().requires_grad_()


class BlockActivations:
    """What gradients of a pass are computed from: of each block from `first` on what went in, of some the graph.

    `outputs`: of the last block. `Activations` that are used once.
    """

    def __init__(self, sequences: Sequences, span: Span, inputs: torch.Tensor, inputs_wanted: bool) -> None:
        self.span = span
        self.inputs_wanted = inputs_wanted
        self.outputs = inputs
        self.first = span.first if inputs_wanted else min(sequences.adapted, default=span.last)
        self._sequences = sequences
        self._steps: list[_Graph | torch.Tensor] = []
        self._sizes: list[int] = []
        """Of graphs."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(step.nbytes for step in self._steps)

    @property
    def whole_nbytes(self) -> int:
        """Bytes that the graphs of all blocks would take, by those that were built."""
        return sum(self._sizes) * len(self._steps) // max(len(self._sizes), 1)

    @property
    def useful(self) -> bool:
        """Whether any block need not be computed again."""
        return any(isinstance(step, _Graph) for step in self._steps)

    @property
    def nbytes_at_least(self) -> int:
        """Bytes that it will take without any graph."""
        return self.outputs.nbytes * (self.span.last - self.first)

    def fit(self, sequences: Sequences, span: Span, inputs_wanted: bool) -> bool:
        """Whether they are of such a pass, and not used up."""
        ours = self._sequences
        same = (*ours.counts, ours.seed) == (*sequences.counts, sequences.seed) and ours.adapter == sequences.adapter
        whole = len(self._steps) == span.last - self.first
        return same and span == self.span and whole and (self.inputs_wanted or not inputs_wanted)

    def build(self, room: int) -> Generator[None, None, None]:
        """Compute forwards; graphs and all that goes into blocks shall take no more than `room` bytes together."""
        sequences, left = self._sequences, room - self.nbytes_at_least
        for block in self.span:
            if block < self.first:
                self.outputs = sequences.forward(block, self.outputs)
            elif left > 0 and left >= max(self._sizes, default=0):
                graph = _graph(sequences, block, self.outputs, learns=self._learns(block))
                self._sizes.append(graph.nbytes)
                left -= graph.nbytes
                self._steps.append(graph if left >= 0 else graph.given.detach())
                self.outputs = graph.made.detach()
            else:
                self._steps.append(self.outputs)
                self.outputs = sequences.forward(block, self.outputs)
            yield

    def _learns(self, block: int) -> bool:
        return self.inputs_wanted or block > self.first

    def consume(
        self, gradient: torch.Tensor, inputs_wanted: bool
    ) -> Generator[None, None, tuple[torch.Tensor, dict[Place, Pair]]]:
        """As `gradients`."""
        found = dict[Place, Pair]()
        for block in reversed(range(self.first, self.span.last)):
            step = self._steps.pop()
            if not isinstance(step, _Graph):
                step = _graph(self._sequences, block, step, learns=inputs_wanted or block > self.first)
                yield
            gradient, pairs = step.back(gradient, inputs_wanted or block > self.first)
            found |= pairs
            yield
        return gradient, found


def gradients(
    sequences: Sequences,
    span: Span,
    inputs: torch.Tensor,
    gradient: torch.Tensor,
    *,
    inputs_wanted: bool = True,
    room: int = 0,
) -> Generator[None, None, tuple[torch.Tensor, dict[Place, Pair]]]:
    """Of the inputs, `[0, hidden_size]` unless they are wanted, and of the adapter's matrices, from those of the
    outputs; `room`: bytes that may be taken meanwhile, beside what one block takes.

    Where no inputs' are wanted, nothing before the first block with an adapter is computed with gradients.
    """
    if len(span) > 1 and inputs.nbytes * len(span) > max(room, LEAST_ROOM):
        return (yield from _by_halves(sequences, span, inputs, gradient, inputs_wanted=inputs_wanted, room=room))
    activations = BlockActivations(sequences, span, inputs, inputs_wanted)
    yield from activations.build(room)
    return (yield from activations.consume(gradient, inputs_wanted))


def _by_halves(
    sequences: Sequences, span: Span, inputs: torch.Tensor, gradient: torch.Tensor, *, inputs_wanted: bool, room: int
) -> Generator[None, None, tuple[torch.Tensor, dict[Place, Pair]]]:
    """The second half first, for which the first is computed without anything being kept."""
    middle = span.first + len(span) // 2
    early, late = Span(span.first, middle), Span(middle, span.last)
    between = inputs
    for block in early:
        between = sequences.forward(block, between)
        yield
    goes_on = inputs_wanted or any(block in early for block in sequences.adapted)
    gradient, found = yield from gradients(sequences, late, between, gradient, inputs_wanted=goes_on, room=room)
    if not goes_on:
        return gradient, found
    gradient, others = yield from gradients(sequences, early, inputs, gradient, inputs_wanted=inputs_wanted, room=room)
    return gradient, found | others
