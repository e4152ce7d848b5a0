"""A Llama's GGUF file as a folder in the usual format of transformers: weights, configuration, tokenizer, template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

from swarm.demo.gguf import Floats, Gguf

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_CONTROL = 3
"""The type of tokens that are never written by a user."""
_OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_AROUND = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def write_checkpoint(file: Gguf, folder: Path, *, progress: bool) -> None:
    """Write `FILES` into the folder; weights in float32. Raises BadCheckpoint, OSError."""
    own = {
        "config.json": configuration(file),
        "generation_config.json": special_tokens(file),
        "tokenizer_config.json": tokenizer_configuration(file),
    }
    for name, content in own.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer(file).save(str(folder / "tokenizer.json"))
    names = tqdm(file.stored, desc="converting", unit=" tensors", disable=not progress, leave=False)
    weights = {_named(name): _in_order(file, name) for name in names}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configuration(file: Gguf) -> dict[str, Any]:
    """What config.json says."""
    of = {key.removeprefix("llama."): value for key, value in file.metadata.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(of["tokenizer.ggml.tokens"]),
        "hidden_size": of["embedding_length"],
        "intermediate_size": of["feed_forward_length"],
        "num_hidden_layers": of["block_count"],
        "num_attention_heads": of["attention.head_count"],
        "num_key_value_heads": of["attention.head_count_kv"],
        "head_dim": of["rope.dimension_count"],
        "max_position_embeddings": of["context_length"],
        # Kept as a float of 32 bits, written with as few digits as say the same.
        "rms_norm_eps": float(str(np.float32(of["attention.layer_norm_rms_epsilon"]))),
        "rope_parameters": {"rope_type": "default", "rope_theta": of["rope.freq_base"]},
        "tie_word_embeddings": "output.weight" not in file.stored,
        **special_tokens(file),
    }


def special_tokens(file: Gguf) -> dict[str, int]:
    """The ids of tokens that mean something to `generate`."""
    kinds = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {name: file.metadata[f"tokenizer.ggml.{kind}_token_id"] for name, kind in kinds.items()}


def tokenizer(file: Gguf) -> Tokenizer:
    """Byte-level BPE; digits stand alone, as in every model whose tokenizer is called smollm."""
    tokens, kinds = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in file.metadata["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return made


def tokenizer_configuration(file: Gguf) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    tokens = file.metadata["tokenizer.ggml.tokens"]
    special = {name.removesuffix("_id"): tokens[number] for name, number in special_tokens(file).items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.metadata["llama.context_length"],
        "chat_template": file.metadata["tokenizer.chat_template"],
        "unk_token": tokens[file.metadata["tokenizer.ggml.unknown_token_id"]],
        **special,
    }


def _named(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{_AROUND[stem]}.{kind}"
    _, block, part = stem.split(".", 2)
    return f"model.layers.{block}.{_OF_BLOCK[part]}.{kind}"


def _in_order(file: Gguf, name: str) -> Floats:
    """Queries and keys are stored for another pairing of a head's halves in the rotary embedding."""
    weight = file.tensor(name)
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}.get(name.split(".")[-2])
    if heads is None:
        return weight
    count, columns = file.metadata[heads], weight.shape[1]
    turned = weight.reshape(count, -1, 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(turned).reshape(weight.shape)
