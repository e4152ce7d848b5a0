"""The client's part of a model: everything but the blocks that others compute."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from swarm.errors import BadCheckpoint
from swarm.models.blocks import find_blocks
from swarm.models.ends.load import load_ends, returns_tuple
from swarm.models.loading.files import INDEX, SINGLE
from swarm.types import Span

MODEL_TYPES = ("llama", "gemma2", "qwen2_moe", "gpt2")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_everything_but_the_blocks_is_there_and_right(save, model_type: str, tied: bool) -> None:
    folder, _ = save(model_type, tie_word_embeddings=tied)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model, checkpoint = load_ends(folder, dtype="float32", progress=False)
    blocks = find_blocks(model)
    expected = {name: value for name, value in whole.state_dict().items() if not name.startswith(blocks.prefix)}
    got = model.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert len(blocks.layers) == 0
    assert type(model).__name__ == type(whole).__name__
    assert isinstance(model, type(whole))
    assert model.config.num_hidden_layers == blocks.total == 4
    assert not model.training
    assert checkpoint.folder == folder


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_one_tensor(save, model_type: str, tied: bool) -> None:
    folder, _ = save(model_type, tie_word_embeddings=tied)
    assert ("lm_head.weight" in load_file(folder / SINGLE)) == (not tied)
    model, _ = load_ends(folder, progress=False)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embeddings is head) == tied


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_buffers_that_no_file_holds_are_right(save, model_type: str) -> None:
    folder, _ = save(model_type)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model, _ = load_ends(folder, progress=False)
    expected = {n: b for n, b in whole.named_buffers() if not n.startswith(find_blocks(model).prefix)}
    got = dict(model.named_buffers())
    assert got.keys() == expected.keys()
    for name, buffer in got.items():
        assert buffer.device.type == "cpu", name
        assert torch.equal(buffer, expected[name]), name


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_local_blocks_are_kept_with_their_own_index(save, model_type: str) -> None:
    folder, _ = save(model_type)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model, _ = load_ends(folder, local_blocks=Span(1, 3), progress=False)
    layers = find_blocks(model).layers
    assert len(layers) == 2
    for layer, block in zip(layers, (1, 2), strict=True):
        expected = find_blocks(whole).layers[block].state_dict()
        assert layer.state_dict().keys() == expected.keys()
        assert all(torch.equal(layer.state_dict()[name], value) for name, value in expected.items())
        assert {part.layer_idx for part in layer.modules() if hasattr(part, "layer_idx")} == {block}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_all_blocks_local_is_the_whole_model(save, model_type: str) -> None:
    folder, _ = save(model_type)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model, _ = load_ends(folder, local_blocks=Span(0, 4), progress=False)
    tokens = torch.tensor([[5, 9, 33, 7, 21, 60, 3, 11, 40, 2]])
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, whole(tokens).logits)


def test_files_that_hold_only_blocks_are_not_read(save) -> None:
    folder, _ = save("llama", shard="15KB")
    files = json.loads((folder / INDEX).read_text())["weight_map"]
    needed = {file for name, file in files.items() if not name.startswith("model.layers.")}
    assert set(files.values()) - needed
    for file in set(files.values()) - needed:
        (folder / file).unlink()
    model, _ = load_ends(folder, progress=False)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_the_blocks_of_others_never_take_memory(save, monkeypatch) -> None:
    folder, _ = save("llama")
    real = []
    register = nn.Module.register_parameter

    def watch(module, name, parameter) -> None:
        if parameter is not None and parameter.device.type != "meta":
            real.append(parameter.shape)
        register(module, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", watch)
    load_ends(folder, progress=False)
    assert (48, 32) not in [tuple(shape) for shape in real]


def test_the_authors_generation_settings_are_kept(save) -> None:
    folder, _ = save("llama")
    GenerationConfig(do_sample=True, temperature=0.3, top_k=7, eos_token_id=[2, 5]).save_pretrained(folder)
    model, _ = load_ends(folder, progress=False)
    assert (model.generation_config.temperature, model.generation_config.top_k) == (0.3, 7)
    assert model.generation_config.eos_token_id == [2, 5]
    (folder / "generation_config.json").unlink()
    model, _ = load_ends(folder, progress=False)
    assert model.generation_config.eos_token_id == 2


def test_missing_embeddings_are_a_bad_checkpoint(save) -> None:
    folder, _ = save("llama", shard="15KB")
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.embed_tokens.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match="embed_tokens"):
        load_ends(folder, progress=False)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_blocks_return_is_found_and_the_model_left_as_it_was(save, model_type: str) -> None:
    folder, whole = save(model_type)
    model, _ = load_ends(folder, progress=False)
    before = model.config.to_dict()
    block = find_blocks(whole).layers[0]
    seen = []
    block.register_forward_hook(lambda module, inputs, output: seen.append(isinstance(output, tuple)))
    with torch.inference_mode():
        whole(torch.tensor([[1, 2]]))
    assert [returns_tuple(model)] == seen
    assert model.config.to_dict() == before
    assert len(find_blocks(model).layers) == 0


def test_several_threads_may_load_at_a_time(save) -> None:
    folder, _ = save("llama", tie_word_embeddings=True)
    before = torch.get_default_dtype()

    def load(place: int) -> torch.Tensor:
        dtype = ("float32", "bfloat16")[place % 2]
        model, _ = load_ends(folder, dtype=dtype, progress=False)
        assert str(model.dtype) == f"torch.{dtype}"
        return model.get_output_embeddings().weight.float().sum()

    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(load, range(24)))
    assert all(torch.isclose(one, sums[0], rtol=0.1, atol=0.1) for one in sums)
    assert torch.get_default_dtype() is before
