"""What of a model's configuration decides what it computes: that, in one form, is part of the model's identity.

The library reads the file, so that defaults written out or left out, old names and new ones, and the order of entries
are one configuration. Left out is what labels, what a caller may choose, and what only training looks at; an entry
that the library's class does not know counts only if the code of the architecture reads it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

LABELS = frozenset({
    "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "name_or_path", "id2label", "label2id",
    "num_labels", "problem_type", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix",
    "attn_implementation", "experts_implementation",
})  # fmt: skip
"""Entries that say what a checkpoint is, or how it came to be."""
CHOICES = frozenset({
    "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "use_return_dict", "use_cache",
    "chunk_size_feed_forward", "pretraining_tp", "pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id",
    "cls_token_id", "decoder_start_token_id",
})  # fmt: skip
"""Entries that callers choose: they change what is given out, not what is computed."""
TRAINING = re.compile(
    r"dropout|pdrop|layerdrop|drop_path|initializer|^init_std$|jitter|aux_loss|z_loss|gradient_checkpointing"
)
"""Names of entries that only training looks at."""
READERS = ("transformers.masking_utils", "transformers.cache_utils", "transformers.modeling_rope_utils")
"""Modules of the library that read the configurations of all architectures."""


def canonical(config: PretrainedConfig) -> dict[str, Any]:
    """The entries that decide what a model computes, where they are not the architecture's defaults."""
    kind: Any = type(config)
    default, always = _default(kind), kind.sub_configs
    found = {name: _plain(value) for name, value in _entries(config) if _matters(kind, name, value)}
    kept = {name: value for name, value in found.items() if name in always or value != default.get(name)}
    return kept | {"model_type": config.model_type}


def digest(config: PretrainedConfig) -> str:
    """Of the canonical form; 64 hex digits."""
    return hashlib.sha256(json.dumps(canonical(config), sort_keys=True).encode()).hexdigest()


def differences(one: PretrainedConfig, other: PretrainedConfig) -> list[str]:
    """The names of entries in which two configurations differ, such as `rope_parameters` or `text_config.head_dim`."""
    ones, others = dict(_flat(canonical(one))), dict(_flat(canonical(other)))
    return sorted(name for name in ones.keys() | others.keys() if ones.get(name) != others.get(name))


def is_free(config: PretrainedConfig, name: str, value: Any = 0) -> bool:
    """Whether an entry of a configuration decides nothing of what is computed."""
    return not _matters(type(config), name, value)


def _entries(config: PretrainedConfig) -> Iterator[tuple[str, Any]]:
    for name, value in config.to_dict().items():
        held = getattr(config, name, None) if name in type(config).sub_configs else None
        yield name, held if isinstance(held, PretrainedConfig) else value


def _matters(kind: Any, name: str, value: Any) -> bool:
    if name.startswith("_") or name in LABELS or name in CHOICES or TRAINING.search(name):
        return False
    if name in _declared(kind):
        return True
    return value is not None and name not in _of_generation() and _is_read(kind.__module__, name)


@cache
def _declared(kind: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind)) | frozenset(kind.sub_configs)


@cache
def _of_generation() -> frozenset[str]:
    return frozenset(vars(GenerationConfig()))  # type: ignore[no-untyped-call]


def _is_read(module: str, name: str) -> bool:
    """Whether the code around a module of configurations has that word; it counts where the code cannot be seen."""
    sources = [_source(each) for each in (module.replace("configuration_", "modeling_"), *READERS)]
    return any(source is None or re.search(rf"\b{re.escape(name)}\b", source) for source in sources)


@cache
def _source(module: str) -> str | None:
    try:
        return inspect.getsource(importlib.import_module(module))
    except (ImportError, OSError, TypeError):
        return None


@cache
def _default(kind: Any) -> dict[str, Any]:
    """The entries of a configuration of which nothing is said."""
    try:
        default = kind()
    except Exception:  # some have no defaults, and say so in ways of their own
        return {}
    return {name: _plain(value) for name, value in _entries(default)}


def _plain(value: Any) -> Any:
    """The same for what is equal: sub-configurations in canonical form, 1.0 as 1, no entries without a value."""
    if isinstance(value, PretrainedConfig):
        return canonical(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, Mapping) and name.endswith("_config"):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
