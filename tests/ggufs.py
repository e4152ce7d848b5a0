"""Small GGUF files with random weights, written by the `gguf` package; transformers, which reads the same, is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from swarm.models.loading.partial import skeleton

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 96, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "starcoder2": {}, "stablelm": {}, "nemotron": {}, "falcon": {},
    "phi3": {"pad_token_id": 0, "eos_token_id": 2},
    "qwen3": {"head_dim": 128}, "gemma2": {"sliding_window": 16}, "gemma3": {"sliding_window": 16},
    "qwen2moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
                 "shared_expert_intermediate_size": 128},
    "qwen3moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "gpt-oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64, "sliding_window": 16},
    "gpt2": {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "bloom": {"hidden_size": 256, "n_layer": 2, "n_head": 4},
}  # fmt: skip
NAMES = {"gpt-oss": "gpt_oss", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
MORE = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
          "Q5_K": (0, 2), "Q6_K": (208,), "Q8_0": (0,)}  # fmt: skip
"""Where numbers of 16 bits lie in a group; of the other types at the beginning."""


def small_config(architecture: str, **changes: Any) -> PretrainedConfig:
    """Of a tiny model; architectures as GGUF files call them."""
    name = NAMES.get(architecture, architecture)
    kind = CONFIG_MAPPING[{"gemma3": "gemma3_text"}.get(name, name)]
    own = CONFIGS[architecture]
    sizes = {"vocab_size": 96} if "n_layer" in own else SIZES
    if architecture == "falcon":
        sizes = {name: size for name, size in SIZES.items() if name not in ("head_dim", "num_key_value_heads")}
    return kind(**{**sizes, **own, **changes})


def packed(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random groups of a type, as bytes `[…, bytes of a row]`; with F32, F16 and BF16 numbers."""
    if kind in ("F32", "F16", "BF16"):
        numbers = rng.normal(size=shape).astype(np.float32) * 0.1
        return gguf.quantize(numbers, GGMLQuantizationType[kind])
    count, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    groups = rng.integers(0, 256, (*shape[:-1], shape[-1] // count, size), dtype=np.uint8)
    if kind == "MXFP4":
        groups[..., 0] = rng.integers(110, 124, groups.shape[:-1])
    elif kind == "IQ1_M":  # its half is spread over four bytes
        groups[..., 49::2] = groups[..., 49::2] & 0x0F | np.array([0x00, 0x00, 0x00, 0x20], np.uint8)
    else:
        for at in HALVES.get(kind, (0,)):
            groups[..., at : at + 2] = rng.uniform(0.001, 0.02, (*groups.shape[:-1], 1)).astype("<f2").view(np.uint8)
    return groups.reshape(*shape[:-1], -1)


def write(
    path: Path,
    architecture: str = "llama",
    kinds: tuple[str, ...] = ("Q4_1",),
    *,
    config: PretrainedConfig | None = None,
    metadata: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    only: tuple[str, ...] | None = None,
    more: dict[str, np.ndarray] | None = None,
    tied: bool = True,
    embeddings: str = "Q8_0",
) -> Path:
    """Write a file; matrices of blocks are of these types in turn, vectors F32."""
    config = config or small_config(architecture)
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**described(architecture, config), **(metadata or {})}.items():
        _add(writer, key, value)
    shapes = file_shapes(architecture, config)
    if tied:
        shapes.pop("output.weight", None)
    for turn, (name, shape) in enumerate(sorted(shapes.items())):
        block = name.startswith("blk.") and len(shape) > 1
        block &= not name.endswith(".bias")
        kind = kinds[turn % len(kinds)] if block else embeddings if name.endswith("d.weight") else "F32"
        if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]:
            kind = "F32"
        content = packed(kind, shape, rng)
        if name not in without and (only is None or name in only):
            _add_tensor(writer, name, content, kind)
    for name, numbers in (more or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def described(architecture: str, config: PretrainedConfig) -> dict[str, Any]:
    """The metadata that tells a configuration, and a vocabulary of letters."""
    table = GGUF_CONFIG_MAPPING[NAMES.get(architecture, architecture)] | MORE
    found: dict[str, Any] = {}
    for key, name in table.items():
        value = getattr(config, name, None) if name else None
        if name == "rope_theta":
            theta = config.rope_parameters
            value = theta.get("rope_theta", theta.get("full_attention", {}).get("rope_theta")) if theta else None
        if value is not None:
            found[f"{architecture}.{key}"] = value
    if architecture == "gpt-oss":
        said, scaling = config.rope_parameters, "gpt-oss.rope.scaling"
        found |= {f"{scaling}.type": "yarn", f"{scaling}.factor": said["factor"]}
        found |= {f"{scaling}.original_context_length": said["original_max_position_embeddings"]}
        found |= {"gpt-oss.attention.key_length": config.head_dim}
    if architecture == "gpt2":
        found["gpt2.context_length"] = config.n_positions
    tokens = [chr(0x61 + token) if token < 26 else f"t{token}" for token in range(config.vocab_size)]
    tokens[26:28] = ["ab", "cd"]
    return found | {
        "general.name": "small",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": ["a b", "c d"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


def file_shapes(architecture: str, config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that llama.cpp would write of such a model, with their shapes."""
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table, found = gguf.get_tensor_name_map(arch, config.num_hidden_layers), {}
    for place, tensor in skeleton(config).state_dict().items():
        shape, (stem, _, suffix) = tuple(tensor.shape), place.rpartition(".")
        if architecture == "gpt-oss" and "experts" in place:
            found |= _of_gpt_oss(place, shape)
            continue
        if place.endswith("experts.gate_up_proj"):
            block, half = place.split(".")[2], (shape[0], shape[1] // 2, shape[2])
            found |= {f"blk.{block}.ffn_{part}_exps.weight": half for part in ("gate", "up")}
            continue
        name = table.get_name(place.removesuffix(".weight").removesuffix(".bias")) or table.get_name(stem)
        name = name or table.get_name(place.split(".", 1)[1].rpartition(".")[0])
        if name is None and place == "lm_head.weight":  # such a model has none of its own
            continue
        assert name, place
        if place.endswith("shared_expert_gate.weight"):
            shape = shape[1:]
        if architecture == "gpt2" and len(shape) == 2 and name.startswith("blk."):
            shape = shape[::-1]
        found[f"{name}.{suffix if suffix in ('weight', 'bias') else 'weight'}"] = shape
    return found


def _of_gpt_oss(place: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Experts: gate and up apart, weights turned."""
    name, kind = f"blk.{place.split('.')[2]}.ffn", "bias" if place.endswith("_bias") else "weight"
    turned = shape if kind == "bias" else (shape[0], shape[2], shape[1])
    if "down" in place:
        return {f"{name}_down_exps.{kind}": turned}
    half = (turned[0], turned[1] // 2, *turned[2:])
    return {f"{name}_{part}_exps.{kind}": half for part in ("gate", "up")}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, content: np.ndarray, kind: str) -> None:
    plain = kind in ("F32", "F16")
    writer.add_tensor(name, content, raw_dtype=None if plain else GGMLQuantizationType[kind])
