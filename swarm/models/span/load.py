"""From a checkpoint to a span that computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from swarm.contract import together
from swarm.errors import InvalidInput
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading.source import BlockSource
from swarm.models.loading.weights import dtype_of, load_part, quantization_of
from swarm.models.span.model import SpanModel
from swarm.models.span.offload import Offload
from swarm.span import parted
from swarm.types import Span


def load_span(
    source: str | Path | Checkpoint,
    span: Span,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    token: str | None = None,
    revision: str | None = None,
    quantization: str | None = None,
    progress: bool = True,
    keep: Path | None = None,
    blocks_from: BlockSource | None = None,
    offload: Offload | None = None,
) -> SpanModel:
    """Load the blocks of `span` and nothing else, check that they can be served, and say what they are.

    `source`: a local folder, a name on the hub, or an opened checkpoint; `quantization`: one of `QUANTIZATIONS`, by
    default the checkpoint's own grid, where it has one; `dtype`: of hidden states, by default the checkpoint's own, or
    float32 with quantized layers; `keep`: a folder in which blocks that were quantized here are kept for the next time,
    `blocks_from`: where those may come from that are not there; `offload`: which blocks are in main memory until they
    are computed. Raises ModelNotFound, BadCheckpoint, UnsupportedModel; InvalidInput where others must stay together
    with some of these blocks.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, token, revision)
    scheme = quantization_of(checkpoint, quantization)
    compute = dtype_of(checkpoint, dtype, scheme)
    how: dict[str, Any] = {
        "dtype": compute,
        "device": device,
        "quantization": scheme,
        "progress": progress,
        "keep": keep,
        "source": blocks_from,
        "staying": 0 if offload is None else min(offload.count, len(span) - 1),
    }
    if (run := parted(span, checkpoint.joined)) is not None:
        raise InvalidInput(f"{span} of {checkpoint.name}: {together(run)}")
    loaded = load_part(checkpoint, span, ends=False, **how)
    if offload is not None:
        offload.take(list(loaded.blocks.layers)[span.first : span.last])
    return SpanModel(loaded.model, span, [loaded.fingerprints[block] for block in span], checkpoint.joined)
