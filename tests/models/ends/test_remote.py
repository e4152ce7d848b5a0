"""Everything that `generate` can do, through servers of every kind of model: the tokens of plain transformers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from swarm.errors import InvalidInput, MissingBlocks
from swarm.models.blocks import find_blocks
from swarm.models.ends.load import returns_tuple
from swarm.models.ends.remote import RemoteSpan, rearrange
from swarm.models.ends.remote_cache import RemoteLayer
from swarm.types import Span
from tests.checkpoints import GREEDY, Served, left_padded, prompt, reference, save, settled

KINDS = ("llama", "gemma2+untied", "gpt2", "bloom+untied", "qwen3_moe")
Serve = Callable[[str, int], Served]
Whole = Callable[[str], Any]


def one(length: int) -> Callable[[int], dict[str, torch.Tensor]]:
    """Prompts of that length."""
    return lambda seed: {"input_ids": prompt(length, seed)}


@pytest.mark.parametrize("spans", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy(served: Serve, whole: Whole, kind: str, spans: int) -> None:
    inputs, expected = settled(whole(kind), one(10), 16)
    servers = served(kind, spans)
    model = servers.model()
    assert model.generate(**inputs, **GREEDY, max_new_tokens=16).tolist() == expected.tolist()
    assert len(model.route.hops) == spans
    servers.assert_free()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_is_padded_at_the_left(served: Serve, whole: Whole, kind: str) -> None:
    inputs, expected = settled(whole(kind), lambda seed: left_padded((9, 4, 12), seed), 10)
    servers = served(kind, 2)
    assert servers.model().generate(**inputs, **GREEDY, max_new_tokens=10).tolist() == expected.tolist()
    servers.assert_free()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_goes_in_chunks(served: Serve, whole: Whole, kind: str) -> None:
    inputs, expected = settled(whole(kind), one(30), 8)
    model = served(kind, 4).model(chunk_positions=7)
    assert model.generate(**inputs, **GREEDY, max_new_tokens=8).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["llama", "gemma2+untied", "gpt2", "bloom+untied", "lfm2"])
def test_a_prompt_that_begins_as_one_before_it(
    served: Serve, whole: Whole, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning is not computed again, except by blocks with a running state; the tokens are the same."""
    servers = served(kind, 2)
    begin, computed = prompt(24, 5), 0

    def counted(run: Callable[[Any], torch.Tensor], job: Any) -> torch.Tensor:
        nonlocal computed
        computed += job.positions
        return run(job)

    for hosted in servers.hosted:
        runner = hosted.engine.runner
        monkeypatch.setattr(runner, "run", functools.partial(counted, runner.run))
    for tail in range(3):
        make = lambda seed, tail=tail: {"input_ids": torch.cat([begin, prompt(6, 100 * tail + seed)], 1)}  # noqa: E731
        inputs, expected = settled(whole(kind), make, 8)
        computed = 0
        assert servers.model().generate(**inputs, **GREEDY, max_new_tokens=8).tolist() == expected.tolist()
        positions = 37 if tail == 0 or kind == "lfm2" else 13
        assert computed == positions * len(servers.hosted)
        servers.assert_free()


@pytest.mark.parametrize("kind", KINDS)
def test_two_turns_on_one_cache(served: Serve, whole: Whole, kind: str) -> None:
    inputs, _ = settled(whole(kind), one(8), 6)
    servers = served(kind, 2)
    turns = []
    for model in (whole(kind), servers.model()):
        options = GREEDY | {"max_new_tokens": 6, "return_dict_in_generate": True}
        first = model.generate(**inputs, **options)
        longer = torch.cat([first.sequences, prompt(5, 1)], dim=1)
        second = model.generate(longer, **options, past_key_values=first.past_key_values)
        turns.append(second.sequences.tolist())
        del first, second
    assert turns[0] == turns[1]
    servers.assert_free()


