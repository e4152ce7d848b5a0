"""Which files are read, of folders of every kind: those that transformers reads, or a refusal that names them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from swarm.errors import BadCheckpoint, ModelError
from swarm.models.ends.load import load_ends
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.files import INDEX, SINGLE
from swarm.models.loading.weights import dtype_of, load_part
from swarm.models.span.load import load_span
from swarm.types import Span

EMBEDDINGS, BLOCK = "model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight"


def save_as_pickle(source: Path, folder: Path) -> None:
    torch.save(load_file(source / SINGLE), folder / "pytorch_model.bin")


def two_in_one(one: Path, other: Path, folder: Path) -> None:
    """Shards, of which a later one also holds a tensor that the index finds in an earlier one."""
    tensors, foreign = load_file(one / SINGLE), load_file(other / SINGLE)
    save_file(tensors, folder / "a.safetensors", metadata={"format": "pt"})
    save_file(
        {BLOCK: foreign[BLOCK], EMBEDDINGS: foreign[EMBEDDINGS]}, folder / "b.safetensors", metadata={"format": "pt"}
    )
    files = dict.fromkeys(tensors, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def named_by_the_configuration(one: Path, other: Path, folder: Path) -> None:
    shutil.copy(one / SINGLE, folder / SINGLE)
    shutil.copy(other / SINGLE, folder / "mine.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))


def copy_shards(source: Path, folder: Path) -> None:
    for file in source.glob("model*.safetensors*"):
        shutil.copy(file, folder)


def put(of: dict[str, Path], to: Path, *what: str) -> None:
    """Lay these into the folder: `one`, `other` (of which each is a file), `shards`, `pickle` (of the other)."""
    for name in what:
        if name == "shards":
            copy_shards(of[name], to)
        elif name == "pickle":
            save_as_pickle(of["other"], to)
        else:
            shutil.copy(of[name] / SINGLE, to)


KINDS: dict[str, Callable[[dict[str, Path], Path], object]] = {
    "one file": lambda of, to: put(of, to, "one"),
    "shards": lambda of, to: put(of, to, "shards"),
    "one file beside shards of another": lambda of, to: put(of, to, "shards", "other"),
    "one file beside a pickle of another": lambda of, to: put(of, to, "one", "pickle"),
    "shards beside a pickle of another": lambda of, to: put(of, to, "shards", "pickle"),
    "a tensor in two shards": lambda of, to: two_in_one(of["one"], of["other"], to),
    "a file named by the configuration": lambda of, to: named_by_the_configuration(of["one"], of["other"], to),
}


@pytest.fixture
def sources(save: Any) -> dict[str, Path]:
    return {
        "one": save("llama", name="one")[0],
        "shards": save("llama", name="shards", shard="20KB")[0],
        "other": save("llama", name="other", seed=9)[0],
    }


@pytest.fixture
def folder(sources: dict[str, Path], tmp_path: Path) -> Path:
    """A model's folder without tensors."""
    made = tmp_path / "made"
    made.mkdir()
    shutil.copy(sources["one"] / "config.json", made)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_tensors_are_those_that_the_library_takes(sources: dict[str, Path], folder: Path, kind: str) -> None:
    KINDS[kind](sources, folder)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    ends, _ = load_ends(folder, progress=False)
    block = load_part(open_checkpoint(folder), Span(2, 3), ends=False, dtype=torch.float32, progress=False)
    assert torch.equal(ends.state_dict()[EMBEDDINGS], whole[EMBEDDINGS])
    assert torch.equal(block.model.state_dict()[BLOCK], whole[BLOCK])


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("subfolder", ["", "inner", "in/ner"])
def test_variants_and_subfolders(sources: dict[str, Path], tmp_path: Path, variant: str | None, subfolder: str) -> None:
    made = tmp_path / "made"
    AutoModelForCausalLM.from_pretrained(sources["other"]).save_pretrained(made / subfolder, variant=variant)
    if variant:
        shutil.copy(sources["one"] / SINGLE, made / subfolder / SINGLE)
    whole = AutoModelForCausalLM.from_pretrained(made, variant=variant, subfolder=subfolder).state_dict()
    checkpoint = open_checkpoint(made, variant=variant, subfolder=subfolder)
    ends, _ = load_ends(checkpoint, progress=False)
    assert torch.equal(ends.state_dict()[EMBEDDINGS], whole[EMBEDDINGS])
    assert checkpoint.key == open_checkpoint(sources["other"]).key
    if variant is None:
        assert ends.generation_config.eos_token_id == 2


