"""What a model is and what its blocks cost, from its configuration alone: no tensor is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swarm.config import FILE
from swarm.models.blocks import find_blocks, text_config
from swarm.models.linear.experts import expert_weights
from swarm.models.linear.schemes import BITS, can_quantize
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading.partial import skeleton
from swarm.models.loading.weights import dtype_of, quantization_of
from swarm.types import ModelInfo, Span

CONFIG = "config.json"
SAMPLE = 200
"""Weights by which is told how many bits a checkpoint has for one."""


@dataclass(frozen=True, slots=True)
class Description:
    """A model in numbers. `parameters`, `weight_bytes`: of each block, as `quantization` has it; `cache_bytes`: of each
    block, for one position; `ends_bytes`: of everything that is not a block, in `dtype`; `joined`: runs of blocks that
    must stay together."""

    info: ModelInfo
    model_type: str
    vocabulary: int
    tied: bool
    dtype: torch.dtype
    quantization: str
    parameters: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    cache_bytes: tuple[int, ...]
    ends_bytes: int
    joined: tuple[Span, ...] = ()

    @property
    def head_bytes(self) -> int:
        """Of the head in memory, at most: on a grid it takes less."""
        return self.vocabulary * self.info.hidden_size * self.dtype.itemsize


def describe(
    source: str | Path | Checkpoint,
    *,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> Description:
    """What a model is, without loading it; `dtype`: of caches and of weights that are on no grid, by default as when it
    is loaded, as is `quantization`.

    Raises ModelNotFound, BadCheckpoint, UnsupportedModel.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, token, revision)
    (found,) = describe_each(checkpoint, [quantization], dtype)
    return found


def describe_each(
    checkpoint: Checkpoint, quantizations: Sequence[str | None], dtype: str | torch.dtype | None = None
) -> list[Description]:
    """As `describe`, by each of several schemes, of which the model's outline is made once."""
    model = skeleton(checkpoint.config, checkpoint.form)
    return [_description(checkpoint, model, quantization, dtype) for quantization in quantizations]


def _description(
    checkpoint: Checkpoint, model: Any, quantization: str | None, dtype: str | torch.dtype | None
) -> Description:
    scheme = quantization_of(checkpoint, quantization)
    compute = dtype_of(checkpoint, dtype, scheme)
    text: Any = text_config(model.config)
    layers = find_blocks(model).layers
    bits = BITS.get(scheme, _stored_bits(checkpoint) if scheme == FILE else None)
    weights = tuple(_bytes(layer, compute, bits) for layer in layers)
    return Description(
        info=checkpoint.info(),
        model_type=checkpoint.config.model_type,
        vocabulary=int(text.vocab_size),
        tied=bool(getattr(checkpoint.config, "tie_word_embeddings", False)),
        dtype=compute,
        quantization=scheme,
        parameters=tuple(_count(layer) for layer in layers),
        weight_bytes=weights,
        cache_bytes=tuple(cache_bytes(layer, text, compute) for layer in layers),
        ends_bytes=(_count(model) - sum(map(_count, layers))) * compute.itemsize,
        joined=checkpoint.joined,
    )


def outline(source: str | Path, *, dtype: str | None = None, quantization: str | None = None) -> Description:
    """As `describe`, of a model whose weights need not be there: a config.json will do. Its key is none.

    Raises ModelNotFound, BadCheckpoint, UnsupportedModel.
    """
    path = Path(source)
    checkpoint = open_checkpoint(path.parent if path.name == CONFIG and path.is_file() else source)
    vars(checkpoint)["key"] = ""
    return describe(checkpoint, dtype=dtype, quantization=quantization)


def cache_bytes(layer: nn.Module, config: Any, dtype: torch.dtype) -> int:
    """Bytes of KV cache that one position takes in a block: keys and values of all KV heads.

    An estimate before anything is loaded; `SpanModel.reserved_bytes` is measured.
    """
    if getattr(config, "kv_lora_rank", None):  # keys and values are expanded to all heads before they are kept
        heads = config.num_attention_heads
        return int(heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) * dtype.itemsize)
    keys, values = (_projection(layer, names) for names in (("k_proj", "key"), ("v_proj", "value")))
    if keys is not None:
        return (keys + (keys if values is None else values)) * dtype.itemsize
    return 2 * _kv_width(config) * dtype.itemsize


def _projection(layer: nn.Module, names: Sequence[str]) -> int | None:
    """Numbers that the projection of that name puts out; None where there is none."""
    for name, module in layer.named_modules():
        if name.rpartition(".")[2] in names and isinstance(module, nn.Linear):
            return module.out_features
    return None


def _kv_width(config: Any) -> int:
    """Numbers in the keys of one position, from the configuration; 0 where it knows no heads."""
    try:
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return int((getattr(config, "num_key_value_heads", None) or heads) * width)
    except AttributeError:
        return 0


def _bytes(block: nn.Module, dtype: torch.dtype, bits: float | None) -> int:
    """Bytes of a block's weights, of which those of linear layers and experts take so many `bits` (None: as others)."""
    linear = [module for module in block.modules() if type(module) is nn.Linear and can_quantize(module.in_features)]
    experts = sum(getattr(owner, name).numel() for owner, name in expert_weights(block))
    on_grid = sum(module.weight.numel() for module in linear) + experts if bits is not None else 0
    return (_count(block) - on_grid) * dtype.itemsize + int(on_grid * (bits or 0) / 8)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _stored_bits(checkpoint: Checkpoint) -> float:
    """Of a weight on the checkpoint's grid, on average over a part of what is on one, which is in few of its files."""
    tensors = checkpoint.tensors
    every = (name for name in sorted(tensors.names()) if tensors.on_grid(name) or tensors.experts(name) is not None)
    named = list(islice(every, SAMPLE))
    numbers = sum(prod(tensors.shape(name)) for name in named)
    return 8 * sum(tensors.grid_nbytes(name) for name in named) / numbers if numbers else 8.0 * torch.float32.itemsize