@pytest.mark.parametrize("kind", KINDS)
def test_beams(served: Serve, whole: Whole, kind: str) -> None:
    inputs = left_padded((7, 5))
    options = GREEDY | {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2}
    servers = served(kind, 2)
    assert servers.model().generate(**inputs, **options).tolist() == whole(kind).generate(**inputs, **options).tolist()
    servers.assert_free()


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_with_a_seed(served: Serve, whole: Whole, kind: str) -> None:
    options = GREEDY | {"do_sample": True, "temperature": 0.9, "top_k": 20, "num_return_sequences": 3}
    texts = []
    for model in (whole(kind), served(kind, 2).model()):
        torch.manual_seed(7)
        texts.append(model.generate(prompt(8), **options, max_new_tokens=10).tolist())
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts[0]}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_lookup(served: Serve, whole: Whole, kind: str) -> None:
    inputs, expected = settled(whole(kind), lambda seed: {"input_ids": prompt(5, seed).repeat(1, 3)}, 16)
    servers = served(kind, 2)
    got = servers.model().generate(**inputs, **GREEDY, max_new_tokens=16, prompt_lookup_num_tokens=4)
    assert got.tolist() == expected.tolist()
    servers.assert_free()


@pytest.mark.parametrize("kind", ["llama", "bloom+untied"])
def test_an_assistant_model(served: Serve, whole: Whole, checkpoints: Any, tmp_path: Any, kind: str) -> None:
    assistant = reference(save(tmp_path, "llama", num_hidden_layers=1))
    inputs, expected = settled(whole(kind), one(9), 16)
    # A model whose guesses are all right, and one whose guesses are mostly wrong.
    for guesser in (whole(kind), assistant):
        got = served(kind, 2).model().generate(**inputs, **GREEDY, max_new_tokens=16, assistant_model=guesser)
        assert got.tolist() == expected.tolist()
    served(kind, 2).assert_free()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_batch_that_is_padded_at_the_right(served: Serve, whole: Whole, kind: str) -> None:
    ids, mask = prompt(11, batch=3), torch.ones(3, 11, dtype=torch.long)
    mask[1, 6:] = mask[2, 9:] = 0
    with torch.no_grad():
        expected = whole(kind)(ids, attention_mask=mask).logits
        for options in ({}, {"use_cache": False}):
            got = served(kind, 2).model()(ids, attention_mask=mask, **options).logits
            torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)
    served(kind, 2).assert_free()


@pytest.mark.parametrize("local", ["0:2", "0:5", "2:6", "5:6"])
@pytest.mark.parametrize("kind", ["llama", "gemma2+untied", "bloom+untied"])
def test_blocks_at_either_end_may_be_local(served: Serve, whole: Whole, kind: str, local: str) -> None:
    inputs, expected = settled(whole(kind), lambda seed: left_padded((9, 5), seed), 8)
    model = served(kind, 1).model(local_blocks=local)
    options = GREEDY | {"max_new_tokens": 8}
    assert model.generate(**inputs, **options).tolist() == expected.tolist()
    assert len(model.route.span) == 6 - len(Span.parse(local))
    beams = options | {"num_beams": 2}
    assert model.generate(**inputs, **beams).tolist() == whole(kind).generate(**inputs, **beams).tolist()


def place(model: torch.nn.Module, span: RemoteSpan, first: int, last: int) -> None:
    """Put `span` into `model` in place of its blocks `first` .. `last`, which are dropped.

    The local blocks that remain count from 0 through the span, as their part of the cache does.
    """
    blocks = find_blocks(model)
    layers: list[torch.nn.Module] = list(blocks.layers)
    layers[first:last] = [span]
    rearrange(model, layers, [*range(first), first, *range(last, blocks.total)])


def session_of(servers: Served, span: Span) -> Callable[[], Any]:
    """What a hand-placed span calls to begin a session."""
    from swarm.client.remote_blocks import RemoteBlocks
    from swarm.config import ClientConfig

    swarm = servers.swarm
    view = swarm.view(servers.info, "float32", servers.hosted[0].contract.row_bytes, ClientConfig())
    return RemoteBlocks(swarm, view, span).open


