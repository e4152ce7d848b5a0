"""How many logits decide: the library comes to the same tokens with these and with all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from swarm.models.ends.best import deciding_logits
from swarm.models.linear.elsewhere import RemoteHead, asking

VOCABULARY = 400
LONGEST = 24


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=1, **sizes)).eval()


def needed(options: dict[str, Any]) -> int:
    return deciding_logits(lambda name: options.get(name), options, LONGEST)


class Service:
    """Who has the head, which makes these logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.given, self.asked = logits, list[int]()

    def logits(self, rows: bytes, count: int, best: int) -> tuple[bytes, bytes]:
        self.asked.append(best)
        values, tokens = self.given.topk(best or VOCABULARY)
        if not best:
            return b"", self.given.numpy().tobytes()
        return tokens.to(torch.int32).numpy().tobytes(), values.numpy().tobytes()

    def embeddings(self, tokens: Sequence[int]) -> bytes:
        raise AssertionError("nobody asks")


SAMPLED = st.fixed_dictionaries(
    {"do_sample": st.just(True), "top_k": st.integers(1, 60)},
    optional={
        "temperature": st.floats(0.1, 3.0),
        "top_p": st.floats(0.1, 1.0),
        "min_p": st.floats(0.0, 0.5),
        "typical_p": st.floats(0.2, 1.0),
        "epsilon_cutoff": st.floats(0.0, 0.01),
    },
)
LOWERED = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.floats(1.0, 2.0),
        "no_repeat_ngram_size": st.integers(1, 3),
        "suppress_tokens": st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5),
        "min_new_tokens": st.integers(1, 30),
    },
)


@settings(max_examples=40)
@given(
    st.one_of(st.just({"do_sample": False}), SAMPLED),
    LOWERED,
    st.integers(0, 1 << 30),
    st.sampled_from([1.0, 8.0]),
    st.integers(1, 4),
)
def test_the_same_token_is_chosen(
    model: Any, how: dict[str, Any], lowered: dict[str, Any], seed: int, spread: float, like: int
) -> None:
    options = how | lowered
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (1, LONGEST - 1), generator=generator)
    # Some are equal, as those in 16 bits are.
    logits = (torch.randn(1, VOCABULARY, generator=generator) * spread * like).round() / like
    # What was said lately is likely, so that lowering it counts.
    logits[0, ids[0]] += 4.0
    head = RemoteHead(1, VOCABULARY, torch.float32)
    head.service = Service(logits)
    with asking(needed(options)):
        some = head(torch.zeros(1, 1))
    config = GenerationConfig(eos_token_id=2, pad_token_id=0, **options)
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device="cpu")
    processors = model._get_logits_processor(config, ids.shape[1], ids, device="cpu", model_kwargs={})
    chosen = []
    for each in (logits, some):
        scores = processors(ids, each.clone())
        if how["do_sample"]:
            torch.manual_seed(seed)
            chosen.append(int(torch.multinomial(torch.softmax(scores, dim=-1), 1)))
        else:
            chosen.append(float(scores.max()))
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "top_k": 20, "top_h": 0.4},
        {"num_beams": 2},
        {"output_scores": True},
        {"output_logits": True},
        {"guidance_scale": 1.5},
        {"sequence_bias": {(3,): 1.0}},
        {"repetition_penalty": 0.9},
        {"renormalize_logits": True},
        {"remove_invalid_values": True},
        {"logits_processor": [object()]},
        {"prefix_allowed_tokens_fn": print},
        {"assistant_model": object()},
    ],
)
def test_what_may_look_at_any_logit_gets_all(options: dict[str, Any]) -> None:
    assert needed(options) == 0


def test_few_are_enough_for_the_usual_ways() -> None:
    assert needed({}) == needed({"do_sample": False, "num_beams": 1, "temperature": 0.2}) == 1
    assert needed({"do_sample": True}) == 50, "the library looks at so many where nobody says how many"
    assert needed({"do_sample": True, "top_k": 5, "top_p": 0.9}) == 5
    assert needed({"repetition_penalty": 1.1}) == 1 + LONGEST


@pytest.mark.parametrize(("equal", "asked"), [(3, [21]), (20, [21]), (21, [21, 0])])
def test_all_are_asked_for_where_more_may_be_equal_to_the_last_that_decides(equal: int, asked: list[int]) -> None:
    head, logits = RemoteHead(1, VOCABULARY, torch.float32), -torch.arange(VOCABULARY).float()
    logits[:equal] = 1.0
    head.service = Service(logits[None])
    with asking(5):
        some = head(torch.zeros(1, 1))
    assert head.service.asked == asked
    assert torch.equal(some[0, : max(equal, 5)], logits[: max(equal, 5)])
