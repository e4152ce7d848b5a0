"""Speculation changes nothing but the time: tokens are those of plain decoding, whatever the drafts are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TextIteratorStreamer

from swarm.errors import InvalidInput, UnsupportedModel
from swarm.models.span.model import SpanModel
from swarm.models.speculation.decoding import SpeculativeDecoding
from swarm.speculation.drafts import NgramDrafter
from swarm.speculation.pacer import MOST
from tests.checkpoints import GREEDY, Served, left_padded, make_tokenizer, prompt, reference, settled
from tests.drafting import Prophet, Reckless

Serve = Callable[[str, int], Served]
Whole = Callable[[str], Any]


class Eager(SpeculativeDecoding):
    """With a reckless pacer."""

    def __init__(self, drafter: Any, depth: int = MOST, streamer: Any = None) -> None:
        super().__init__(drafter, streamer)
        self.pacer = Reckless(drafter, depth)


def run(model: Any, decoding: SpeculativeDecoding | None, ids: torch.Tensor, new: int, **options: Any) -> list[int]:
    text = model.generate(ids, **{**GREEDY, **options}, max_new_tokens=new, custom_generate=decoding)
    return text[0].tolist()


@pytest.fixture(scope="module")
def llama(checkpoints: Any) -> Any:
    return reference(checkpoints("llama"))


@settings(max_examples=25, deadline=None)
@given(wrong=st.sets(st.integers(9, 60)), depth=st.integers(1, MOST))
def test_wrong_drafts_anywhere_change_nothing(llama: Any, wrong: set[int], depth: int) -> None:
    ids = prompt(9)
    plain = run(llama, None, ids, 50)
    decoding = Eager(Prophet(plain, sorted(wrong)), depth)
    assert run(llama, decoding, ids, 50) == plain
    assert decoding.pacer.right <= decoding.pacer.drafted


@pytest.mark.parametrize("spans", [1, 2, 4])
@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "bloom", "qwen3_moe"])
def test_many_windows_through_a_swarm(served: Serve, whole: Whole, kind: str, spans: int) -> None:
    servers, new = served(kind, spans), 24
    inputs, expected = settled(whole(kind), lambda seed: {"input_ids": prompt(9, seed)}, new)
    text = expected[0].tolist()
    for wrong in ((), (11,), (12, 20, 21, 22, 30), range(9, 60, 3), range(9, 60)):
        decoding = Eager(Prophet(text, wrong))
        assert run(servers.model(), decoding, inputs["input_ids"], new) == text
    assert decoding.pacer.right == 0
    servers.assert_free()


def test_right_drafts_save_round_trips(served: Serve, whole: Whole) -> None:
    servers = served("llama", 2)
    inputs, expected = settled(whole("llama"), lambda seed: {"input_ids": prompt(9, seed)}, 40)
    decoding = Eager(Prophet(expected[0].tolist()))
    run(servers.model(), decoding, inputs["input_ids"], 40)
    assert decoding.windows <= 6
    assert decoding.pacer.right == decoding.pacer.drafted == 38


def test_the_users_way_in(served: Serve, whole: Whole) -> None:
    servers = served("llama", 2)
    inputs, expected = settled(whole("llama"), lambda seed: {"input_ids": prompt(9, seed)}, 30)
    model, options = servers.model(), {**GREEDY, **inputs, "max_new_tokens": 30}
    assert torch.equal(model.generate(speculation="ngram", **options), expected)
    assert torch.equal(model.generate(draft_model=whole("llama"), **options), expected)
    assert torch.equal(model.generate(draft_model=str(servers.folder), **options), expected)
    for wrong, words in (
        ({"speculation": "magic"}, "ngram"),
        ({"speculation": "ngram", "draft_model": whole("llama")}, "both"),
        ({"speculation": "ngram", "num_beams": 2}, "one text"),
        ({"speculation": "ngram", "use_cache": False}, "cache"),
    ):
        with pytest.raises(InvalidInput, match=words):
            model.generate(**{**options, **wrong})
    with pytest.raises(InvalidInput, match="one text"):
        model.generate(prompt(4, batch=2), speculation="ngram", **GREEDY, max_new_tokens=3)
    servers.assert_free()


@pytest.mark.parametrize("local", ["0:2", "4:6"])
def test_with_local_blocks_at_either_end(served: Serve, whole: Whole, local: str) -> None:
    servers = served("llama", 1)
    inputs, expected = settled(whole("llama"), lambda seed: {"input_ids": prompt(9, seed)}, 30)
    model = servers.model(local_blocks=local)
    decoding = Eager(Prophet(expected[0].tolist(), (12, 20, 21, 33)))
    assert run(model, decoding, inputs["input_ids"], 30) == expected[0].tolist()


def test_two_turns_on_one_cache(served: Serve, whole: Whole) -> None:
    """What is returned holds exactly what plain decoding would have left in the cache."""
    servers, ids = served("llama", 2), prompt(9)
    plain = whole("llama").generate(ids, **GREEDY, max_new_tokens=15)
    longer = torch.cat([plain, prompt(4, seed=5)], dim=1)
    expected = whole("llama").generate(longer, **GREEDY, max_new_tokens=15)
    model = servers.model()
    first = model.generate(
        ids,
        **GREEDY,
        max_new_tokens=15,
        custom_generate=Eager(Prophet(plain[0].tolist(), (13, 22))),
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert torch.equal(first.sequences, plain)
    assert len(first.scores) == 15
    assert first.past_key_values.get_seq_length() == 23
    second = Eager(Prophet(expected[0].tolist(), (35,)))
    got = run(model, second, longer, 15, past_key_values=first.past_key_values)
    assert got == expected[0].tolist()


def test_a_padded_prompt_and_learned_positions(served: Serve, whole: Whole) -> None:
    for kind in ("llama", "gpt2"):
        inputs = left_padded([5, 9])
        one = {name: value[:1] for name, value in inputs.items()}
        expected = whole(kind).generate(**one, **GREEDY, max_new_tokens=16)
        decoding = Eager(Prophet(expected[0].tolist(), (14, 20)))
        got = served(kind, 2).model().generate(**one, **GREEDY, max_new_tokens=16, custom_generate=decoding)
        assert torch.equal(got, expected)


def test_stopping_streaming_and_processors_are_the_librarys(served: Serve, whole: Whole) -> None:
    servers, tokenizer = served("llama", 2), make_tokenizer()
    options = {**GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "max_new_tokens": 30}
    expected = whole("llama").generate(prompt(9), **options)[0].tolist()
    end = expected[20]
    options |= {"eos_token_id": end}
    expected = whole("llama").generate(prompt(9), **options)[0].tolist()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30.0)
    decoding = Eager(Prophet(expected + [3] * 30, (12,)), streamer=streamer)
    got = servers.model().generate(prompt(9), **options, custom_generate=decoding, streamer=streamer)[0].tolist()
    assert got == expected
    assert "".join(streamer) == tokenizer.decode(expected[9:])
    servers.assert_free()


@pytest.mark.parametrize("seed", range(3))
def test_sampling_with_a_seed_gives_the_text_of_plain_sampling(served: Serve, whole: Whole, seed: int) -> None:
    servers, options = served("llama", 2), {"do_sample": True, "temperature": 1.5, "top_k": 7}
    torch.manual_seed(seed)
    expected = run(whole("llama"), None, prompt(9), 30, **options)
    for decoding in (Eager(Prophet(expected, (14, 15, 30))), SpeculativeDecoding(NgramDrafter())):
        torch.manual_seed(seed)
        assert run(servers.model(), decoding, prompt(9), 30, **options) == expected


def test_sampled_tokens_are_distributed_as_the_model_says(llama: Any) -> None:
    """Two tokens over a vocabulary cut to four, 600 times, with drafts that are always the same guess."""
    ids, options = prompt(6), {"do_sample": True, "top_k": 4, "temperature": 2.0}
    with torch.no_grad():
        first = llama(ids).logits[0, -1] / 2.0
    best = first.topk(4)
    guess = [*ids[0].tolist(), int(best.indices[1]), 5, 6, 7]
    torch.manual_seed(0)
    seen: Counter[int] = Counter()
    decoding = Eager(Prophet(guess), depth=2)
    for _ in range(600):
        seen[run(llama, decoding, ids, 2, **options)[6]] += 1
    expected = torch.softmax(best.values, dim=0) * 600
    chi2 = sum((seen[int(i)] - float(e)) ** 2 / float(e) for i, e in zip(best.indices, expected, strict=True))
    assert set(seen) <= set(best.indices.tolist())
    assert chi2 < 16.3, "three degrees of freedom: one time in a thousand"


def test_streams_and_stops_at_strings(served: Serve, whole: Whole) -> None:
    servers, tokenizer = served("llama", 2), make_tokenizer()
    expected = whole("llama").generate(prompt(9), **GREEDY, max_new_tokens=20)[0].tolist()
    end = tokenizer.decode(expected[14:16])
    options = {**GREEDY, "max_new_tokens": 20, "stop_strings": [end], "tokenizer": tokenizer}
    expected = whole("llama").generate(prompt(9), **options)[0].tolist()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30.0)
    got = servers.model().generate(prompt(9), **options, speculation="ngram", streamer=streamer)[0].tolist()
    assert got == expected
    assert "".join(streamer) == tokenizer.decode(expected[9:])


def test_running_states_of_which_there_are_no_snapshots_cannot_speculate(
    served: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a server of an earlier version."""
    servers = served("qwen3_next", 1)
    monkeypatch.setattr(SpanModel, "rollback", 0)
    with pytest.raises(UnsupportedModel, match="running state"):
        servers.model().generate(prompt(5), speculation="ngram", **GREEDY, max_new_tokens=4)
    servers.assert_free()


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2", "jamba"])
def test_running_states_go_back(served: Serve, whole: Whole, kind: str) -> None:
    """Windows that are wrong at one place or everywhere: the same text, and no hop begins anew."""
    servers, new = served(kind, 2), 24
    inputs, expected = settled(whole(kind), lambda seed: {"input_ids": prompt(9, seed)}, new)
    text, model = expected[0].tolist(), servers.model()
    for wrong in ((), (12, 20, 21, 22), range(9, 60, 3)):
        decoding = Eager(Prophet(text, wrong))
        options = {"return_dict_in_generate": True, "custom_generate": decoding, "max_new_tokens": new}
        got = model.generate(inputs["input_ids"], **GREEDY, **options)
        assert got.sequences[0].tolist() == text
        (session,) = got.past_key_values.layers[0].session._sessions
        assert session._session.statistics().epochs == 1
        del got, session
    servers.assert_free()


def test_beams_of_running_states(served: Serve, whole: Whole) -> None:
    servers = served("qwen3_next", 2)
    options = {**GREEDY, "num_beams": 3, "max_new_tokens": 12}
    expected = whole("qwen3_next").generate(prompt(9), **options)
    assert torch.equal(servers.model().generate(prompt(9), **options), expected)
    servers.assert_free()


def test_a_text_of_its_own_repetition_is_mostly_guessed(llama: Any) -> None:
    """Greedy text of a random model falls into a loop; then most of it need not be waited for."""
    plain = run(llama, None, prompt(9), 60)
    repeats = sum(a == b for a, b in pairwise(plain[40:]))
    decoding = SpeculativeDecoding(NgramDrafter())
    assert run(llama, decoding, prompt(9), 60) == plain
    assert repeats < 0 or decoding.windows < 60
