"""A model with only some of its parts: a class of the library's, with less in it.

The library builds the whole model on the meta device, so that every block knows its real index; what is not wanted is
then replaced by stand-ins without tensors, and only what is left gets any. Names and layouts of checkpoints (experts
stored one by one, old names) are the library's business: it is given the tensors as they are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as library_logging

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.blocks import find_blocks
from swarm.models.loading.form import Form, decoder_config, model_class
from swarm.models.loading.refused import refuse

_BUILDING = threading.RLock()
"""While the library builds a model it changes what holds for the whole process: its default dtype, how parameters are
initialised, whether weights are tied. Two threads that do so at a time get each other's."""


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


class AbsentBlock(Absent):
    """A block that is not here: whoever initialises something within it finds that it needs no initialising."""

    _is_hf_initialized = True

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name.startswith("_") or name == "weight" else self


class Waiting(nn.Module):
    """Stands where a linear layer will be whose weight is read later; its bias is here."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)
        self.register_parameter("bias", None if layer.bias is None else nn.Parameter(torch.empty_like(layer.bias)))


def skeleton(config: PretrainedConfig, form: Form = Form.TEXT) -> PreTrainedModel:
    """The whole model on the meta device: shapes and names without memory. Raises UnsupportedModel."""
    refuse(config)
    return outline(model_class(config, form), config, form)


def outline(kind: type[PreTrainedModel], config: PretrainedConfig, form: Form = Form.TEXT) -> PreTrainedModel:
    with _BUILDING, torch.device("meta"):
        return kind(decoder_config(config, form))


def partial_class(
    whole: type[PreTrainedModel], kept: Collection[int], ends: bool, waiting: Iterable[str] = ()
) -> type[PreTrainedModel]:
    """`whole` without the blocks that are not `kept` and, unless `ends`, without anything but blocks; the
    parameters at `waiting` are not there yet.

    It says that it lives where `whole` does: the library converts checkpoints by class name, for its own classes only.
    """

    def build(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        blocks = find_blocks(self)
        if len(blocks.layers) != blocks.total:
            raise UnsupportedModel(f"{whole.__name__} counts {blocks.total} blocks and has {len(blocks.layers)}")
        for index in range(blocks.total):
            if index not in kept:
                blocks.layers[index] = AbsentBlock()
        if not ends:
            _empty(self, blocks.layers)
            self.all_tied_weights_keys = {}
        for place in waiting:
            owner, _, name = place.rpartition(".")
            module = self.get_submodule(owner)
            if type(module) is nn.Linear:
                parent, _, name = owner.rpartition(".")
                setattr(self.get_submodule(parent), name, Waiting(module))
            else:
                delattr(module, name)
                setattr(module, name, torch.empty(0))

    return type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})


def _empty(module: nn.Module, kept: nn.Module) -> None:
    """Replace every part that has parameters and is not on the way to `kept` (rotary embeddings have only buffers)."""
    for name, _ in list(module.named_parameters(recurse=False)):
        delattr(module, name)
        module.register_buffer(name, torch.empty(0), persistent=False)
    for name, child in module.named_children():
        if child is kept:
            continue
        if any(part is kept for part in child.modules()):
            _empty(child, kept)
        elif next(child.parameters(), None) is not None:
            setattr(module, name, Absent())


def assemble(
    partial: type[PreTrainedModel],
    config: PretrainedConfig,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype,
    name: str,
    new_head: bool = False,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Let the library put the tensors in their places. `new_head`: what is no part of the base model is begun by the
    library where it is missing; also returns the names of these. Raises BadCheckpoint when others are missing, or some
    do not fit."""

    def run() -> tuple[PreTrainedModel, dict[str, Any]]:
        loaded = partial.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True)
        return cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)

    try:
        model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", _quietly(run))
    except (RuntimeError, ValueError, KeyError) as error:
        raise BadCheckpoint(f"the tensors of {name} do not fit its configuration: {error}") from error
    except AttributeError as error:
        raise UnsupportedModel(f"transformers reaches into blocks that are not here: {error}") from error
    base = f"{model.base_model_prefix}."
    begun = frozenset(key for key in report["missing_keys"] if new_head and not key.startswith(base))
    missing = sorted(set(report["missing_keys"]) - begun)
    if missing:
        raise BadCheckpoint(f"{name} lacks {len(missing)} tensors, among them {', '.join(missing[:3])}")
    return model, begun


def _quietly(run: Callable[[], Any]) -> Any:
    """The library's own progress bar and report would only repeat ours. One model at a time."""
    with _BUILDING:
        return _silenced(run)


def _silenced(run: Callable[[], Any]) -> Any:
    bars, level = library_logging.is_progress_bar_enabled(), library_logging.get_verbosity()
    library_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    library_logging.set_verbosity(logging.CRITICAL)
    try:
        return run()
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