def without_a_shard(of: dict[str, Path], to: Path) -> None:
    put(of, to, "shards")
    min(to.glob("model-*")).unlink()


def with_an_adapter(of: dict[str, Path], to: Path) -> None:
    put(of, to, "one")
    (to / "adapter_config.json").write_text("{}")


REFUSED: dict[str, tuple[Callable[[dict[str, Path], Path], object], dict[str, Any], str]] = {
    "nothing": (lambda of, to: None, {}, "neither model.safetensors nor model.safetensors.index.json"),
    "a pickle": (lambda of, to: put(of, to, "pickle"), {}, "only pytorch_model.bin, a pickle"),
    "pickles": (lambda of, to: (to / "pytorch_model.bin.index.json").write_text("{}"), {}, "bin.index.json, a pickle"),
    "a variant that is not there": (lambda of, to: put(of, to, "one"), {"variant": "fp16"}, "without the variant"),
    "a shard that is not there": (without_a_shard, {}, "is missing"),
    "an adapter": (with_an_adapter, {}, "has an adapter"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_named(sources: dict[str, Path], folder: Path, kind: str) -> None:
    make, options, words = REFUSED[kind]
    make(sources, folder)
    with pytest.raises(BadCheckpoint, match=words):
        load_span(open_checkpoint(folder, **options), Span(0, 4), progress=False)
    with pytest.raises(BadCheckpoint, match=words):
        assert open_checkpoint(folder, **options).key


@pytest.mark.parametrize("named", ["../one/model.safetensors", "pytorch_model.bin", "other.safetensors"])
def test_weights_that_the_configuration_names_are_beside_it(folder: Path, named: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": named}))
    with pytest.raises(BadCheckpoint, match=r"names .* as"):
        load_span(folder, Span(0, 4), progress=False)


# ---- the dtype that the tensors are in -------------------------------------------------------------------------


def make(save: Any, dtype: torch.dtype, shard: str = "1GB", named: str | None = None, mixed: bool = False) -> Path:
    """A checkpoint whose configuration names that dtype, or none; `mixed`: its norms are in float32."""
    folder, model = save("llama", name="plain")
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if mixed and "norm" in name:
            parameter.data = parameter.data.float()
    target: Path = folder.parent / "made"
    model.save_pretrained(target, max_shard_size=shard)
    config = json.loads((target / "config.json").read_text())
    del config["dtype"]
    (target / "config.json").write_text(json.dumps(config | ({"torch_dtype": named} if named else {})))
    return target


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("named", [None, "float16"])
@pytest.mark.parametrize("shard", ["1GB", "10KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_that_of_the_tensors_where_no_other_is_named(
    save: Any, dtype: torch.dtype, shard: str, named: str | None, mixed: bool
) -> None:
    folder = make(save, dtype, shard, named, mixed)
    expected = AutoModelForCausalLM.from_pretrained(folder).dtype
    assert dtype_of(open_checkpoint(folder)) == expected
    assert dtype_of(open_checkpoint(folder), "auto") == expected
    assert load_span(folder, Span(1, 2), progress=False).dtype == expected
    assert load_ends(folder, progress=False)[0].dtype == expected


@pytest.mark.parametrize("asked", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_that_is_asked_for(save: Any, asked: Any) -> None:
    assert dtype_of(open_checkpoint(make(save, torch.float32)), asked) == torch.bfloat16


def test_tensors_in_a_dtype_that_is_not_computed_in(save: Any) -> None:
    with pytest.raises(ModelError, match="float64"):
        dtype_of(open_checkpoint(make(save, torch.float64)))
