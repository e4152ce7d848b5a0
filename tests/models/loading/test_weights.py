"""A span's tensors, and nothing else, from whatever a checkpoint's files look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from survey.configs import small_config
from survey.images import build_seeing, seeing_config
from survey.reference import build
from swarm.errors import BadCheckpoint, ModelNotFound, UnsupportedModel
from swarm.models.blocks import find_blocks
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.files import INDEX, SINGLE
from swarm.models.loading.weights import PartialModel, load_part
from swarm.types import Span

BLOCKS, MODEL_TYPES = 4, ("llama", "gemma2", "qwen2_moe", "gpt2")


def load_blocks(folder: Path, span: Span, dtype: torch.dtype = torch.float32) -> PartialModel:
    return load_part(open_checkpoint(folder), span, ends=False, dtype=dtype, progress=False)


def assert_same_block(loaded: PartialModel, whole: PreTrainedModel, block: int) -> None:
    got, expected = loaded.blocks.layers[block].state_dict(), find_blocks(whole).layers[block].state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace tensors of a checkpoint of one file; None removes one."""
    tensors = load_file(folder / SINGLE)
    tensors.update({name: tensor for name, tensor in change.items() if tensor is not None})
    kept = {name: tensor for name, tensor in tensors.items() if change.get(name, tensor) is not None}
    save_file(kept, folder / SINGLE, metadata={"format": "pt"})


def test_blocks_that_the_model_itself_reaches_into_are_loaded(tmp_path: Path) -> None:
    whole: Any = build(small_config("falcon_h1"))
    whole.save_pretrained(tmp_path)
    loaded = load_blocks(tmp_path, Span(1, 3))
    assert_same_block(loaded, whole, 1)
    here, there = loaded.blocks.layers[2], find_blocks(whole).layers[2]
    assert torch.equal(here.mamba.mup_vector, there.mamba.mup_vector)  # made at load, in no file
    assert not list(loaded.blocks.layers[0].parameters())


@pytest.mark.parametrize("shard", ["1GB", "30KB"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_span_equals_what_the_library_loads(save, model_type: str, shard: str) -> None:
    folder, _ = save(model_type, shard=shard)
    assert (folder / INDEX).exists() == (shard == "30KB")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded = load_blocks(folder, Span(1, 3))
    for block in (1, 2):
        assert_same_block(loaded, whole, block)
    assert sorted(loaded.fingerprints) == [1, 2]
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_span_has_no_other_tensors_and_nothing_on_meta(save, model_type: str) -> None:
    folder, whole = save(model_type)
    loaded = load_blocks(folder, Span(1, 2))
    prefix = f"{loaded.blocks.prefix}1."
    assert all(name.startswith(prefix) for name in loaded.model.state_dict())
    buffers = dict(whole.named_buffers())
    for name, buffer in loaded.model.named_buffers():
        assert buffer.device.type == "cpu", name
        if buffer.numel():  # what stands for an absent part may have an empty one
            assert torch.equal(buffer, buffers[name]), name


def test_another_dtype_is_converted_as_the_library_does(save) -> None:
    folder, _ = save("llama")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert_same_block(load_blocks(folder, Span(0, 1), torch.bfloat16), whole, 0)


def test_only_the_files_that_hold_the_span_are_read(save) -> None:
    folder, whole = save("llama", shard="30KB")
    files = json.loads((folder / INDEX).read_text())["weight_map"]
    needed = {file for name, file in files.items() if name.startswith("model.layers.2.")}
    others = set(files.values()) - needed
    assert others
    for file in others:
        (folder / file).unlink()
    assert_same_block(load_blocks(folder, Span(2, 3)), whole, 2)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_fingerprints_do_not_depend_on_span_files_or_dtype(save, model_type: str) -> None:
    whole, _ = save(model_type, name="single")
    cut, _ = save(model_type, name="sharded", shard="30KB")
    expected = load_blocks(whole, Span(0, BLOCKS)).fingerprints
    assert len(set(expected.values())) == BLOCKS
    assert all(len(fingerprint) == 32 for fingerprint in expected.values())
    for folder in (whole, cut):
        for span in (Span(0, 2), Span(1, 4), Span(2, 3)):
            found = load_blocks(folder, span, torch.bfloat16).fingerprints
            assert found == {block: expected[block] for block in span}


def test_one_changed_number_changes_its_block_and_no_other(save) -> None:
    folder, _ = save("llama")
    before = load_blocks(folder, Span(0, BLOCKS)).fingerprints
    name = "model.layers.2.mlp.up_proj.weight"
    tensor = load_file(folder / SINGLE)[name]
    tensor[20, 10] += 1e-3
    rewrite(folder, {name: tensor})
    after = load_blocks(folder, Span(0, BLOCKS)).fingerprints
    assert [block for block in before if before[block] != after[block]] == [2]


def test_a_key_is_that_of_the_content_whatever_the_folder_and_its_files(save) -> None:
    keys = [
        open_checkpoint(save("llama", name=name, shard=shard)[0]).key for name, shard in (("a", "1GB"), ("b", "30KB"))
    ]
    assert keys[0] == keys[1]
    assert open_checkpoint(save("llama", name="tuned", seed=1)[0]).key != keys[0]
    assert open_checkpoint(save("llama", name="theta", rms_norm_eps=0.5)[0]).key != keys[0]


def test_a_fine_tune_of_a_few_numbers_has_another_key(save) -> None:
    folder, _ = save("llama", vocab_size=4096)
    before = open_checkpoint(folder).key
    tensor = load_file(folder / SINGLE)["model.layers.2.mlp.up_proj.weight"]
    tensor[20, 10] += 1e-3
    rewrite(folder, {"model.layers.2.mlp.up_proj.weight": tensor})
    assert open_checkpoint(folder).key != before


def test_a_missing_tensor_is_named(save) -> None:
    folder, _ = save("llama")
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(folder, {name: None})
    load_blocks(folder, Span(2, 3))
    with pytest.raises(BadCheckpoint, match=r"lacks 1 tensors.*layers\.1\.self_attn\.q_proj"):
        load_blocks(folder, Span(1, 2))


def test_a_tensor_of_another_shape_is_a_bad_checkpoint(save) -> None:
    folder, _ = save("llama")
    rewrite(folder, {"model.layers.1.self_attn.q_proj.weight": torch.zeros(3, 3)})
    with pytest.raises(BadCheckpoint):
        load_blocks(folder, Span(1, 2))


def test_a_missing_file_of_the_span_is_a_bad_checkpoint(save) -> None:
    folder, _ = save("llama", shard="30KB")
    file = json.loads((folder / INDEX).read_text())["weight_map"]["model.layers.2.mlp.up_proj.weight"]
    (folder / file).unlink()
    with pytest.raises(BadCheckpoint, match=file):
        load_blocks(folder, Span(2, 3))


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.99])
def test_a_file_cut_short_is_a_bad_checkpoint(save, keep: float) -> None:
    folder, _ = save("llama")
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(BadCheckpoint, match="damaged"):
        load_blocks(folder, Span(0, 1))


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
        '{"weight_map": {"a": "x.bin"}}',
    ],
)
def test_a_broken_index_is_a_bad_checkpoint(save, index: str) -> None:
    folder, _ = save("llama", shard="30KB")
    (folder / INDEX).write_text(index)
    with pytest.raises(BadCheckpoint):
        load_blocks(folder, Span(0, 1))


