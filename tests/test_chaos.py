"""Random fault schedules: never a wrong token, never a hang, never a leak."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm.models.span.model import SpanModel
from swarm.testing import Arithmetic
from swarm.types import Span
from tests.chaos import BLOCKS, outcome, play_seed


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Scenarios are many, and each is played on its own."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=begin) as pool:
        yield pool


def begin() -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)


def ends_of(ends: Iterable[tuple[int, str]]) -> Counter[str]:
    """How many ended how. Fails, with its seed, for one that ended as none may."""
    counted: Counter[str] = Counter()
    for seed, end in ends:
        assert end in ("exact", "missing"), f"seed {seed}: {end}"
        counted[end] += 1
    return counted


@pytest.mark.parametrize("schedules", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_random_faults(processes: ProcessPoolExecutor, schedules: int) -> None:
    assert ends_of(processes.map(outcome, range(schedules), chunksize=25))["exact"] > 0.8 * schedules


@pytest.mark.parametrize("schedules", [60, pytest.param(2000, marks=pytest.mark.soak)])
def test_random_faults_with_a_standby(processes: ProcessPoolExecutor, schedules: int) -> None:
    """Faults of what runs, of what stands by, of both, while it is filled."""
    play = functools.partial(outcome, standby=1)
    assert ends_of(processes.map(play, range(schedules), chunksize=10))["exact"] > 0.8 * schedules


@pytest.mark.parametrize("schedules", [12, pytest.param(60, marks=pytest.mark.soak)])
def test_random_faults_on_real_layers(processes: ProcessPoolExecutor, schedules: int) -> None:
    """On torch layers, cut out of one Llama."""
    play = functools.partial(outcome, arithmetic=llama_arithmetic)
    assert ends_of(processes.map(play, range(schedules)))["exact"] > 0.8 * schedules


def test_the_same_seed_plays_the_same() -> None:
    assert [play_seed(seed) for seed in range(20)] == [play_seed(seed) for seed in range(20)]


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
