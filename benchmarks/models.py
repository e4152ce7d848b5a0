"""Random models to measure with, made once and kept in `.benchmarks/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / ".benchmarks"


def llama_250m() -> Path:
    """A random Llama of 246 million parameters in float32, 16 blocks; about 1 GB on disk."""
    path = FOLDER / "llama-250m"
    if not (path / "config.json").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32_000,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            eos_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(path)
    return path


def llama_250m_in_shards() -> Path:
    """The same in files of at most 64 MB or one tensor, for who loads it file by file."""
    path = FOLDER / "llama-250m-shards"
    if not (path / "config.json").exists():
        from transformers import LlamaForCausalLM

        LlamaForCausalLM.from_pretrained(llama_250m()).save_pretrained(path, max_shard_size="64MB")
    return path


def use_quantized(module: Any, name: str) -> None:
    """Put the weight of every plain linear layer inside `module` on the grid of a scheme."""
    from torch import nn

    from swarm.models.linear.quantized import QuantizedLinear
    from swarm.models.linear.replace import replace
    from swarm.models.linear.schemes import can_quantize, quantize

    def twin(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear or not can_quantize(layer.in_features):
            return None
        return QuantizedLinear(quantize(layer.weight, name), layer.bias, layer.weight.dtype)

    replace(module, twin)
