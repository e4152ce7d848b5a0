"""Choosing tokens: the library's own processors are the oracle, and the frequencies of the draws a distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swarm.errors import InvalidInput
from swarm.gateway.sampling import Sampler, Settings, gumbel, logprobs, settings_of, truncate
from swarm.wire import swarm_pb2 as pb

VOCABULARY = 12


def logits(seed: int) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


@given(
    st.integers(0, 1000),
    st.sampled_from([0, 1, 3, 12, 50]),
    st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.sampled_from([0.3, 1.0, 2.0]),
)
@settings(max_examples=200)
def test_the_tokens_that_may_be_drawn_are_the_librarys(
    seed: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    chosen = Settings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    right = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), logits(seed)[None])[0]
    tokens, _ = truncate(logits(seed) / temperature, chosen)
    assert sorted(tokens.tolist()) == torch.isfinite(right).nonzero().flatten().tolist()


@given(st.integers(0, 1000), st.lists(st.integers(0, 11), min_size=1, max_size=8), st.sampled_from([0.5, 1.3]))
@settings(max_examples=100)
def test_the_repetition_penalty_is_the_librarys(seed: int, ids: list[int], penalty: float) -> None:
    sampler = Sampler(Settings(repetition_penalty=penalty), ids[:2], ids[2:])
    right = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits(seed)[None])
    assert sampler.choose(logits(seed)) == int(right.argmax())


def test_presence_and_frequency_count_what_was_generated_alone() -> None:
    scores = torch.zeros(VOCABULARY)
    scores[3], scores[4], scores[5] = 3.0, 2.5, 2.2
    prompt, generated = [4, 4, 4], [3, 3]
    assert Sampler(Settings(frequency_penalty=0.2), prompt, generated).choose(scores) == 3
    assert Sampler(Settings(frequency_penalty=0.3), prompt, generated).choose(scores) == 4
    assert Sampler(Settings(presence_penalty=0.6), prompt, generated).choose(scores) == 4
    assert Sampler(Settings(biases=((5, 1.0),)), prompt, generated).choose(scores) == 5


@pytest.mark.parametrize("chosen", [Settings(temperature=1.0), Settings(temperature=0.7, top_k=4)])
def test_draws_have_the_distribution_that_was_asked_for(chosen: Settings) -> None:
    scores, draws = logits(3), 10_000
    counts = np.zeros(VOCABULARY)
    sampler = Sampler(chosen, [0])
    for _ in range(draws):
        drawn = sampler.choose(scores)
        sampler.take(drawn)
        counts[drawn] += 1
    tokens, kept = truncate(scores / chosen.temperature, chosen)
    expected = np.zeros(VOCABULARY)
    expected[tokens.numpy()] = torch.softmax(kept.double(), -1).numpy() * draws
    likely = expected > 5
    chi = float((((counts - expected) ** 2)[likely] / expected[likely]).sum())
    # The 99.9 % quantile of chi-square with 11 degrees of freedom.
    assert chi < 31.3
    assert counts[expected == 0].sum() == 0


def test_noise_is_a_function_of_seed_position_and_token() -> None:
    tokens = np.arange(1000)
    draws = gumbel(1, 2, tokens)
    assert (draws == gumbel(1, 2, tokens)).all()
    assert (draws[5:7] == gumbel(1, 2, np.array([5, 6]))).all()
    others = [gumbel(2, 2, tokens), gumbel(1, 3, tokens), gumbel(1, 2, tokens + 1000)]
    for other in others:
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.1
    assert abs(draws.mean() - 0.5772) < 0.1
    assert np.isfinite(gumbel((1 << 64) - 1, (1 << 40), np.array([0, (1 << 31) - 1]))).all()


def test_what_the_asker_leaves_open_is_as_recommended() -> None:
    recommended = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": None}
    assert settings_of(pb.Sampling(), recommended, 10) == Settings(temperature=0.6, top_p=0.9)
    assert settings_of(pb.Sampling(temperature=0.0, seed=3), {}, 10) == Settings(seed=3)
    assert settings_of(pb.Sampling(temperature=0.0), recommended, 10).temperature == 0.0
    assert settings_of(pb.Sampling(), {}, 10).plain


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": float("inf")}, {"top_p": 1.1}, {"min_p": -0.1}, {"presence_penalty": 3}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        settings_of(pb.Sampling(**wrong), {}, 10)


def test_logprobs_are_told_best_first() -> None:
    scores = torch.tensor([0.0, 2.0, 1.0])
    value, top = logprobs(scores, 0, 2)
    assert [token for token, _ in top] == [1, 2]
    assert value == pytest.approx(float(torch.log_softmax(scores, -1)[0]))
