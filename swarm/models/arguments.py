"""What transformers' `from_pretrained` takes, as far as it can be had of a model whose blocks are elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from swarm.errors import InvalidInput, UnsupportedModel
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint

READING = ("token", "revision", "subfolder", "variant", "cache_dir", "force_download", "local_files_only", "gguf_file")
"""How files are found."""
WITHOUT_EFFECT = frozenset({
    "weights_only", "low_cpu_mem_usage", "_fast_init", "mirror", "from_tf", "from_flax",
    "offload_state_dict", "offload_buffers", "offload_folder", "max_memory", "adapter_name", "_commit_hash",
    "_from_auto", "_from_pipeline",
})  # fmt: skip
"""Arguments that change nothing of what is loaded: no pickle is read, and what is here fits on one device."""
REFUSED = {
    "state_dict": "the tensors are those of the checkpoint; change them after loading",
    "ignore_mismatched_sizes": "the tensors have to fit the configuration",
    "quantization_config": "servers quantize; ask for those that do with quantization=",
    "adapter_kwargs": "servers compute without adapters; merge it into the weights, and serve those",
    "distributed_config": "it is distributed in a way of its own",
    "device_mesh": "it is distributed in a way of its own",
    "tp_plan": "it is distributed in a way of its own",
    "tp_size": "it is distributed in a way of its own",
    "fusion_config": "the blocks compute as the servers do",
    "use_kernels": "the blocks compute as the servers do",
    "allow_all_kernels": "the blocks compute as the servers do",
    "kernel_config": "the blocks compute as the servers do",
    "key_mapping": "tensors are found by the library's own names",
    "disable_mmap": "files are read as they are",
    "proxies": "set HTTPS_PROXY instead",
    "tqdm_class": "there is progress=",
}
"""Arguments that cannot be honoured where they say something."""
NOTHING: tuple[object, ...] = (None, False, {}, "")
LOADING_INFO = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
"""What the library says of loading; here all of it is empty, or the checkpoint is refused."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """How to load: `dtype` None for the checkpoint's own, `others`: what is no argument of transformers."""

    reading: dict[str, Any]
    dtype: str | torch.dtype | None = None
    device: str = "cpu"
    config: PretrainedConfig | str | Path | None = None
    generation_config: GenerationConfig | None = None
    attention: str | None = None
    experts: str | None = None
    output_loading_info: bool = False
    trusted: bool = False
    others: dict[str, Any] = field(default_factory=dict)

    def open(self, name_or_path: str | Path) -> Checkpoint:
        """The checkpoint, with what is changed of its configuration. Raises what `open_checkpoint` and `with_config`
        raise, and UnsupportedModel for a model with code of its own that is asked for."""
        checkpoint = open_checkpoint(name_or_path, **self.reading)
        _check_code(checkpoint, self.trusted)
        config = self._config(checkpoint)
        return checkpoint if config is None else checkpoint.with_config(config)

    def _config(self, checkpoint: Checkpoint) -> PretrainedConfig | None:
        given = self.config
        if isinstance(given, str | Path):
            given = AutoConfig.from_pretrained(given)
        changes = {name: value for name, value in self.others.items() if hasattr(checkpoint.config, name)}
        if given is None and not changes and self.attention is None and self.experts is None:
            return None
        config = copy.deepcopy(checkpoint.config if given is None else given)
        for name, value in changes.items():
            setattr(config, name, value)
        if self.attention is not None:
            config._attn_implementation = self.attention
        if self.experts is not None:
            config._experts_implementation = self.experts
        return config


def sort(given: Mapping[str, Any]) -> Arguments:
    """The arguments of a call of `from_pretrained`. Raises InvalidInput for those that cannot be had."""
    options = dict(given)
    for name, why in REFUSED.items():
        value = options.pop(name, None)
        if not (isinstance(value, str | bool | dict | None) and value in NOTHING):
            raise InvalidInput(f"{name}: the blocks are computed elsewhere: {why}")
    if options.pop("use_safetensors", None) is False:
        raise InvalidInput("use_safetensors=False: pickles are not read, which could run any code")
    for name in WITHOUT_EFFECT:
        options.pop(name, None)
    reading = {name: value for name in READING if (value := options.pop(name, None)) is not None}
    dtype, old = options.pop("dtype", None), options.pop("torch_dtype", None)
    dtype = old if dtype is None else dtype
    trusted = bool(options.pop("trust_remote_code", False))
    return Arguments(
        reading,
        dtype=_checked_dtype(dtype),
        device=_device(options.pop("device_map", None)),
        config=options.pop("config", None),
        generation_config=options.pop("generation_config", None),
        attention=options.pop("attn_implementation", None),
        experts=options.pop("experts_implementation", None),
        output_loading_info=bool(options.pop("output_loading_info", False)),
        trusted=trusted,
        others=options,
    )


def _checked_dtype(dtype: Any) -> str | torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    if not isinstance(dtype, str | torch.dtype):
        raise InvalidInput(f"dtype={dtype!r}: a name such as bfloat16, a torch.dtype or auto, for the whole model")
    return dtype


def _device(placed: Any) -> str:
    """The one device that `device_map` names. Raises InvalidInput for several, and for a disk."""
    places = set(map(str, placed.values())) if isinstance(placed, Mapping) else {str(placed)}
    place = places.pop() if len(places) == 1 else "several"
    if place in ("None", "auto"):
        return "cuda" if place == "auto" and torch.cuda.is_available() else "cpu"
    if place.isdigit():
        return f"cuda:{place}"
    try:
        device = torch.device(place)
    except RuntimeError:
        raise InvalidInput(f"device_map={placed!r}: what is here of the model is on one device; name that") from None
    if device.type == "meta":
        raise InvalidInput("device_map='meta': nothing could be computed there")
    return str(device)


def _check_code(checkpoint: Checkpoint, trusted: bool) -> None:
    """Raises UnsupportedModel where the library would run the repository's own code."""
    own = getattr(checkpoint.config, "auto_map", None) or {}
    if trusted and "AutoModelForCausalLM" in own:
        raise UnsupportedModel(
            f"trust_remote_code: {checkpoint.name} brings code of its own, which neither servers nor clients run"
        )
