"""LoRA out of a folder that peft wrote, read for blocks that are elsewhere."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from swarm.errors import BadCheckpoint, InvalidInput, ModelNotFound, SwarmError, UnsupportedModel
from swarm.models.blocks import find_blocks
from swarm.models.ends.adapters import LORA, pairs_of
from swarm.models.ends.hollow import Layers, hollow_blocks
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.partial import skeleton
from swarm.models.lora import Pair, Place

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_adapter(checkpoint: Checkpoint, folder: str | Path, dtype: torch.dtype) -> dict[Place, Pair]:
    """What an adapter adds to the blocks of a model, of which nothing else is read.

    Raises InvalidInput also for one that changes what is no block: who has only this has nothing to put it in. Else as
    `put_adapter`, and UnsupportedModel.
    """
    model: Any = skeleton(checkpoint.config, checkpoint.form)
    blocks = find_blocks(model)
    hollow = hollow_blocks(model.config, range(blocks.total), dtype)
    if not hollow:
        kind = type(model).__name__
        raise UnsupportedModel(f"there are no adapters for {kind}: its blocks cannot be built without their numbers")
    setattr(blocks.owner, blocks.attribute, Layers([], {}, hollow))
    pairs = put_adapter(model, folder)
    for name, module in model.named_modules():
        if type(module).__module__.startswith("peft.") and not name.startswith(blocks.prefix):
            what = f"the adapter in {folder} changes {name}, which is no block's"
            raise InvalidInput(f"{what}, and the same for all who ask here: {LORA}")
    return pairs


def put_adapter(model: Any, folder: str | Path) -> dict[Place, Pair]:
    """Put an adapter beside the layers of a model whose blocks are elsewhere; returns what it adds to these.

    Raises ModelNotFound for no such folder, BadCheckpoint for one that is damaged or of another model, InvalidInput for
    what remote blocks do not take.
    """
    path = Path(folder).expanduser()
    for file in (CONFIG, WEIGHTS):
        if not (path / file).is_file():
            raise ModelNotFound(f"{folder} holds no {file}: is it a folder that peft's save_pretrained has written?")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors without a place; they are looked for below
            strange = _put(model, path)
    except (SwarmError, ModuleNotFoundError):
        raise
    except Exception as error:  # the library says in many ways that a file is not what it expects
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise BadCheckpoint(f"the adapter in {folder} does not fit this model: {words}") from error
    if own := [name for name in strange if "lora_" not in name]:
        raise InvalidInput(
            f"the adapter in {folder} brings {own[0]}, weights of the model itself: {LORA}; save it with "
            "save_embedding_layers=False"
        )
    if strange:
        raise BadCheckpoint(f"the adapter in {folder} is of another model: {strange[0]} is only in one of them")
    found = [pairs_of(layers) for layers in model.modules() if isinstance(layers, Layers)]
    return {place: pair for pairs in found for place, pair in pairs.items()}


def _put(model: Any, path: Path) -> list[str]:
    """Returns the names of tensors that only the folder has, or only the model."""
    from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict, load_peft_weights

    config = PeftConfig.from_pretrained(str(path))
    if config.peft_type != PeftType.LORA:
        raise InvalidInput(f"{getattr(config.peft_type, 'value', config.peft_type)} in {path}: {LORA}")
    tuned = PeftModel.from_pretrained(model, str(path), config=config)
    tuned.eval()
    there = load_peft_weights(str(path), device="cpu")
    return sorted(there.keys() ^ get_peft_model_state_dict(tuned, save_embedding_layers=False).keys())
