"""A model whose blocks run elsewhere: what it refuses, what it frees, and that it is one of transformers' own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, TextIteratorStreamer

from survey.configs import POSITIONS
from swarm.client.model import DistributedLlama
from swarm.client.session import Notice
from swarm.errors import ContextTooLong, InvalidInput, MissingBlocks, SessionClosed, UnsupportedModel
from swarm.types import Span
from tests.checkpoints import GREEDY, Served, make_tokenizer, prompt, put_on_grids, reference, save, settled, spans_of

Serve = Callable[[str, int], Served]
Whole = Callable[[str], Any]


class At:
    """A streamer that lets something happen with the token of that number."""

    def __init__(self, number: int, happening: Callable[[], object]) -> None:
        self.left = number + 1
        self.happening = happening

    def put(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            self.happening()

    def end(self) -> None:
        pass


def llama(served: Serve, whole: Whole, new: int = 12) -> tuple[Served, dict[str, torch.Tensor], torch.Tensor]:
    """Servers, a prompt, and what has to come of it."""
    return served("llama", 2), *settled(whole("llama"), lambda seed: {"input_ids": prompt(9, seed)}, new)


# ---- an ordinary model -----------------------------------------------------------------------------------------


def test_it_is_the_librarys_class_and_knows_its_route(served: Serve) -> None:
    notices: list[Notice] = []
    model = served("llama", 2).model(on_notice=notices.append)
    assert isinstance(model, LlamaForCausalLM)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.route is None
    assert model.config.num_hidden_layers == 6
    model.generate(prompt(5), **GREEDY, max_new_tokens=2)
    assert [str(hop.span) for hop in model.route.hops] == ["0:2", "2:6"]
    assert [notice.kind for notice in notices] == ["route"]
    assert notices[0].route == model.route


def test_only_what_stays_here_is_loaded(served: Serve, whole: Whole) -> None:
    names = set(served("llama", 2).model().state_dict())
    assert names == {n for n, _ in whole("llama").named_parameters() if ".layers." not in n}


@torch.no_grad()
def test_batches_where_blocks_return_tuples_of_one(served: Serve, whole: Whole) -> None:
    ids = prompt(6, batch=2)
    got = served("gptj", 2).model()(ids).logits
    torch.testing.assert_close(got, whole("gptj")(ids).logits, rtol=1e-4, atol=1e-4)


def test_stopping_strings(served: Serve, whole: Whole) -> None:
    servers, inputs, expected = llama(served, whole)
    tokenizer = make_tokenizer()
    end = tokenizer.decode(expected[0, 12:14])
    options = GREEDY | {"max_new_tokens": 12, "stop_strings": [end], "tokenizer": tokenizer}
    got = servers.model().generate(**inputs, **options)
    assert got.tolist() == whole("llama").generate(**inputs, **options).tolist()
    assert 0 < got.shape[1] - 9 <= 5
    servers.assert_free()


def test_a_streamer_gets_the_text_while_it_is_made(served: Serve, whole: Whole) -> None:
    servers, inputs, expected = llama(served, whole)
    tokenizer = make_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)  # type: ignore[no-untyped-call]
    options = GREEDY | {"max_new_tokens": 12, "streamer": streamer}
    thread = threading.Thread(target=servers.model().generate, kwargs=inputs | options)
    thread.start()
    parts = [part for part in streamer if part]
    thread.join()
    assert len(parts) == 12
    assert "".join(parts) == tokenizer.decode(expected[0, 9:])


def test_eos_ends_it(served: Serve, whole: Whole) -> None:
    servers, inputs, expected = llama(served, whole)
    options = GREEDY | {"eos_token_id": int(expected[0, 12]), "max_new_tokens": 12}
    got = servers.model().generate(**inputs, **options)
    assert got.tolist() == whole("llama").generate(**inputs, **options).tolist()
    assert got.shape[1] <= 13


def test_several_threads_each_get_what_they_get_alone(served: Serve, whole: Whole) -> None:
    servers = served("llama", 2)
    model = servers.model()
    cases = [settled(whole("llama"), lambda seed, n=n: {"input_ids": prompt(n, seed)}, 12) for n in (4, 7, 9, 12)]
    results: dict[int, list[list[int]]] = {}

    def generate(number: int) -> None:
        inputs, _ = cases[number]
        results[number] = model.generate(**inputs, **GREEDY, max_new_tokens=12).tolist()

    threads = [threading.Thread(target=generate, args=(number,)) for number in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: expected.tolist() for number, (_, expected) in enumerate(cases)}
    servers.assert_free()


@pytest.mark.parametrize("spans", [1, 4])
def test_bfloat16_is_within_tolerance(tmp_path: Path, spans: int) -> None:
    folder = save(tmp_path, "llama", torch.bfloat16)
    servers = Served(folder, spans_of(spans), "bfloat16")
    text = servers.model(dtype="auto").generate(prompt(10, batch=3), **GREEDY, max_new_tokens=16)
    with torch.no_grad():
        logits = reference(folder, torch.bfloat16)(text).logits[:, 9:-1].float()
    chosen = logits.gather(2, text[:, 10:].unsqueeze(2)).squeeze(2)
    assert float((logits.amax(dim=2) - chosen).max() / logits.abs().max()) <= 3e-2
    servers.close()


# ---- what it refuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"local_blocks": "2:4"}, "beginning or the end"),
        ({"local_blocks": "0:6"}, "not all"),
        ({"local_blocks": "0:9"}, "of the 6 blocks"),
        ({"local_blocks": "two"}, "not a span"),
        ({"max_weight": 3}, "unknown options .*max_wait"),
    ],
)
def test_arguments_that_cannot_work(served: Serve, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        served("llama", 2).model(**options)


def test_another_architecture_is_no_llama(served: Serve) -> None:
    servers = served("gpt2", 2)
    with pytest.raises(UnsupportedModel, match="gpt2 model, not llama"):
        DistributedLlama.from_pretrained(str(servers.folder), swarm=servers.swarm)


@pytest.mark.parametrize(
    ("length", "options"),
    [
        (POSITIONS + 1, {"max_new_tokens": 1}),
        (POSITIONS, {"max_new_tokens": 2}),
        (10, {"max_new_tokens": POSITIONS}),
        (10, {"max_length": POSITIONS + 2}),
    ],
)
def test_what_is_too_long_is_refused_before_any_work(served: Serve, length: int, options: dict[str, int]) -> None:
    servers = served("llama", 2)
    model = servers.model()
    with pytest.raises(ContextTooLong, match=f"{POSITIONS} positions"):
        model.generate(prompt(length), **GREEDY, **options)
    with torch.no_grad(), pytest.raises(ContextTooLong):
        model(prompt(POSITIONS + 1))
    assert model.route is None


def test_what_just_fits_is_computed(served: Serve, whole: Whole) -> None:
    ids = prompt(POSITIONS - 3)
    padded = torch.nn.functional.pad(ids, (4, 0))
    options: dict[str, Any] = GREEDY | {"attention_mask": (padded > 0).long(), "max_new_tokens": 4}
    expected = whole("llama").generate(ids, **GREEDY, max_new_tokens=4)
    assert served("llama", 2).model().generate(ids, **GREEDY, max_new_tokens=4).tolist() == expected.tolist()
    # Padding takes no room.
    assert served("llama", 2).model().generate(padded, **options)[:, 4:].tolist() == expected.tolist()


def test_a_foreign_cache_is_refused(served: Serve, whole: Whole) -> None:
    servers, inputs, _ = llama(served, whole)
    first = whole("llama").generate(**inputs, **GREEDY, max_new_tokens=2, return_dict_in_generate=True)
    assert isinstance(first.past_key_values, DynamicCache)
    with pytest.raises(InvalidInput, match="not made by this model"):
        servers.model().generate(first.sequences, **GREEDY, past_key_values=first.past_key_values, max_new_tokens=2)
    servers.assert_free()


def test_blocks_that_nobody_hosts_are_named_after_max_wait(checkpoints: Callable[[str], Path]) -> None:
    servers = Served(checkpoints("llama"), [Span(0, 2), Span(4, 6)])
    notices: list[Notice] = []
    model = servers.model(max_wait=0.2, on_notice=notices.append)
    with pytest.raises(MissingBlocks, match="2:4") as raised:
        model.generate(prompt(4), **GREEDY, max_new_tokens=2)
    assert raised.value.blocks == ((2, 4),)
    assert [notice.kind for notice in notices] == ["waiting"]
    servers.close()


# ---- what it frees ---------------------------------------------------------------------------------------------


def interrupt() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(("happening", "error"), [(interrupt, KeyboardInterrupt), (fail, ZeroDivisionError)])
def test_what_ends_a_generation_frees_it_whoever_keeps_the_traceback(
    served: Serve, happening: Callable[[], None], error: type[BaseException]
) -> None:
    servers = served("llama", 2)
    held: list[list[tuple[int, int]]] = []

    def look() -> None:
        held.append(servers.held())
        happening()

    with pytest.raises(error) as kept:
        servers.model().generate(prompt(8), **GREEDY, max_new_tokens=12, streamer=At(4, look))
    assert all(sessions == 1 and kv > 0 for sessions, kv in held[0])
    servers.assert_free()
    del kept


def test_ctrl_c_while_servers_compute_frees_them(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes while the caller waits for the network thread."""
    servers = served("llama", 2)
    model = servers.model()
    wait, left = servers.swarm.loop.wait, [6]

    def interrupted(future: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            future.cancel()
            raise KeyboardInterrupt
        return future.result()

    monkeypatch.setattr(servers.swarm.loop, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        model.generate(prompt(8), **GREEDY, max_new_tokens=12)
    monkeypatch.setattr(servers.swarm.loop, "wait", wait)
    servers.assert_free()
    del kept


def test_a_cache_lives_as_long_as_it_is_held(served: Serve, whole: Whole) -> None:
    servers, inputs, expected = llama(served, whole)
    model = servers.model()
    first = model.generate(**inputs, **GREEDY, max_new_tokens=6, return_dict_in_generate=True)
    assert all(sessions == 1 and kv > 0 for sessions, kv in servers.held())
    second = model.generate(first.sequences, **GREEDY, max_new_tokens=6, past_key_values=first.past_key_values)
    assert second.tolist() == expected.tolist()
    del first
    servers.assert_free()


def test_leaving_the_swarm_frees_what_was_held(served: Serve) -> None:
    servers = served("llama", 2)
    with servers.client("leaver") as swarm:
        model = servers.model(swarm=swarm)
        kept = model.generate(prompt(8), **GREEDY, max_new_tokens=3, return_dict_in_generate=True)
        assert all(sessions == 1 for sessions, _ in servers.held())
    servers.assert_free()
    with pytest.raises(SessionClosed):
        model.generate(kept.sequences, **GREEDY, past_key_values=kept.past_key_values, max_new_tokens=2)


def test_the_network_thread_may_collect_the_garbage(served: Serve) -> None:
    servers = served("llama", 2)
    kept = [servers.model().generate(prompt(8), **GREEDY, max_new_tokens=3, return_dict_in_generate=True)]

    async def drop() -> None:
        kept.clear()

    servers.swarm.loop.run(drop())
    servers.assert_free()


# ---- quantized blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_blocks_serve_who_asks_for_them(checkpoints: Any, quantization: str) -> None:
    """The oracle is plain transformers with the same numbers in its blocks."""
    folder = checkpoints("llama")
    servers, local = Served(folder, spans_of(2), quantization=quantization), reference(folder)
    put_on_grids(local.model.layers, quantization)
    inputs, expected = settled(local, lambda seed: {"input_ids": prompt(9, seed)}, 8)
    try:
        model = servers.model()
        assert torch.equal(model.generate(**inputs, **GREEDY, max_new_tokens=8), expected)
        assert torch.equal(servers.model(dtype=None).generate(**inputs, **GREEDY, max_new_tokens=8), expected)
        kept = servers.model(local_blocks="0:2")
        assert torch.equal(kept.generate(**inputs, **GREEDY, max_new_tokens=8), expected)
        with pytest.raises(
            MissingBlocks, match=f"computes in float32, quantized to {quantization}-g32-v1, not in float32"
        ):
            servers.model(quantization="none", max_wait=0.1).generate(**inputs, **GREEDY, max_new_tokens=2)
        with pytest.raises(InvalidInput, match="none, int8"):
            servers.model(quantization="int3")
    finally:
        servers.close()