@pytest.mark.parametrize("kind", ["llama", "gemma2+untied", "gpt2"])
def test_spans_that_are_placed_by_hand(served: Serve, whole: Whole, checkpoints: Any, kind: str) -> None:
    servers = served(kind, 1)
    inputs, expected = settled(whole(kind), one(9), 16)
    model = reference(checkpoints(kind))
    place(model, RemoteSpan(session_of(servers, Span(2, 5)), returns_tuple=returns_tuple(model)), 2, 5)
    assert model.generate(**inputs, **GREEDY, max_new_tokens=16).tolist() == expected.tolist()
    del model
    servers.assert_free()


def test_a_foreign_cache_that_holds_something_is_refused(served: Serve, whole: Whole) -> None:
    ids = prompt(8)
    cache = DynamicCache(config=whole("llama").config)
    with torch.no_grad():
        whole("llama")(ids, past_key_values=cache)
        with pytest.raises(InvalidInput, match="past_key_values was not made by this model"):
            served("llama", 2).model()(ids[:, :1], past_key_values=cache)


def test_a_foreign_cache_that_is_empty_is_taken(served: Serve, whole: Whole) -> None:
    ids, cache = prompt(8), DynamicCache(config=whole("llama").config)
    servers = served("llama", 2)
    with torch.no_grad():
        got = servers.model()(ids, past_key_values=cache).logits
        torch.testing.assert_close(got, whole("llama")(ids).logits, rtol=1e-4, atol=1e-4)
    assert isinstance(cache.layers[0], RemoteLayer)
    assert cache.get_seq_length() == 8
    assert sum(kv for _, kv in servers.held()) > 0
    cache.layers[0].close()
    servers.assert_free()


def test_a_cache_is_cropped_selected_and_repeated(served: Serve, whole: Whole) -> None:
    ids = prompt(8, 3, batch=3)
    logits = []
    with torch.no_grad():
        for model in (whole("llama"), served("llama", 2).model()):
            cache = model(ids, use_cache=True).past_key_values
            cache.crop(-3)
            cache.batch_select_indices(torch.tensor([2, 0]))
            cache.batch_repeat_interleave(2)
            cache.reorder_cache(torch.tensor([3, 3, 0, 1]))
            logits.append(model(prompt(2, 4, batch=4), past_key_values=cache).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_a_cache_of_another_batch_is_refused(served: Serve) -> None:
    model = served("llama", 2).model()
    with torch.no_grad():
        cache = model(prompt(4, batch=2), use_cache=True).past_key_values
        with pytest.raises(InvalidInput, match="a batch of 2"):
            model(prompt(1, batch=3), past_key_values=cache)


class Failing:
    """A session that fails, and notes when it is closed."""

    closed = False

    can_rollback = True

    def begin(self, rows: Any, operations: Any) -> Any:
        raise MissingBlocks("nobody")

    def close(self) -> None:
        self.closed = True


def test_a_cache_whose_step_failed_is_given_up(checkpoints: Any) -> None:
    session = Failing()
    model = reference(checkpoints("llama"))
    place(model, RemoteSpan(lambda: session), 0, 6)
    cache = DynamicCache()
    with torch.no_grad(), pytest.raises(MissingBlocks):
        model(prompt(4), past_key_values=cache)
    assert session.closed, "or the next step would follow positions of which nobody knows who has them"
    with pytest.raises(InvalidInput, match="cannot be copied"):
        copy.deepcopy(cache)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "2-D"),
        ({"attention_mask": torch.ones(1, 3)}, "expected"),
    ],
)
def test_what_cannot_be_had_is_refused(served: Serve, options: dict[str, Any], words: str) -> None:
    servers = served("llama", 2)
    with torch.no_grad(), pytest.raises(InvalidInput, match=words):
        servers.model()(prompt(4), **options)
    servers.assert_free()
