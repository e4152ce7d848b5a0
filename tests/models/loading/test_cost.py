"""What a model costs, told from its configuration, against the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from swarm.errors import ModelNotFound, UnsupportedModel
from swarm.models.blocks import find_blocks
from swarm.models.loading.cost import describe

MODEL_TYPES = ("llama", "gemma2", "qwen2_moe", "gpt2")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_bytes_are_those_of_the_model(save, model_type: str, tied: bool) -> None:
    folder, model = save(model_type, tie_word_embeddings=tied)
    said = describe(folder, dtype="bfloat16")
    layers = find_blocks(model).layers
    assert said.weight_bytes == tuple(sum(p.numel() for p in layer.parameters()) * 2 for layer in layers)
    assert sum(said.weight_bytes) + said.ends_bytes == sum(p.numel() for p in model.parameters()) * 2
    assert (said.model_type, said.vocabulary, said.tied) == (model_type, 96, tied)
    assert (said.info.blocks, said.info.hidden_size, said.info.context_length) == (4, 32, 64)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_cache_is_that_of_the_model(save, model_type: str) -> None:
    folder, model = save(model_type)
    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), past_key_values=cache)
    measured = tuple((layer.keys.nbytes + layer.values.nbytes) // 3 for layer in cache.layers)
    assert describe(folder, dtype=torch.float32).cache_bytes == measured


def test_blocks_that_differ_are_told_apart(save) -> None:
    folder, _ = save("qwen2_moe")
    sizes = describe(folder).weight_bytes
    assert sizes[0] == sizes[2] != sizes[1] == sizes[3]


def test_the_dtype_is_the_checkpoints_own_unless_asked(save) -> None:
    folder, _ = save("llama")
    assert describe(folder).dtype is torch.float32
    assert describe(folder, dtype="float16").weight_bytes[0] * 2 == describe(folder).weight_bytes[0]
    with pytest.raises(UnsupportedModel, match="float64"):
        describe(folder, dtype=torch.float64)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        describe(tmp_path)
