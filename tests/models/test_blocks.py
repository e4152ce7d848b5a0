"""Where the blocks are is found by structure, in models of every shape."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import LlamaConfig

from survey.configs import BLOCKS, small_config
from survey.reference import build
from swarm.errors import UnsupportedModel
from swarm.models.blocks import context_length, find_blocks, recount

PREFIXES = {
    "llama": "model.layers.",
    "gpt2": "transformer.h.",
    "gpt_neox": "gpt_neox.layers.",
    "opt": "model.decoder.layers.",
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_the_list_of_blocks(kind: str) -> None:
    model: Any = build(small_config(kind))
    blocks = find_blocks(model)
    assert (blocks.prefix, blocks.total, len(blocks.layers)) == (PREFIXES[kind], BLOCKS, BLOCKS)
    assert getattr(blocks.owner, blocks.attribute) is blocks.layers
    assert all(name in model.state_dict() for name in (f"{blocks.prefix}0.{n}" for n in blocks.layers[0].state_dict()))


@pytest.mark.parametrize("left", [0, 2])
def test_it_is_found_when_only_some_are_left(left: int) -> None:
    model: Any = build(small_config("llama"))
    model.model.layers = nn.ModuleList(list(model.model.layers)[:left])
    blocks = find_blocks(model)
    assert (len(blocks.layers), blocks.total) == (left, BLOCKS)


def test_no_list_and_two_of_them_are_refused() -> None:
    model: Any = build(small_config("llama"))
    model.model.others = nn.ModuleList(list(model.model.layers))
    with pytest.raises(UnsupportedModel, match=r"model\.layers\., model\.others\."):
        find_blocks(model)
    del model.model.others, model.model.layers
    with pytest.raises(UnsupportedModel, match="found: none"):
        find_blocks(model)


@pytest.mark.parametrize(
    ("entries", "length"),
    [
        ({}, 128),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, 128),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, 128),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                    "original_max_position_embeddings": 32,
                }
            },
            32,
        ),
    ],
)
def test_the_context_ends_where_what_is_cached_would_change(entries: dict[str, Any], length: int) -> None:
    config = LlamaConfig(
        max_position_embeddings=128, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, **entries
    )
    assert context_length(config) == length


def test_a_configuration_without_a_limit_has_none() -> None:
    assert context_length(small_config("bloom")) is None


def test_a_configuration_counts_other_blocks_past_its_own_validation() -> None:
    config: Any = small_config("gemma2")
    recount(config, 2, {"layer_types": config.layer_types[:2]})
    assert (config.num_hidden_layers, len(config.layer_types)) == (2, 2)
    gpt2: Any = small_config("gpt2")
    recount(gpt2, 3)
    assert gpt2.num_hidden_layers == gpt2.n_layer == 3
