"""Random models to measure with, made once and kept in `.benchmarks/`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / ".benchmarks"
PIECE = 1 << 24
"""Numbers that are written at once."""


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


def hybrid_120m() -> Path:
    """A random Qwen3.5 of about 120 million parameters in float32: 12 blocks, of which every fourth has attention and
    the others keep a running state."""
    path = FOLDER / "hybrid-120m"
    if not (path / "config.json").exists():
        import torch
        from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

        torch.manual_seed(0)
        config = Qwen3_5TextConfig(
            vocab_size=8_000,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            head_dim=64,
            linear_num_key_heads=8,
            linear_num_value_heads=16,
            linear_key_head_dim=64,
            linear_value_head_dim=64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            eos_token_id=None,
        )
        Qwen3_5ForCausalLM(config).save_pretrained(path)
    return path


def llama_250m_in_shards() -> Path:
    """The same in files of at most 64 MB or one tensor, for who loads it file by file."""
    path = FOLDER / "llama-250m-shards"
    if not (path / "config.json").exists():
        from transformers import LlamaForCausalLM

        LlamaForCausalLM.from_pretrained(llama_250m()).save_pretrained(path, max_shard_size="64MB")
    return path


def random_llama(name: str, shape: Mapping[str, int]) -> Path:
    """A Llama of random numbers in bfloat16, in one file that is written piece by piece: any size that the disk has."""
    import torch
    from transformers import LlamaConfig

    folder = FOLDER / name
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**shape, dtype="bfloat16", architectures=["LlamaForCausalLM"], eos_token_id=None)
    told, end = {}, 0
    for tensor, size in _tensors(config):
        begin, end = end, end + 2 * prod(size)
        told[f"{tensor}.weight"] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    header, generator = json.dumps(told).encode(), torch.Generator().manual_seed(0)
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, size in _tensors(config):
            for first in range(0, prod(size), PIECE):
                numbers = torch.empty(min(PIECE, prod(size) - first), dtype=torch.bfloat16)
                numbers = numbers.normal_(0, 0.02, generator=generator) if len(size) == 2 else numbers.fill_(1)
                file.write(numbers.view(torch.uint8).numpy().data)
    config.save_pretrained(folder)
    return folder


def _tensors(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = (config.head_dim * heads for heads in (config.num_attention_heads, config.num_key_value_heads))
    yield "model.embed_tokens", (config.vocab_size, hidden)
    for block in range(config.num_hidden_layers):
        for name, size in (
            ("self_attn.q_proj", (queries, hidden)), ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)), ("self_attn.o_proj", (hidden, queries)),
            ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)), ("mlp.down_proj", (hidden, inner)),
            ("input_layernorm", (hidden,)), ("post_attention_layernorm", (hidden,)),
        ):  # fmt: skip
            yield f"model.layers.{block}.{name}", size
    yield "model.norm", (hidden,)
    yield "lm_head", (config.vocab_size, hidden)


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
