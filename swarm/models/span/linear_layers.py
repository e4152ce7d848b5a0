"""Which linear layers the blocks of a span compute with: those that suit the processor, or 8-bit ones."""

from __future__ import annotations

import logging
from typing import Any

import torch

from swarm.errors import UnsupportedModel
from swarm.models.linear.int8 import INT8, use_int8
from swarm.models.linear.onednn import use_onednn, use_plain
from swarm.models.span.base_model import BaseModel
from swarm.models.span.passes import Passes
from swarm.models.span.probe import close, random_states, run_whole

log = logging.getLogger(__name__)

INT8_ERROR = 0.25
"""How far from the plain blocks, as a share of their output's norm, those with 8-bit layers may be on random inputs."""
POSITIONS = 7


@torch.inference_mode()
def choose_linear_layers(model: BaseModel, passes: Passes[Any], quantization: str) -> None:
    """Replace the blocks' linear layers. Raises UnsupportedModel where 8-bit ones are asked for and are no good."""
    (hidden,) = random_states(model, [POSITIONS])
    right = run_whole(passes, hidden)
    if quantization == INT8:
        _use_int8(model, passes, hidden, right)
    else:
        _try_onednn(model, passes, hidden, right)


def _try_onednn(model: BaseModel, passes: Passes[Any], hidden: torch.Tensor, right: torch.Tensor) -> None:
    """Lay the weights out for this processor, unless the blocks look into them."""
    for block in model.blocks:
        use_onednn(block)
    try:
        same = close(run_whole(passes, hidden), right)
    except Exception as error:
        log.debug("the weights stay as they are: %r", error)
        same = False
    if not same:
        for block in model.blocks:
            use_plain(block)


def _use_int8(model: BaseModel, passes: Passes[Any], hidden: torch.Tensor, right: torch.Tensor) -> None:
    """Let the blocks compute with 8-bit integers. Raises UnsupportedModel where that is something else."""
    for block in model.blocks:
        use_int8(block)
    try:
        error = float((run_whole(passes, hidden) - right).float().norm() / right.float().norm())
    except Exception as failed:
        raise UnsupportedModel(f"its blocks do not run with 8-bit layers: {failed}") from failed
    if not error <= INT8_ERROR:
        raise UnsupportedModel(f"8-bit integers change what its blocks compute by {error:.0%}")
