"""Gradients through the blocks of a span: computed again from their inputs, then backwards by torch's autograd.

Nothing is kept between a forward and a backward pass: whoever wants gradients sends the inputs along (recomputation,
Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016), so that any server of the blocks can
give them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from swarm.models.lora import Pair, Place
from swarm.models.span.attention.base import Lane
from swarm.models.span.passes import Passes


def afresh(
    passes: Passes[Any],
    counts: Sequence[int],
    inputs: torch.Tensor,
    adapter: Mapping[Place, Pair] | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """What whole sequences become: `[T, hidden_size]`, as the inputs. `counts`: of each sequence; T is their sum.

    `seed`: of what the adapter drops, another for each sequence; 0: it drops nothing.
    """
    seeds = [b"%d:%d" % (seed, index) if seed else b"" for index in range(len(counts))]
    lanes = [
        Lane(0, count, passes.new_cache(), adapter=adapter, seed=each)
        for count, each in zip(counts, seeds, strict=True)
    ]
    return passes.run(lanes, inputs.unsqueeze(0))[0]


@torch.enable_grad()
def gradients(
    passes: Passes[Any], counts: Sequence[int], inputs: torch.Tensor, gradients: torch.Tensor
) -> torch.Tensor:
    """Of the inputs, given those of the outputs: all `[T, hidden_size]`. `counts`: of each sequence; T is their sum."""
    hidden = inputs.detach().clone().requires_grad_()
    output = afresh(passes, counts, hidden)
    (found,) = torch.autograd.grad(output, hidden, gradients)
    return found


@torch.enable_grad()
def adapter_gradients(
    passes: Passes[Any],
    counts: Sequence[int],
    inputs: torch.Tensor,
    gradients: torch.Tensor,
    adapter: Mapping[Place, Pair],
    *,
    inputs_wanted: bool,
    seed: int,
) -> tuple[torch.Tensor, dict[Place, Pair]]:
    """As `gradients`, and those of the adapter's matrices; of the inputs `[0, hidden_size]` unless they are wanted."""
    hidden = inputs.detach().clone().requires_grad_(inputs_wanted)
    learning = {place: replace(pair, a=_learning(pair.a), b=_learning(pair.b)) for place, pair in adapter.items()}
    output = afresh(passes, counts, hidden, learning, seed)
    matrices = [matrix for pair in learning.values() for matrix in (pair.a, pair.b)]
    wanted = [hidden, *matrices] if inputs_wanted else matrices
    found = list(torch.autograd.grad(output, wanted, gradients, allow_unused=True, materialize_grads=True))
    of_inputs = found.pop(0) if inputs_wanted else hidden.detach()[:0]
    pairs = zip(found[::2], found[1::2], strict=True)
    return of_inputs, {place: Pair(a, b) for place, (a, b) in zip(learning, pairs, strict=True)}


def _learning(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.detach().clone().requires_grad_()
