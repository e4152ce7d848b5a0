"""Whole sequences through the blocks of a span, and gradients: computed again from their inputs, then backwards by
torch's autograd.

Nothing is kept between a forward and a backward pass: whoever wants gradients sends the inputs along (recomputation,
Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016), so that any server of the blocks can
give them. Both go block by block, and yield in between: others have decode steps to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from swarm.models.lora import Pair, Place
from swarm.models.span.attention.base import Lane
from swarm.models.span.passes import Passes
from swarm.types import Span

Matrices = Mapping[Place, Pair]


@dataclass(frozen=True, slots=True)
class Sequences:
    """What goes through the blocks together. `counts`: positions of each; `adapter`: what is added; `seed`: of what
    that drops, another for each sequence, 0 for nothing; `narrow`: lets the model have these blocks only."""

    passes: Passes[Any]
    narrow: Callable[[Span], None]
    counts: Sequence[int]
    adapter: Matrices | None = None
    seed: int = 0

    def through(self, block: int, hidden: torch.Tensor, adapter: Matrices | None) -> torch.Tensor:
        """`[T, hidden_size]` → the same."""
        self.narrow(Span(block, block + 1))
        seeds = [b"%d:%d" % (self.seed, index) if self.seed else b"" for index in range(len(self.counts))]
        lanes = [
            Lane(0, count, self.passes.new_cache(), adapter=adapter, seed=seed)
            for count, seed in zip(self.counts, seeds, strict=True)
        ]
        return self.passes.run(lanes, hidden.unsqueeze(0))[0]

    @torch.inference_mode()
    def forward(self, block: int, hidden: torch.Tensor) -> torch.Tensor:
        """As `through`, without gradients."""
        return self.through(block, hidden, self.adapter)


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    """One block's part of the way: what went in and came out, and the matrices beside its layers, which learn."""

    given: torch.Tensor
    made: torch.Tensor
    learning: dict[Place, Pair]

    def back(self, gradient: torch.Tensor, inputs_wanted: bool) -> tuple[torch.Tensor, dict[Place, Pair]]:
        """Gradients of what went in, `[0, hidden_size]` unless they are wanted, and of the matrices."""
        matrices = [matrix for pair in self.learning.values() for matrix in (pair.a, pair.b)]
        wanted = [self.given, *matrices] if inputs_wanted else matrices
        found = list(torch.autograd.grad(self.made, wanted, gradient, allow_unused=True, materialize_grads=True))
        of_given = found.pop(0) if inputs_wanted else gradient[:0]
        pairs = zip(found[::2], found[1::2], strict=True)
        return of_given, {place: Pair(a, b) for place, (a, b) in zip(self.learning, pairs, strict=True)}


@torch.enable_grad()
def _stage(sequences: Sequences, block: int, hidden: torch.Tensor, *, learns: bool) -> _Stage:
    """`learns`: whether a gradient of what goes in is wanted."""
    given = hidden.detach().clone().requires_grad_(learns)
    adapter = sequences.adapter or {}
    learning = {
        place: replace(pair, a=_learning(pair.a), b=_learning(pair.b))
        for place, pair in adapter.items()
        if place.block == block
    }
    return _Stage(given, sequences.through(block, given, learning or None), learning)


def _learning(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.detach().clone().requires_grad_()


def afresh(sequences: Sequences, span: Span, inputs: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    """What whole sequences become: `[T, hidden_size]`, as the inputs."""
    hidden = inputs
    for block in span:
        hidden = sequences.forward(block, hidden)
        yield
    return hidden


def gradients(
    sequences: Sequences, span: Span, inputs: torch.Tensor, gradient: torch.Tensor, *, inputs_wanted: bool = True
) -> Generator[None, None, tuple[torch.Tensor, dict[Place, Pair]]]:
    """Of the inputs, `[0, hidden_size]` unless they are wanted, and of the adapter's matrices, from those of the
    outputs.

    Where no inputs' are wanted, nothing before the first block with an adapter is recomputed with gradients.
    """
    adapted = {place.block for place in sequences.adapter or ()}
    first = span.first if inputs_wanted else min(adapted, default=span.last)
    hidden, stages, found = inputs, list[_Stage](), dict[Place, Pair]()
    for block in span:
        if block < first:
            hidden = sequences.forward(block, hidden).clone()
        else:
            stages.append(_stage(sequences, block, hidden, learns=inputs_wanted or block > first))
            hidden = stages[-1].made
        yield
    while stages:
        gradient, pairs = stages.pop().back(gradient, inputs_wanted or bool(stages))
        found |= pairs
        yield
    return gradient, found
