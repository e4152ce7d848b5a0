"""Gradients through the blocks of a span: computed again from their inputs, then backwards by torch's autograd.

Nothing is kept between a forward and a backward pass: whoever wants gradients sends the inputs along (recomputation,
Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016), so that any server of the blocks can
give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from swarm.models.span.attention.base import Lane
from swarm.models.span.passes import Passes


def afresh(passes: Passes[Any], counts: Sequence[int], inputs: torch.Tensor) -> torch.Tensor:
    """What whole sequences become: `[T, hidden_size]`, as the inputs. `counts`: of each sequence; T is their sum."""
    lanes = [Lane(0, count, passes.new_cache()) for count in counts]
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
