"""Tiny checkpoints of real architectures, written as their authors would publish them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

# These models are so small that threads would only wait for each other.
torch.set_num_threads(1)

BLOCKS = 4
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "llama": {},
    "gemma2": {"sliding_window": 8},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "decoder_sparse_step": 2,
    },
    "gpt2": {"n_layer": BLOCKS, "n_embd": 32, "n_head": 4, "n_positions": 64},
}
MODEL_TYPES = tuple(OWN)
Save = Callable[..., tuple[Path, PreTrainedModel]]


def make(model_type: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A model with random weights; norms and biases are random too, so that none is taken for another."""
    sizes = {} if model_type == "gpt2" else SIZES
    common = {name: SIZES[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    config = CONFIG_MAPPING[model_type](**{**common, **sizes, **OWN[model_type], **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Make a model of a type and save it: `save("llama", shard="30KB", name="base", seed=0, **config)`."""

    def run(
        model_type: str, *, shard: str = "1GB", name: str = "model", seed: int = 0, **changes: object
    ) -> tuple[Path, PreTrainedModel]:
        model = make(model_type, seed, **changes)
        model.save_pretrained(tmp_path / name, max_shard_size=shard)
        return tmp_path / name, model

    return run
