"""Other linear layers are used where they compute what the blocks' own did, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from survey.configs import small_config
from survey.reference import build
from swarm.models.linear.laid_out import LaidOutLinear
from swarm.models.span.attention.ragged import RaggedAttention
from swarm.models.span.base_model import BaseModel
from swarm.models.span.linear_layers import lay_out
from swarm.models.span.passes import Batched
from swarm.types import Span

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def chosen(change: Any = None) -> set[type[nn.Module]]:
    """The kinds of linear layers that the blocks of a llama have in the end."""
    model: Any = build(small_config("llama"))
    if change is not None:
        change(model)
    base = BaseModel(model, Span(0, 3))
    base.check_identity()
    base.use_attention(RaggedAttention())
    lay_out(base, Batched(base, RaggedAttention()))
    kinds = (nn.Linear, LaidOutLinear)
    return {type(module) for block in base.blocks for module in block.modules() if isinstance(module, kinds)}


@needs_onednn
def test_weights_are_laid_out_for_the_processor() -> None:
    assert chosen() == {LaidOutLinear}


@needs_onednn
def test_blocks_that_look_into_their_weights_keep_them() -> None:
    def look(model: Any) -> None:
        model.model.layers[1].mlp.register_forward_hook(
            lambda module, args, output: output + module.down_proj.weight[0, 0] * 0.0
        )

    assert chosen(look) == {nn.Linear}
