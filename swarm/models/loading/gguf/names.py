"""Which tensors of a GGUF file become which of a model, and what is done to them on the way.

Both are transformers' and the `gguf` package's knowledge: names by their table, what llama.cpp did to the numbers is
undone by the processors of transformers' `modeling_gguf_pytorch_utils`, one tensor after the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.loading.gguf.gpt_oss import GptOssProcessor
from swarm.models.loading.gguf.rotary import FACTORS
from swarm.models.loading.partial import skeleton

DEPTHS = 2
"""Some files are of the model without its head: their names lack the first part."""
PROCESSORS = {**TENSOR_PROCESSORS, "gpt-oss": GptOssProcessor}
SAID_ELSEWHERE = re.compile(re.escape(FACTORS))
"""Tensors that are in the configuration."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the model: its shape, and the tensors of the file that it is made of."""

    shape: tuple[int, ...]
    sources: tuple[str, ...]


class Names:
    """`targets`: the tensors of a model by name, of those that the file has. Raises UnsupportedModel, BadCheckpoint
    where the file has not all of them, or has others."""

    def __init__(self, architecture: str, config: PretrainedConfig, stored: dict[str, tuple[int, ...]]) -> None:
        kind: Any = PROCESSORS.get(architecture, TensorProcessor)
        self._processor = kind(config=config.to_dict())
        outline = _outline(config)
        shapes = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
        self._by_file = _named(architecture, int(config.num_hidden_layers), list(shapes), self._processor)
        sources = defaultdict(list)
        for name in stored:
            # Experts are one parameter without a kind in the model, and weights in the file.
            place = self._by_file.get(name) or self._by_file.get(name.removesuffix(".weight"))
            if place is not None:
                sources[place].append(name)
        self.targets = {place: Target(shapes[place], tuple(found)) for place, found in sources.items()}
        tied = set(getattr(outline, "all_tied_weights_keys", {}))
        self._check(architecture, stored, set(shapes) - tied)

    def _check(self, architecture: str, stored: dict[str, tuple[int, ...]], needed: set[str]) -> None:
        if untold := sorted(needed - set(self._by_file.values())):
            raise UnsupportedModel(f"nobody says what {untold[0]} is called in GGUF files of {architecture}")
        if missing := sorted(needed - self.targets.keys()):
            raise BadCheckpoint(f"it has no {missing[0]}, nor {len(missing) - 1} others that the model needs")
        taken = {name for target in self.targets.values() for name in target.sources}
        if others := sorted(name for name in stored if name not in taken and not SAID_ELSEWHERE.fullmatch(name)):
            raise UnsupportedModel(
                f"it has {others[0]} and {len(others) - 1} others for which transformers' {architecture} has no place"
            )
        for place, target in self.targets.items():
            numbers = sum(torch.Size(stored[name]).numel() for name in target.sources)
            if numbers != torch.Size(target.shape).numel():
                raise BadCheckpoint(f"{place} has {numbers} numbers in it, and in the model {list(target.shape)}")

    def order(self, source: str, rows: int) -> torch.Tensor | None:
        """Which of a matrix' rows stand where in the model, int64; None where more is done to it than that."""
        numbers = np.arange(rows, dtype=np.int64)
        try:
            done = self._processed(source, numbers[:, None], {})
        except (ValueError, IndexError, TypeError):  # it wants the columns too
            return None
        if done is None or done.shape != (rows, 1) or not np.array_equal(np.sort(done[:, 0]), numbers):
            return None
        return torch.from_numpy(np.ascontiguousarray(done[:, 0]))

    def order_of_experts(self, place: str, rows: Sequence[int]) -> torch.Tensor | None:
        """Which of an expert's rows, `rows` of each tensor of the file after those of another, stand where in the model
        (there as columns, perhaps), int64; None where more is done to them, or not the same to each expert."""
        target, total = self.targets[place], sum(rows)
        starts = np.cumsum([0, *rows[:-1]])
        experts = np.arange(target.shape[0], dtype=np.int64)[:, None] * total
        parts = {
            source: torch.from_numpy(experts + np.arange(first, first + count))[..., None]
            for source, first, count in zip(target.sources, starts, rows, strict=True)
        }
        try:
            done = self._whole(place, parts).numpy()
        except (ValueError, IndexError, TypeError, KeyError, RuntimeError):  # it wants the columns too
            return None
        if done.shape not in ((len(experts), total, 1), (len(experts), 1, total)) or total not in target.shape[1:]:
            return None
        flat = done.reshape(len(experts), total) - experts
        if (flat != flat[0]).any() or not np.array_equal(np.sort(flat[0]), np.arange(total)):
            return None
        return torch.from_numpy(np.ascontiguousarray(flat[0]))

    def made(self, place: str, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """A tensor of the model from those that it is made of, by name. Raises BadCheckpoint."""
        try:
            whole = self._whole(place, {source: part.float() for source, part in parts.items()})
        except (ValueError, IndexError, TypeError, KeyError) as error:
            raise BadCheckpoint(f"{place} is not what it should be: {' '.join(str(error).split())[:300]}") from error
        shape = self.targets[place].shape
        if whole.shape != shape:
            raise BadCheckpoint(f"{place} does not become {list(shape)} numbers")
        return whole

    def _whole(self, place: str, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the processor makes of them. Raises in as many ways as it does."""
        whole: dict[str, torch.Tensor] = {}
        for source, part in parts.items():
            done = self._processed(source, part.numpy(), whole)
            if done is not None:
                whole[place] = torch.from_numpy(np.ascontiguousarray(done))
        return whole[place]

    def _processed(self, source: str, numbers: Any, whole: dict[str, torch.Tensor]) -> Any:
        """What a processor gives back; None where it has put it into `whole`."""
        how = {"tensor_key_mapping": self._by_file, "parsed_parameters": {"tensors": whole}}
        done = self._processor.process(weights=numbers, name=source, **how)
        return None if done.name is None else done.weights


def _outline(config: PretrainedConfig) -> PreTrainedModel:
    try:
        return skeleton(config)
    except UnsupportedModel:
        raise
    except Exception as error:  # models say in many ways that a configuration is not what they expect
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise BadCheckpoint(f"its metadata is of no {config.model_type} that could be built: {words}") from error


def _named(architecture: str, blocks: int, places: list[str], processor: Any) -> dict[str, str]:
    """The model's names by the file's."""
    table = _table(architecture, blocks)
    found: dict[str, str] = {}
    for depth in range(DEPTHS):
        deeper: dict[str, str] = {}
        for place in places:
            parts = place.split(".")
            if len(parts) > depth:
                _name_one(table, processor, place, ".".join(parts[depth:]), deeper)
        found = deeper | found
    return found


def _name_one(table: Any, processor: Any, place: str, name: str, found: dict[str, str]) -> None:
    asked = processor.preprocess_name(name)
    stem, suffix = asked, ""
    if asked.endswith((".weight", ".bias")):
        stem, _, kind = asked.rpartition(".")
        suffix = f".{kind}"
    in_file = table.get_name(stem)
    if in_file is not None:
        found[f"{in_file}{suffix}"] = place
        return
    told: dict[str, str] = {}
    processor.perform_fallback_tensor_mapping(told, suffix, "", name)
    found.update(dict.fromkeys(told, place))


def _table(architecture: str, blocks: int) -> Any:
    for number, name in gguf.MODEL_ARCH_NAMES.items():
        if name == architecture:
            return gguf.get_tensor_name_map(number, blocks)
    raise UnsupportedModel(f"nobody says what tensors are called in GGUF files of {architecture}")
