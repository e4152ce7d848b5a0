"""FP8 with a scale for each block, tensor or row: DeepSeek's fine-grained FP8, MXFP8, and fbgemm's rows.

Only weights are read: activations stay as the model computes them, whether the authors quantized them while computing
(`activation_scheme` dynamic) or by scales in the file (static), which are left out. So does transformers without a GPU
that multiplies FP8.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from swarm.models.loading.layouts.float8 import FLOATS, ScaledWeight
from swarm.models.loading.layouts.stored import Settings, Stored

SUFFIXES = ("_scale_inv", "_scale")
"""Of a scale's name, behind the name of its weight."""
BESIDE = ("scale", "qscale_weight")
"""Names of a scale beside `weight` (DeepSeek V4, Mistral Large)."""
BLOCK = (128, 128)


def find(stored: Stored, settings: Settings, dtype: torch.dtype) -> Mapping[str, ScaledWeight]:
    """The quantized weights by their names in the model; `dtype`: in which they are given."""
    names = frozenset(stored.names())
    said = settings.get("weight_block_size", BLOCK)
    block = (int(said[0]), int(said[1])) if said else None
    pairs = {weight: name for name in names if (weight := _weight(name)) in names}
    return {
        weight: ScaledWeight(weight, scale, dtype, block)
        for weight, scale in pairs.items()
        if scale.startswith(weight) or stored.dtype(weight) in (*FLOATS, torch.int8)
    }


def _weight(name: str) -> str | None:
    """The name of the weight that a scale of this name would belong to."""
    layer, _, last = name.rpartition(".")
    if last in BESIDE:
        return f"{layer}.weight"
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), None)


def fault(settings: Settings) -> str | None:
    """Why such a checkpoint cannot be read, from its configuration alone."""
    block = settings.get("weight_block_size", BLOCK)
    sizes = block if isinstance(block, list | tuple) else (block,)
    if block is not None and (len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes)):
        return f"its weight_block_size is {block}, which is no pair of rows and columns"
    return None
