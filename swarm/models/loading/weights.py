"""A model with only some of its tensors: those of a span's blocks, or those of everything but the blocks.

The library builds the whole model on the meta device, so that every block knows its real index; what is not wanted is
then replaced by stand-ins without tensors, and only what is left is read from the checkpoint. Names and layouts of
checkpoints (experts stored one by one, old names) are the library's business: it is given the tensors as they are.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging as library_logging

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.blocks import Blocks, find_blocks
from swarm.models.loading.checkpoint import Checkpoint, open_safetensors
from swarm.models.loading.refused import refuse
from swarm.types import Span

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Absent(nn.Module):
    """Stands where a part of the model was that somebody else computes. It holds nothing and cannot be called.

    `weight` is empty, for models that ask what dtype it has, or initialise it.
    """

    bias = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedModel("this part of the model is not on this machine")


@dataclass(frozen=True)
class PartialModel:
    """A model that has some of its tensors; `fingerprints`: sha256 of the tensors of each block that it has."""

    model: PreTrainedModel
    blocks: Blocks
    fingerprints: dict[int, bytes]


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The library's causal LM for a configuration. Raises UnsupportedModel."""
    try:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise UnsupportedModel(f"{config.model_type!r} has no causal language model in transformers") from None
    return cast("type[PreTrainedModel]", found[0] if isinstance(found, list | tuple) else found)


