"""A model with only some of its tensors: those of a span's blocks, or those of everything but the blocks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from swarm.config import DISK, FILE, INT4, INT8, MEMORY, REMOTE
from swarm.contract import UNQUANTIZED
from swarm.errors import InvalidInput, UnsupportedModel
from swarm.memory import available_memory
from swarm.models.blocks import Blocks, find_blocks
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.ends_plan import EndsFiles, EndsPlan, plan_ends
from swarm.models.loading.form import model_class
from swarm.models.loading.partial import Absent, outline, partial_class
from swarm.models.loading.reading import Reading
from swarm.models.loading.refused import refuse, refuse_turned
from swarm.models.loading.source import BlockSource
from swarm.models.loading.stored_ends import StoredEnds
from swarm.types import Span

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class PartialModel:
    """A model that has some of its tensors; `fingerprints`: sha256 of the tensors of each block that it has; `ends`:
    its embeddings and head, where it has these."""

    model: PreTrainedModel
    blocks: Blocks
    fingerprints: dict[int, bytes]
    ends: StoredEnds | None = None


def quantization_of(checkpoint: Checkpoint, asked: str | None = None) -> str:
    """What the weights are computed on: what is asked for; None is the checkpoint's own grid, where it has one.

    Raises UnsupportedModel.
    """
    if asked == FILE and not checkpoint.quantized:
        raise UnsupportedModel(f"{checkpoint.name} is not quantized; --quantization {INT8} or {INT4} does that")
    return asked or (FILE if checkpoint.quantized else UNQUANTIZED)


def dtype_of(
    checkpoint: Checkpoint, asked: str | torch.dtype | None = None, quantization: str = UNQUANTIZED
) -> torch.dtype:
    """The dtype of hidden states, and of all that is on no grid: what is asked for; None and "auto" are the
    checkpoint's own, or float32 where its linear layers are quantized.

    The checkpoint's own is what its configuration names, else that of its tensors. Raises UnsupportedModel,
    BadCheckpoint.
    """
    if asked in (None, "auto") and quantization != UNQUANTIZED:
        return torch.float32
    dtype: object = asked if asked not in (None, "auto") else _named_dtype(checkpoint.config) or checkpoint.dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype not in DTYPES.values():
        raise UnsupportedModel(f"dtype {asked or dtype} is not one of {', '.join(DTYPES)}")
    return cast(torch.dtype, dtype)


def _named_dtype(config: PretrainedConfig) -> object:
    return config.dtype or config.get_text_config(decoder=True).dtype


def load_part(
    checkpoint: Checkpoint,
    span: Span | None,
    *,
    ends: bool,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    quantization: str = UNQUANTIZED,
    progress: bool = True,
    keep: Path | None = None,
    source: BlockSource | None = None,
    head: str | None = None,
    embeddings: str | None = None,
    staying: int = 0,
) -> PartialModel:
    """The blocks of `span`, and with `ends` also everything that is not a block.

    The list of blocks has its full length; blocks that are not loaded are `Absent`. `quantization`: linear layers of
    blocks are put on its grid as they are read, one after the other; `keep`: the folder in which blocks on it are kept
    for the next time, if any; `source`: where those may come from that are not there. `head` and `embeddings`: as in
    `plan_ends`. `staying`: so many of the last blocks are not moved to the device.

    Raises BadCheckpoint, ModelNotFound, UnsupportedModel, and NotEnoughMemory where the ends do not fit.
    """
    refuse(checkpoint.config)
    blocks = frozenset(span or ())
    config, form = checkpoint.config, checkpoint.form
    shape = outline(partial_class(model_class(config, form), blocks, ends), config, form)
    if span is not None and span.last > (total := find_blocks(shape).total):
        raise UnsupportedModel(f"blocks {span} do not exist: the model has blocks 0:{total}")
    refuse_turned(checkpoint.config, shape)
    planned = partial(_plan, head, embeddings, dtype, quantization, str(device), progress) if ends else None
    with Reading(checkpoint, shape, dtype, quantization, progress, keep, planned, source) as reading:
        # A block with experts is read by itself: their weights are whole before they are on a grid.
        alone = sorted(reading.with_experts)
        shared = blocks - frozenset(alone[0 if ends or len(alone) < len(blocks) else 1 :])
        model = reading.assemble(shared, ends)
        layers = find_blocks(model).layers
        for block in sorted(blocks - shared):
            layers[block] = find_blocks(reading.assemble(frozenset({block}), ends=False)).layers[block]
    _finish(model, reading.begun)
    moved = _moved(model, device, sorted(blocks)[len(blocks) - staying :])
    return PartialModel(moved, find_blocks(model), reading.fingerprints(), reading.ends)


def _plan(
    head: str | None,
    embeddings: str | None,
    dtype: torch.dtype,
    quantization: str,
    device: str,
    progress: bool,
    files: EndsFiles,
) -> EndsPlan:
    """Where the ends are to be, told before anything is read. Raises as `plan_ends`."""
    if not device.startswith("cpu"):
        if head not in (None, MEMORY, REMOTE) or embeddings is not None:
            raise InvalidInput(f"head={head!r}: only on a CPU yet, not on {device}; leave one of the two out")
        head = head or MEMORY
        files = replace(files, embeddings=None)
    free = available_memory("cpu")
    plan = plan_ends(files, head, dtype.itemsize, quantization, free, embeddings)
    log.info("%s", plan.words)
    if progress and sys.stderr.isatty():
        tqdm.write(plan.words, file=sys.stderr)
    if head is None and plan.head == DISK:
        log.warning(
            "the head of %s does not fit in memory and is read from disk for each token; head='int4' is faster",
            files.name,
        )
    return plan


def _moved(model: PreTrainedModel, device: str | torch.device, staying: Sequence[int]) -> PreTrainedModel:
    """On the device, but for some blocks."""
    layers = find_blocks(model).layers
    held = {block: layers[block] for block in staying}
    for block in held:
        layers[block] = Absent()
    moved = cast(PreTrainedModel, model.to(device))  # type: ignore[arg-type]
    for block, layer in held.items():
        layers[block] = layer
    return moved


def _finish(model: PreTrainedModel, begun: frozenset[str]) -> None:
    """What is loaded is frozen; what is only begun is nothing before it is trained."""
    model.train(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in begun)
