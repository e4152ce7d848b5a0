"""The ends of a model: embeddings, final norm and head, with the library's own code around the blocks."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from swarm.config import MEMORY
from swarm.errors import BadCheckpoint, ModelNotFound, UnsupportedModel
from swarm.models.blocks import find_blocks, recount
from swarm.models.linear.elsewhere import EndsService, RemoteHead, RemoteTable
from swarm.models.linear.substitute import substitute
from swarm.models.linear.unread import UnreadWeight
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading.partial import Absent
from swarm.models.loading.weights import dtype_of, load_part, quantization_of
from swarm.models.row_shape import BATCH, COUNT, TOKENS, RowShape
from swarm.types import Span

log = logging.getLogger(__name__)


def load_ends(
    source: str | Path | Checkpoint,
    *,
    local_blocks: Span | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    device: str | torch.device = "cpu",
    head: str | None = None,
    embeddings: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> tuple[PreTrainedModel, Checkpoint]:
    """The library's model with everything but its blocks loaded, and of the blocks only `local_blocks`.

    Its list of blocks (`find_blocks(model).layers`) holds the local ones only, or nothing. Only the tensors that are
    kept are read; from the hub, only the files that hold them. `quantization`: of the swarm's blocks. `head`: where
    the head is, as in `plan_ends`; embeddings stay on disk, and rows of them are read as they are used, or are at
    servers (`connect_ends`). Also returns where they came from.
    Raises ModelNotFound, BadCheckpoint, UnsupportedModel, InvalidInput, NotEnoughMemory.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, token, revision)
    scheme = quantization_of(checkpoint, quantization)
    compute = dtype_of(checkpoint, dtype, scheme)
    how: dict[str, Any] = {"dtype": compute, "device": device, "quantization": scheme, "progress": progress}
    loaded = load_part(checkpoint, local_blocks, ends=True, head=head, embeddings=embeddings, **how)
    local = [layer for layer in loaded.blocks.layers if not isinstance(layer, Absent)]
    setattr(loaded.blocks.owner, loaded.blocks.attribute, nn.ModuleList(local))
    _set_generation_config(loaded.model, checkpoint)
    if loaded.ends is not None and loaded.ends.plan.head == MEMORY and checkpoint.form.is_of_text:
        lay_out_head(loaded.model)
    return loaded.model, checkpoint


def connect_ends(model: Any, service: EndsService) -> None:
    """Give a model whose head, and perhaps embeddings, are at servers what asks these."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if isinstance(head, RemoteHead):
        head.service = service
    weight = getattr(table, "weight", None)
    if isinstance(weight, UnreadWeight) and isinstance(weight.held.numbers, RemoteTable):
        weight.held.numbers.service = service


def _set_generation_config(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """What the authors recommend for generation, where they do: beside a GGUF file nothing is meant for it, as in
    transformers, and some make no texts. Raises BadCheckpoint for what cannot be read."""
    if checkpoint.gguf is not None or not model.can_generate():
        return
    try:
        path = checkpoint.path("generation_config.json")
    except (BadCheckpoint, ModelNotFound):
        return
    model.generation_config = read_generation_config(path)


def read_generation_config(path: Path) -> GenerationConfig:
    """What is in a file. What the library refuses of it is left out, and said in the log: recommendations are no reason
    not to run a model. Raises BadCheckpoint for a file of another kind."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:300]
        raise BadCheckpoint(f"{path} is damaged: {words}; copy it again, or delete it") from error
    try:
        return GenerationConfig.from_pretrained(path.parent, local_files_only=True)
    except Exception as error:  # the library says in many ways that a value is not what it expects
        log.warning("not all of %s can be used: %s", path.name, " ".join(str(error).split())[:300])
    return GenerationConfig(**{name: value for name, value in values.items() if _is_accepted(name, value)})  # type: ignore[no-untyped-call]


def _is_accepted(name: str, value: Any) -> bool:
    try:
        GenerationConfig(**{name: value})  # type: ignore[no-untyped-call]
    except Exception:
        return False
    return True


def lay_out_head(model: PreTrainedModel) -> None:
    """Lay out the head for this processor, unless it is tied to the embeddings and so one with them."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embeddings: Any = model.get_input_embeddings()
    tied = getattr(head, "weight", None) is getattr(embeddings, "weight", None)
    if not tied and (twin := substitute(head)) is not None:
        model.set_output_embeddings(twin)  # type: ignore[no-untyped-call]


class _Echo(nn.Module):
    """A block that does nothing, in any of the ways in which blocks return their result."""

    attention_type = "full_attention"
    layer_type = "full_attention"
    block_type = "full_attention"
    is_sliding = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.shape: RowShape | None = None
        """Of rows, once it has been called with a probe."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.shape = RowShape.of(hidden_states, tokens=TOKENS in kwargs)
        return returned(hidden_states, self.width)


def returned(hidden: torch.Tensor, width: int) -> Any:
    """What a block returns: hidden states, or a tuple of so many that begins with them."""
    return (hidden, *[None] * (width - 1)) if width else hidden


def returns_tuple(model: PreTrainedModel) -> int:
    """How long a tuple this model expects its blocks to return; 0: the hidden states alone. Raises as `interface`."""
    return interface(model)[0]


@torch.inference_mode()
def interface(model: nn.Module) -> tuple[int, RowShape]:
    """How long a tuple this model expects its blocks to return (0: the hidden states alone), and what it gives them.

    Tried with a block that does nothing. Raises UnsupportedModel when the model takes neither.
    """
    blocks = find_blocks(model)
    base: Any = blocks.base
    whole: Any = model
    layers, config = blocks.layers, base.config
    # Of several rows: some would take the first row of hidden states for the first of a tuple.
    hidden = torch.zeros(BATCH, COUNT, _width(model), dtype=whole.dtype, device=whole.device)
    try:
        base.config = copy.deepcopy(config)
        recount(base.config, 1)
        for width in (0, 1, 2):
            echo = _Echo(width)
            setattr(blocks.owner, blocks.attribute, nn.ModuleList([echo]))
            with contextlib.suppress(Exception):
                output = base(inputs_embeds=hidden, use_cache=False, return_dict=True)
                if output.last_hidden_state.shape[:2] == hidden.shape[:2] and echo.shape is not None:
                    return width, echo.shape
    finally:
        base.config = config
        setattr(blocks.owner, blocks.attribute, layers)
    raise UnsupportedModel(f"{type(base).__name__} does not take hidden states from elsewhere")


def _width(model: nn.Module) -> int:
    """Numbers in one token's embedding."""
    whole: Any = model
    return int(whole.get_input_embeddings().weight.shape[-1])
