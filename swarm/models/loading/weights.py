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
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from tqdm import tqdm
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import logging as library_logging

from swarm.config import FILE, INT4, INT8
from swarm.contract import UNQUANTIZED
from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.blocks import Blocks, find_blocks
from swarm.models.linear.grid import Grid, as_dense
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.linear.schemes import can_quantize, quantize_rows
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.refused import refuse
from swarm.models.loading.tensors import Tensors
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


class Waiting(nn.Module):
    """Stands where a linear layer will be whose weight is read later; its bias is here."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)
        self.register_parameter("bias", None if layer.bias is None else nn.Parameter(torch.empty_like(layer.bias)))


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
    quantization: str = UNQUANTIZED,
    progress: bool = True,
) -> PartialModel:
    """The blocks of `span`, and with `ends` also everything that is not a block.

    The list of blocks has its full length; blocks that are not loaded are `Absent`. `quantization`: linear layers of
    blocks are put on its grid as they are read, one after the other. Raises BadCheckpoint, ModelNotFound,
    UnsupportedModel.
    """
    config = checkpoint.config
    refuse(config)
    waiting: set[str] = set()
    partial = _partial_class(model_class(config), span, ends, waiting)
    outline = _outline(partial, config)
    prefix = find_blocks(outline).prefix
    reading = _Reading(checkpoint, _wanted(checkpoint.tensors.names(), outline), prefix, progress)
    layers = linear_layers(outline, reading.wanted, prefix, checkpoint.tensors, quantization)
    waiting.update(name.removesuffix(".weight") for name in layers.values())
    with reading:
        plain = {name: reading.dense(name) for name in reading.wanted if name not in layers}
        model = _assemble(partial, decoder_config(config), plain, dtype, checkpoint.name)
        plain.clear()
        for name, place in layers.items():
            reading.put(model, name, place, quantization, dtype)
    _finish(model)
    moved = cast(PreTrainedModel, model.to(device))  # type: ignore[arg-type]
    return PartialModel(moved, find_blocks(model), reading.fingerprints())


# ---- a class of the library's, with less in it -----------------------------------------------------------------


def _partial_class(
    whole: type[PreTrainedModel], span: Span | None, ends: bool, waiting: Collection[str]
) -> type[PreTrainedModel]:
    """`whole` without the blocks outside `span` and, unless `ends`, without anything but blocks; the linear layers at
    `waiting` have no weights yet.

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
        for place in waiting:
            parent, _, name = place.rpartition(".")
            layer = cast(nn.Linear, self.get_submodule(place))
            setattr(self.get_submodule(parent), name, Waiting(layer))

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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the checkpoint goes: its (first) name in the model, and whether it goes there as it is."""

    name: str
    direct: bool


def _wanted(names: Iterable[str], outline: PreTrainedModel) -> dict[str, _Place]:
    """For each tensor of the checkpoint that the outline has a place for: where."""
    places: dict[str, Any] = dict(outline.state_dict())
    transforms = get_model_conversion_mapping(outline)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    prefix = outline.base_model_prefix
    wanted = {}
    for name in names:
        place, converter = rename_source_key(name, renamings, converters, prefix, places)
        if place not in places and name in places:
            place, converter = name, None
        if place in places:
            wanted[name] = _Place(place, converter is None)
    return wanted


def linear_layers(
    outline: PreTrainedModel, wanted: Mapping[str, _Place], prefix: str, tensors: Tensors, quantization: str
) -> dict[str, str]:
    """The weights that are put on a grid, by their names in the checkpoint: their names in the model.

    Those of plain linear layers of blocks that the checkpoint has as they are. Raises UnsupportedModel where there are
    none to be quantized.
    """
    if quantization == UNQUANTIZED:
        return {}
    found = {}
    for name, place in wanted.items():
        layer, _, kind = place.name.rpartition(".")
        if kind != "weight" or not place.direct or _block_of(place.name, prefix) is None:
            continue
        module = outline.get_submodule(layer)
        if type(module) is nn.Linear and (
            tensors.on_grid(name) if quantization == FILE else can_quantize(module.in_features)
        ):
            found[name] = place.name
    if not found and quantization != FILE and any(_block_of(p.name, prefix) is not None for p in wanted.values()):
        raise UnsupportedModel(f"its blocks have no plain linear layers that {quantization} could be used for")
    return found


class _Reading:
    """A checkpoint being read, with a progress bar; and what of it each block was made of."""

    def __init__(self, checkpoint: Checkpoint, wanted: dict[str, _Place], prefix: str, progress: bool) -> None:
        self.wanted = wanted
        self._tensors = checkpoint.tensors
        self._prefix = prefix
        self._prints: dict[int, list[bytes]] = defaultdict(list)
        total = sum(self._tensors.nbytes(name) for name in wanted)
        self._bar: tqdm[Any] = tqdm(
            total=total,
            desc=f"{checkpoint.name}: tensors",
            unit="B",
            unit_scale=True,
            disable=not progress,
            leave=False,
        )

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def dense(self, name: str) -> torch.Tensor:
        """A tensor as it is, or off its grid."""
        read = self._tensors.read(name)
        self._note(name, lambda relative: _digest(relative, read))
        return read.dense() if isinstance(read, Grid) else read

    def put(self, model: PreTrainedModel, name: str, place: str, quantization: str, dtype: torch.dtype) -> None:
        """Read a weight onto its grid, and the layer into the model."""
        grid = self._read_grid(name, quantization)
        self._note(name, lambda relative: _digest(relative, grid))
        parent, _, child = place.removesuffix(".weight").rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, QuantizedLinear(grid, getattr(owner, child).bias, dtype).checked())

    def _read_grid(self, name: str, quantization: str) -> Grid:
        shape, tensors = self._tensors.shape(name), self._tensors
        if quantization == FILE:
            read = tensors.read(name)
            if not isinstance(read, Grid):
                raise BadCheckpoint(f"{name} is not on a grid")
            return read
        return quantize_rows(lambda rows: as_dense(tensors.read(name, rows)), (shape[0], shape[1]), quantization)

    def _note(self, name: str, digest: Callable[[str], bytes]) -> None:
        self._bar.update(self._tensors.nbytes(name))
        block = _block_of(self.wanted[name].name, self._prefix)
        if block is not None:
            self._prints[block].append(digest(_relative(name, block)))

    def fingerprints(self) -> dict[int, bytes]:
        """sha256 of the tensors of each block."""
        return {block: hashlib.sha256(b"".join(sorted(parts))).digest() for block, parts in self._prints.items()}


def _block_of(place: str, prefix: str) -> int | None:
    """The block that a tensor of the model belongs to."""
    if not place.startswith(prefix):
        return None
    return int(place.removeprefix(prefix).split(".", 1)[0])


def _relative(name: str, block: int) -> str:
    """A tensor's name within its block, whatever the checkpoint calls the model around it."""
    parts = re.split(rf"(?:^|\.){block}\.", name, maxsplit=1)
    return parts[-1]


def _digest(name: str, tensor: torch.Tensor | Grid) -> bytes:
    if isinstance(tensor, Grid):
        return hashlib.sha256(f"{name} ".encode() + tensor.digest()).digest()
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
