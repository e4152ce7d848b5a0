"""A thousand random fault schedules: never a wrong token, never a hang, never a leak."""

from __future__ import annotations

import copy
import functools
from collections import Counter

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm.models.span import SpanModel
from swarm.types import Span
from tests.chaos import BLOCKS, play_seed
from tests.simulation import Arithmetic


@pytest.mark.parametrize("hundred", range(10))
def test_random_faults(hundred: int) -> None:
    ends = Counter(play_seed(seed) for seed in range(hundred * 100, hundred * 100 + 100))
    assert set(ends) <= {"exact", "missing"}
    assert ends["exact"] > 80


def test_the_same_seed_plays_the_same() -> None:
    assert [play_seed(seed) for seed in range(5)] == [play_seed(seed) for seed in range(5)]


def test_random_faults_on_real_layers() -> None:
    """Fifty of them on torch layers, cut out of one Llama."""
    torch.set_num_threads(1)
    ends = Counter(play_seed(seed, llama_arithmetic()) for seed in range(50))
    assert ends["exact"] > 40


@functools.cache
def llama_arithmetic(hidden_size: int = 16) -> Arithmetic:
    """A random Llama of six blocks; tokens are embedded and chosen as a client does."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()

    def embed(token: int, position: int) -> bytes:
        with torch.inference_mode():
            return model.model.embed_tokens.weight[token % config.vocab_size].numpy().tobytes()

    def token_of(output: bytes) -> int:
        with torch.inference_mode():
            hidden = torch.frombuffer(bytearray(output[-4 * hidden_size :]), dtype=torch.float32)
            return int(model.lm_head(model.model.norm(hidden)).argmax())

    def make_runner(span: Span) -> SpanModel:
        return SpanModel(copy.deepcopy(model), span)

    return Arithmetic(4 * hidden_size, embed, token_of, make_runner, "float32", hidden_size)