def decoder_config(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration that the causal LM is built from: the text part, where that has a causal LM of its own."""
    sub = type(config).sub_configs.get("text_config")
    text: PretrainedConfig = config.get_text_config(decoder=True) if sub is not None else config
    return text if model_class(config).config_class is sub else config


def dtype_of(checkpoint: Checkpoint, asked: str | torch.dtype | None = None) -> torch.dtype:
    """The dtype to compute in: what is asked for; None and "auto" are the checkpoint's own.

    That is what its configuration names, else that of its tensors. Raises UnsupportedModel, BadCheckpoint.
    """
    dtype: object = asked if asked not in (None, "auto") else _named_dtype(checkpoint.config) or checkpoint.dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype not in DTYPES.values():
        raise UnsupportedModel(f"dtype {asked or dtype} is not one of {', '.join(DTYPES)}")
    return cast(torch.dtype, dtype)


def _named_dtype(config: PretrainedConfig) -> object:
    return config.dtype or config.get_text_config(decoder=True).dtype


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The whole model on the meta device: shapes and names without memory. Raises UnsupportedModel."""
    refuse(config)
    return _outline(model_class(config), config)


def _outline(kind: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return kind(decoder_config(config))


def load_part(
    checkpoint: Checkpoint,
    span: Span | None,
    *,
    ends: bool,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> PartialModel:
    """The blocks of `span`, and with `ends` also everything that is not a block.

    The list of blocks has its full length; blocks that are not loaded are `Absent`. Raises BadCheckpoint,
    ModelNotFound, UnsupportedModel.
    """
    config = checkpoint.config
    refuse(config)
    partial = _partial_class(model_class(config), span, ends)
    outline = _outline(partial, config)
    blocks = find_blocks(outline)
    wanted = _wanted(checkpoint.files, outline)
    tensors, fingerprints = _read(checkpoint, wanted, blocks.prefix, progress)
    model = _assemble(partial, decoder_config(config), tensors, dtype, checkpoint.name)
    _finish(model)
    return PartialModel(cast(PreTrainedModel, model.to(device)), find_blocks(model), fingerprints)  # type: ignore[arg-type]


# ---- a class of the library's, with less in it -----------------------------------------------------------------


def _partial_class(whole: type[PreTrainedModel], span: Span | None, ends: bool) -> type[PreTrainedModel]:
    """`whole` without the blocks outside `span` and, unless `ends`, without anything but blocks.

    It says that it lives where `whole` does: the library converts checkpoints by class name, for its own classes only.
    """

    def build(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        blocks = find_blocks(self)
        if len(blocks.layers) != blocks.total:
            raise UnsupportedModel(f"{whole.__name__} counts {blocks.total} blocks and has {len(blocks.layers)}")
        if span is not None and span.last > blocks.total:
            raise UnsupportedModel(f"blocks {span} do not exist: the model has blocks 0:{blocks.total}")
        for index in range(blocks.total):
            if span is None or index not in span:
                blocks.layers[index] = Absent()
        if not ends:
            _empty(self, blocks.layers)
            self.all_tied_weights_keys = {}

    return type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})


def _empty(module: nn.Module, kept: nn.Module) -> None:
    """Replace every part that has parameters and is not on the way to `kept` (rotary embeddings have only buffers)."""
    for name, child in module.named_children():
        if child is kept:
            continue
        if any(part is kept for part in child.modules()):
            _empty(child, kept)
        elif next(child.parameters(), None) is not None:
            setattr(module, name, Absent())


def _finish(model: PreTrainedModel) -> None:
    model.train(False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)


# ---- which tensors, and reading them ---------------------------------------------------------------------------


def _wanted(names: Iterable[str], outline: PreTrainedModel) -> dict[str, str]:
    """For each tensor of the checkpoint that the outline has a place for: its (first) name in the model."""
    places: dict[str, Any] = dict(outline.state_dict())
    transforms = get_model_conversion_mapping(outline)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    prefix = outline.base_model_prefix
    wanted = {}
    for name in names:
        place, _ = rename_source_key(name, renamings, converters, prefix, places)
        if place not in places and name in places:
            place = name
        if place in places:
            wanted[name] = place
    return wanted


def _read(
    checkpoint: Checkpoint, wanted: dict[str, str], prefix: str, progress: bool
) -> tuple[dict[str, torch.Tensor], dict[int, bytes]]:
    """The tensors by their names in the checkpoint, and each block's fingerprint."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in wanted:
        by_file[checkpoint.files[name]].append(name)
    tensors: dict[str, torch.Tensor] = {}
    prints: dict[int, list[bytes]] = defaultdict(list)
    with tqdm(total=len(wanted), desc=f"{checkpoint.name}: tensors", disable=not progress, leave=False) as bar:
        for file, names in sorted(by_file.items()):
            for name, tensor in _read_file(checkpoint, file, names):
                tensors[name] = tensor
                block = _block_of(wanted[name], prefix)
                if block is not None:
                    prints[block].append(_digest(_relative(name, block), tensor))
                bar.update()
    return tensors, {block: hashlib.sha256(b"".join(sorted(parts))).digest() for block, parts in prints.items()}


def _read_file(checkpoint: Checkpoint, file: str, names: Sequence[str]) -> Iterable[tuple[str, torch.Tensor]]:
    path = checkpoint.path(file)
    with open_safetensors(path) as opened:
        for name in names:
            try:
                yield name, opened.get_slice(name)[...]
            except (SafetensorError, KeyError) as error:
                raise BadCheckpoint(f"{path} lacks {name} ({error}); delete it and fetch it again") from error


def _block_of(place: str, prefix: str) -> int | None:
    """The block that a tensor of the model belongs to."""
    if not place.startswith(prefix):
        return None
    return int(place.removeprefix(prefix).split(".", 1)[0])


def _relative(name: str, block: int) -> str:
    """A tensor's name within its block, whatever the checkpoint calls the model around it."""
    parts = re.split(rf"(?:^|\.){block}\.", name, maxsplit=1)
    return parts[-1]


def _digest(name: str, tensor: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _assemble(
    partial: type[PreTrainedModel],
    config: PretrainedConfig,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    name: str,
) -> PreTrainedModel:
    """Let the library put the tensors in their places. Raises BadCheckpoint when some are missing or do not fit."""

    def run() -> tuple[PreTrainedModel, dict[str, Any]]:
        loaded = partial.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True)
        return cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)

    try:
        model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", _quietly(run))
    except (RuntimeError, ValueError, KeyError) as error:
        raise BadCheckpoint(f"the tensors of {name} do not fit its configuration: {error}") from error
    except AttributeError as error:
        raise UnsupportedModel(f"transformers reaches into blocks that are not here: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadCheckpoint(f"{name} lacks {len(missing)} tensors, among them {', '.join(missing[:3])}")
    return model


def _quietly(run: Callable[[], Any]) -> Any:
    """The library's own progress bar and report would only repeat ours."""
    bars, level = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    library_logging.set_verbosity(logging.CRITICAL)
    try:
        return run()
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
