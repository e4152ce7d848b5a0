"""A model's configuration out of the metadata of a GGUF file, by transformers' own tables of what the keys mean.

transformers' reader of the same is not used: it takes seconds for a vocabulary, and trusts the file. It also passes
over what the file says of scaled rotary embeddings, which `rotary` adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS, get_gguf_config

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.loading.gguf.header import Header
from swarm.models.loading.gguf.rotary import rotary

TABLES: dict[str, Any] = dict(GGUF_CONFIG_MAPPING)
RENAMED = {"gpt-oss": "gpt_oss", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "minimax-m2": "minimax_m2"}
"""Architectures that transformers calls otherwise."""
TEXT_PART = {"gemma3": "gemma3_text", "gemma4": "gemma4_text"}
"""Models with several parts, of which the file holds one."""
REFUSED = {
    "gemma4": "transformers does not read all of its configuration out of GGUF files",
    "deci": "transformers has no such architecture of its own",
    "t5": "its decoder attends to an encoder",
    "umt5": "its decoder attends to an encoder",
    "t5encoder": "it generates nothing",
    "mamba": "its blocks have no attention, and cannot be cut",
    "minimax_m2": "transformers does not say how its experts are chosen",
    "minimax-m2": "transformers does not say how its experts are chosen",
}
"""Architectures of which transformers' tables tell something, and that are not read."""
MORE = {
    "attention.key_length": "head_dim",
    "context_length": "n_positions",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Keys that transformers' tables lack for some architectures whose configuration has such an entry."""
TIED = ("falcon", "bloom")
"""Architectures whose head is the embeddings although the file may have a copy."""


def known() -> list[str]:
    """The architectures that are read, as GGUF files call them."""
    files = {name: file for file, name in RENAMED.items()}
    tables = {files.get(name, name) for name in GGUF_CONFIG_MAPPING if name not in ("general", "tokenizer")}
    return sorted(tables - REFUSED.keys() - {"mistral"})


def check(architecture: str) -> None:
    """Raises UnsupportedModel for an architecture that is not read."""
    if architecture in known():
        return
    why = f" ({REFUSED[architecture]})" if architecture in REFUSED else ""
    raise UnsupportedModel(f"GGUF files of {architecture!r} are not read{why}; those of {', '.join(known())} are")


def configuration(header: Header, factors: Sequence[float] | None = None) -> PretrainedConfig:
    """Of the model in a file; `factors`: as for `rotary`.

    Raises UnsupportedModel for an architecture that is not read, BadCheckpoint for what says nothing sensible.
    """
    check(header.architecture)
    blocks = header.metadata.get(f"{header.architecture}.block_count")
    if type(blocks) is not int or not 0 < blocks <= len(header.tensors):
        raise BadCheckpoint(f"it says that it has {blocks!r} blocks, with {len(header.tensors)} tensors in all")
    try:
        values = _values(header, factors)
        config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except UnsupportedModel:
        raise
    except Exception as error:  # configurations say in many ways that a value is not what they expect
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise BadCheckpoint(f"its metadata is no configuration of {header.architecture}: {words}") from error
    if not isinstance(config, PretrainedConfig):
        raise BadCheckpoint(f"its metadata is no configuration of {header.architecture}")
    return config


def _values(header: Header, factors: Sequence[float] | None) -> dict[str, Any]:
    architecture, metadata = header.architecture, header.metadata
    if architecture in GGUF_CONFIG_ARCHS:
        lengths = {key: count for key, count in header.lengths.items() if key not in metadata}
        return dict(get_gguf_config({**metadata, **lengths}, tuple(header.tensors)))
    name = _name(header)
    values: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in header.tensors or architecture in TIED}
    values |= GGUF_CONFIG_DEFAULTS_MAPPING.get(name, {})
    values |= _looked_at(header)
    values |= _by_table(header, architecture, TABLES[name])
    values |= _by_table(header, "tokenizer", TABLES["tokenizer"])
    values["model_type"] = TEXT_PART.get(name, name)
    values.setdefault("vocab_size", header.lengths.get("tokenizer.ggml.tokens"))
    if not values["vocab_size"]:
        raise BadCheckpoint("it says neither how large its vocabulary is nor what is in it")
    values |= _more(header, values)
    return values | rotary(header, values, factors)


def _name(header: Header) -> str:
    """As transformers calls the architecture: it keeps Mistral apart by what the file is called."""
    if header.architecture == "llama" and header.metadata.get("general.name") == "mistral":
        return "mistral"
    return RENAMED.get(header.architecture, header.architecture)


def _by_table(header: Header, prefix: str, table: dict[str, str | None]) -> dict[str, Any]:
    """What stands under the prefix, by its names in transformers."""
    found = {}
    for key, name in table.items():
        value = header.metadata.get(f"{prefix}.{key}")
        if name is None or value is None:
            continue
        if isinstance(value, list):
            value = _one(value, f"{prefix}.{key}")
        found[name] = value
    return found


def _one(values: list[Any], key: str) -> Any:
    """What all blocks have. Raises UnsupportedModel where they differ."""
    if len(set(values)) != 1:
        raise UnsupportedModel(f"{key} differs from block to block, which this architecture cannot be told")
    return values[0]


def _looked_at(header: Header) -> dict[str, Any]:
    """What only the tensors tell."""
    if header.architecture != "stablelm":
        return {}
    return {
        "use_qkv_bias": any("attn_q.bias" in name for name in header.tensors),
        "use_parallel_residual": not any("ffn_norm" in name for name in header.tensors),
    }


def _more(header: Header, values: dict[str, Any]) -> dict[str, Any]:
    kind = CONFIG_MAPPING[values["model_type"]]
    there = {key: name for key, name in MORE.items() if name not in values and hasattr(kind, name)}
    return _by_table(header, header.architecture, dict(there))
