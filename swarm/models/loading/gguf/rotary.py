"""What a GGUF file says of scaled rotary embeddings, as transformers' `rope_scaling`.

llama.cpp keeps linear and yarn scaling as metadata, and that of Llama 3 as a tensor by whose numbers frequencies are
divided, `rope_freqs`; what made these numbers is found again here, as transformers computes from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from swarm.errors import UnsupportedModel
from swarm.models.loading.gguf.header import Header

FACTORS = "rope_freqs.weight"
LONG = ("rope_factors_long.weight", "rope_factors_short.weight")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of all Llamas since 3.1; https://arxiv.org/abs/2407.21783 and the model's own code."""

YARN = {"gpt-oss": {"truncate": False}}
"""What the authors' configurations say besides, and files do not."""


def rotary(header: Header, values: dict[str, Any], factors: Sequence[float] | None) -> dict[str, Any]:
    """What the configuration, so far `values`, needs besides; `factors`: the tensor of that name, where there is one.

    Raises UnsupportedModel for scaling that transformers cannot be told of.
    """
    if found := [name for name in LONG if name in header.tensors]:
        raise UnsupportedModel(f"its rotary embeddings are scaled by {found[0]}, which is not read here")
    if factors is not None:
        return {"rope_scaling": llama3(factors, float(values.get("rope_theta", 10_000.0)))}
    said = {
        key: header.metadata.get(f"{header.architecture}.rope.{key}")
        for key in ("scaling.type", "scaling.factor", "scaling.original_context_length", "scaling.attn_factor")
    }
    kind, factor = (
        said["scaling.type"],
        said["scaling.factor"] or header.metadata.get(f"{header.architecture}.rope.scale_linear"),
    )
    if kind in (None, "none") and factor in (None, 1.0):
        return {}
    if kind in (None, "linear") and factor is not None:
        return {} if factor == 1.0 else {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn" and factor is not None and said["scaling.attn_factor"] in (None, 1.0):
        length = said["scaling.original_context_length"] or values.get("max_position_embeddings")
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
        return {"rope_scaling": scaling | YARN.get(header.architecture, {})}
    raise UnsupportedModel(f"its rotary embeddings are scaled as {kind!r}, which is not read here")


def llama3(factors: Sequence[float], theta: float) -> dict[str, Any]:
    """The scaling that gives these factors. Raises UnsupportedModel where none does."""
    factor = max(factors, default=1.0)
    expected = [_factor(theta ** (-index / len(factors)), factor) for index in range(len(factors))]
    if not all(math.isclose(one, other, rel_tol=1e-3) for one, other in zip(factors, expected, strict=True)):
        raise UnsupportedModel(f"its rotary embeddings are scaled by {FACTORS}, otherwise than Llama 3's")
    # Kept as a float of 32 bits: those of all models are whole numbers.
    return {"rope_type": "llama3", "factor": float(round(factor, 3)), **LLAMA3}


def _factor(frequency: float, factor: float) -> float:
    """What a frequency is divided by."""
    low, high, length = LLAMA3.values()
    turns = length * frequency / (2 * math.pi)
    if turns >= high:
        return 1.0
    if turns <= low:
        return factor
    smooth = (turns - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