def test_pickles_are_refused_and_safetensors_named(save) -> None:
    folder, _ = save("llama")
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match="safetensors"):
        load_blocks(folder, Span(0, 1))


def test_no_tensors_at_all(save) -> None:
    folder, _ = save("llama")
    (folder / SINGLE).unlink()
    with pytest.raises(BadCheckpoint, match="neither"):
        load_blocks(folder, Span(0, 1))


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_broken_configuration_is_a_bad_checkpoint(save, text: str) -> None:
    folder, _ = save("llama")
    (folder / "config.json").write_text(text)
    with pytest.raises(BadCheckpoint):
        _ = open_checkpoint(folder).config


@pytest.mark.parametrize("text", ["{}", '{"model_type": "no_such_model"}'])
def test_an_unknown_architecture_is_unsupported(save, text: str) -> None:
    folder, _ = save("llama")
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedModel):
        _ = open_checkpoint(folder).config


def test_no_such_folder_or_no_model_in_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no folder"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(ModelNotFound, match="neither a folder"):
        open_checkpoint("not a/valid/name")


def test_blocks_that_do_not_exist_are_refused(save) -> None:
    folder, _ = save("llama")
    with pytest.raises(UnsupportedModel, match="0:4"):
        load_blocks(folder, Span(3, 5))


def cached(root: Path, model: PreTrainedModel, shard: str) -> str:
    """Put a model where the hub's client keeps what `hf download` fetched. Returns its commit."""
    commit = "a" * 40
    folder = root / "models--org--tiny"
    model.save_pretrained(folder / "snapshots" / commit, max_shard_size=shard)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return commit


@pytest.mark.parametrize("shard", ["30KB", "1GB"])
def test_what_was_fetched_from_the_hub_loads_offline(save, tmp_path: Path, monkeypatch, shard: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    _, model = save("llama")
    commit = cached(tmp_path / "hub", model, shard)
    for revision in (None, "main", commit):
        checkpoint = open_checkpoint("org/tiny", revision=revision)
        assert checkpoint.commit == commit
        loaded = load_part(checkpoint, Span(1, 2), ends=False, dtype=torch.float32, progress=False)
        assert_same_block(loaded, model, 1)


def test_what_is_not_in_the_cache_is_not_found_offline(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelNotFound, match="org/absent is not on this machine"):
        open_checkpoint("org/absent")


def test_what_the_way_to_the_blocks_keeps_is_loaded_with_a_span(tmp_path: Path) -> None:
    """Rotary embeddings that learn: they are no block and no end, and every span has them."""
    whole = build_seeing(seeing_config("mistral_large4"))
    alpha = whole.model.language_model.rotary_emb.alpha
    alpha.copy_(torch.linspace(0.1, 0.9, len(alpha)))
    whole.save_pretrained(tmp_path)
    for quantization in ("none", "int8"):
        how = {"dtype": torch.float32, "quantization": quantization, "progress": False}
        part: Any = load_part(open_checkpoint(tmp_path), Span(0, 2), ends=False, **how).model
        assert torch.equal(part.model.language_model.rotary_emb.alpha, alpha)
