"""The block of a checkpoint that predicts further tokens (multi-token prediction), as the library runs it.

Of the checkpoint only its tensors are read; embeddings, head and rotary embeddings are the client's own. The library
loads it beside a whole model; here the blocks are elsewhere, so that it is shown an outline of them.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_layers import MtpModel
from transformers.modeling_utils import LoadStateDictConfig

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.blocks import text_config
from swarm.models.linear.grid import Grid
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.partial import skeleton

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def load_mtp(model: Any, checkpoint: Checkpoint) -> MtpModel:
    """What predicts further tokens of `model`, whose blocks are elsewhere and whose ends are here.

    Raises UnsupportedModel where the checkpoint or the library has none, BadCheckpoint where some of it is missing.
    """
    config = text_config(checkpoint.config)
    count = getattr(config, "num_mtp_layers", None)
    if not count:
        raise UnsupportedModel(f"{checkpoint.name} has nothing that predicts further tokens (num_mtp_layers)")
    whole = skeleton(checkpoint.config)
    names = mtp_names(whole, list(checkpoint.stored.names()), int(config.num_hidden_layers), int(count))
    if not names:
        raise UnsupportedModel(f"{checkpoint.name} says that it predicts further tokens, but its files lack the block")
    checkpoint.fetch({"what drafts": names}, progress=False)
    ends = _Ends(model, whole)
    dtype = next(model.parameters()).dtype
    try:
        with torch.device("meta"):
            mtp = MtpModel(ends, int(count))  # type: ignore[arg-type]
        info, _ = convert_and_load_state_dict_in_model(
            model=mtp,
            state_dict={name: _read(checkpoint, name) for name in names},
            load_config=LoadStateDictConfig(
                weight_mapping=mtp.get_weight_conversions(ends),  # type: ignore[arg-type]
                device_map={"": torch.device("cpu")},
                dtype=dtype,
            ),
        )
    except (RuntimeError, ValueError, AttributeError, TypeError, StopIteration) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UnsupportedModel(f"what predicts further tokens cannot be put together: {words}") from error
    mtp._adjust_missing_and_unexpected_keys(info)
    if info.missing_keys:
        raise BadCheckpoint(f"{checkpoint.name} lacks {', '.join(sorted(info.missing_keys)[:3])} of what drafts")
    mtp.tie_with_main_model(ends)  # type: ignore[arg-type]
    mtp.train(False)
    return mtp


def mtp_names(model: PreTrainedModel, names: list[str], blocks: int, count: int) -> list[str]:
    """Those of tensors that belong to it: what the library leaves out of the model as its own, and the `count` layers
    behind the `blocks` of the model."""
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    found = []
    for name in names:
        layer = LAYER.search(name)
        behind = layer is not None and blocks <= int(layer.group(1)) < blocks + count
        inside = layer is not None and name.startswith("model.layers.") and int(layer.group(1)) < blocks
        if behind or (not inside and any(p.search(name) for p in patterns if _is_of_mtp(p.pattern))):
            found.append(name)
    return found


def _is_of_mtp(pattern: str) -> bool:
    return "mtp" in pattern or "layers" in pattern


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    tensor = checkpoint.tensors.read(name)
    if isinstance(tensor, Grid):
        raise UnsupportedModel(f"{name} is quantized: what drafts has to be in plain numbers yet")
    return tensor


class _Ends(SimpleNamespace):
    """A model as `MtpModel` looks at it: the ends that are here, and an outline of the blocks."""

    def __init__(self, model: Any, whole: Any) -> None:
        super().__init__(config=whole.config, lm_head=model.get_output_embeddings())
        self._model, self._whole = model, whole
        rotary = getattr(model.get_decoder(), "rotary_emb", None)
        self._decoder = SimpleNamespace(layers=whole.get_decoder().layers, rotary_emb=rotary)

    def get_decoder(self) -> Any:
        """The blocks' outline, and the rotary embeddings."""
        return self._decoder

    def get_input_embeddings(self) -> Any:
        """Those here."""
        return self._model.get_input_embeddings()

    @property
    def _weight_conversions(self) -> Any:
        from transformers.conversion_mapping import get_model_conversion_mapping

        return get_model_conversion_mapping(self._whole)
