"""Which of a checkpoint's files hold its tensors: those that transformers would read, or a refusal that names them.

Pickled checkpoints are refused where transformers would read them: they can run code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarm.errors import BadCheckpoint

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Picked:
    """The file that holds all tensors or, if `sharded`, says which file holds which."""

    file: str
    sharded: bool


def pick(has: Callable[[str], bool], name: str, variant: str | None = None, named: str | None = None) -> Picked:
    """The file to begin with, in the library's order: what the configuration names, the single file, the index.

    `has`: whether there is a file of that name; `name`: the model's, for errors; `variant`: as in
    `model.fp16.safetensors`; `named`: the configuration's `transformers_weights`. Raises BadCheckpoint.
    """
    if named is not None:
        return _named(has, name, named)
    single, index, *pickled = (with_variant(file, variant) for file in (SINGLE, INDEX, *PICKLED))
    if has(single):
        return Picked(single, sharded=False)
    if has(index):
        return Picked(index, sharded=True)
    if found := next(filter(has, pickled), None):
        raise BadCheckpoint(
            f"{name} has only {found}, a pickle, which could run any code; convert it to safetensors "
            "(load it with transformers and save_pretrained it again)"
        )
    raise BadCheckpoint(f"{name} has neither {single} nor {index}{_without(has, variant)}")


def with_variant(file: str, variant: str | None) -> str:
    """`model.safetensors` → `model.fp16.safetensors`."""
    if variant is None:
        return file
    stem, _, ending = file.rpartition(".")
    return f"{stem}.{variant}.{ending}"


def _named(has: Callable[[str], bool], name: str, file: str) -> Picked:
    if "/" in file or "\\" in file or not file.endswith((".safetensors", ".safetensors.index.json")):
        raise BadCheckpoint(
            f"{name}: config.json names {file!r} as its weights, which is no safetensors file beside it"
        )
    if not has(file):
        raise BadCheckpoint(f"{name}: config.json names {file} as its weights, and there is no such file")
    return Picked(file, sharded=file.endswith(".json"))


def _without(has: Callable[[str], bool], variant: str | None) -> str:
    there = [file for file in (SINGLE, INDEX) if variant is not None and has(file)]
    return f"; there is {there[0]}, without the variant" if there else ""
