"""From a checkpoint to a span that computes."""

from __future__ import annotations

from pathlib import Path

import torch

from swarm.models.linear.int8 import NONE
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading.weights import dtype_of, load_part
from swarm.models.span.model import SpanModel
from swarm.types import Span


def load_span(
    source: str | Path | Checkpoint,
    span: Span,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    token: str | None = None,
    revision: str | None = None,
    quantization: str = NONE,
    progress: bool = True,
) -> SpanModel:
    """Load the blocks of `span` and nothing else, check that they can be served, and say what they are.

    `quantization`: `int8` for linear layers that compute with 8-bit integers; loading takes the whole size first.
    `source`: a local folder, a name on the hub, or an opened checkpoint; `dtype`: by default the checkpoint's own.
    Raises ModelNotFound, BadCheckpoint, UnsupportedModel.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, token, revision)
    compute = dtype_of(checkpoint, dtype)
    loaded = load_part(checkpoint, span, ends=False, dtype=compute, device=device, progress=progress)
    return SpanModel(loaded.model, span, [loaded.fingerprints[block] for block in span], quantization)
