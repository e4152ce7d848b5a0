"""Plain linear layers of a span's blocks, laid out for the processor where that is the same."""

from __future__ import annotations

import logging
from typing import Any

import torch

from swarm.models.linear.laid_out import LaidOutLinear, use_laid_out, use_plain
from swarm.models.span.base_model import BaseModel
from swarm.models.span.offload import is_offloaded
from swarm.models.span.passes import Passes
from swarm.models.span.probe import close, random_states, run_whole

log = logging.getLogger(__name__)

POSITIONS = 7


@torch.inference_mode()
def lay_out(model: BaseModel, passes: Passes[Any]) -> None:
    """Lay the weights out, unless the blocks look into them; not of those that are in main memory."""
    blocks = [block for block in model.blocks if not is_offloaded(block)]
    (hidden,) = random_states(model, [POSITIONS])
    right = run_whole(passes, hidden)
    if not sum(use_laid_out(block) for block in blocks):
        return
    try:
        same = close(run_whole(passes, hidden), right, model.quantized)
    except Exception as error:
        log.debug("the weights stay as they are: %r", error)
        same = False
    if not same:
        for block in blocks:
            use_plain(block)
    elif not model.quantized:
        model.fewest_rows = max(
            layer.fewest_rows for block in blocks for layer in block.modules() if isinstance(layer, LaidOutLinear)
        )
