"""Which layout a checkpoint is in, and why it cannot be read if it is in none of these."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.loading.layouts import awq, bitsandbytes, compressed, fp8, gptq, mxfp4
from swarm.models.loading.layouts.stored import Combined, Settings, Stored, Weight
from swarm.models.loading.tensors import Tensors

Find = Callable[[Stored, Settings, torch.dtype], Mapping[str, Weight]]
METHODS: Mapping[str, tuple[Callable[[Settings], str | None], Find]] = {
    "awq": (awq.fault, lambda stored, settings, _: awq.find(stored, settings)),
    "bitsandbytes": (bitsandbytes.fault, lambda stored, settings, _: bitsandbytes.find(stored, settings)),
    "compressed-tensors": (compressed.fault, compressed.find),
    "fbgemm_fp8": (fp8.fault, fp8.find),
    "fp8": (fp8.fault, fp8.find),
    "gptq": (gptq.fault, lambda stored, settings, _: gptq.find(stored, settings)),
    "mxfp4": (mxfp4.fault, mxfp4.find),
    "mxfp8": (fp8.fault, fp8.find),
}
"""By the name of a method: why its checkpoint cannot be read, and the weights that are in one."""
ROUNDED = {"auto_round:auto_gptq": "gptq", "auto_round:gptq": "gptq", "auto_round:auto_awq": "awq"}
"""Layouts that auto-round writes as another method does, by its `packing_format`."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def layout_of(config: Any, stored: Stored) -> Tensors:
    """The tensors of a checkpoint by their names in the model, whatever layout they are stored in.

    `config`: the model's, as it is in the checkpoint. Nothing is read. Raises UnsupportedModel, BadCheckpoint.
    """
    settings = settings_of(config)
    if settings is None:
        return stored
    if (reason := fault(config)) is not None:
        raise UnsupportedModel(reason)
    _, find = METHODS[_method(settings)]
    try:
        return Combined(stored, find(stored, settings, dense_dtype(config)))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadCheckpoint(f"quantization_config of the checkpoint is damaged: {error!r}") from error


def fault(config: Any) -> str | None:
    """Why the checkpoint of a configuration cannot be read: its quantization; None where it is not quantized, or in a
    layout that is read."""
    settings = settings_of(config)
    if settings is None:
        return None
    method = _method(settings)
    if method not in METHODS:
        known = ", ".join(sorted(METHODS))
        return f"the checkpoint is quantized ({method}); read are {known}, and bfloat16, float16 or float32"
    try:
        reason = METHODS[method][0](settings)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = f"its quantization_config is damaged ({error!r})"
    return None if reason is None else f"the checkpoint is quantized ({method}), and {reason}"


def settings_of(config: Any) -> Settings | None:
    """What a configuration says of how its checkpoint is quantized, also where only its text part says so."""
    for part in (config, getattr(config, "text_config", None)):
        said = getattr(part, "quantization_config", None)
        if said is not None:
            found = said.to_dict() if hasattr(said, "to_dict") else said
            return found if isinstance(found, Mapping) else {"quant_method": repr(said)}
    return None


def unquantized(config: Any) -> Any:
    """The same without a word of quantization: of the tensors that are read, the library is to change nothing."""
    if settings_of(config) is None:
        return config
    plain = copy.deepcopy(config)
    for part in filter(None, (plain, getattr(plain, "text_config", None))):
        vars(part).pop("quantization_config", None)
    return plain


def with_settings(config: Any, settings: Settings | None) -> Any:
    """The same with these words of quantization, and no others."""
    if settings_of(config) == settings:
        return config
    changed = copy.copy(unquantized(config))
    if settings is not None:
        changed.quantization_config = dict(settings)
    return changed


def dense_dtype(config: Any) -> torch.dtype:
    """In which dtype weights are given that are on no grid: the checkpoint's own, else bfloat16."""
    said = getattr(config, "dtype", None) or getattr(getattr(config, "text_config", None), "dtype", None)
    found = getattr(torch, said.removeprefix("torch."), None) if isinstance(said, str) else said
    return found if found in FLOATS else torch.bfloat16


def _method(settings: Settings) -> str:
    """The method's name; its layout's where auto-round wrote it."""
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    method = str(settings.get("quant_method"))
    if method.endswith("auto-round"):
        packing = str(settings.get("packing_format"))
        return ROUNDED.get(packing, f"auto-round, {packing}")
    return method
