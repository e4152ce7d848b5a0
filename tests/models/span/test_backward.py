"""Gradients through a span are those of plain autograd through the library's whole model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from survey.configs import small_config
from survey.reference import build
from swarm.errors import InvalidInput, UnsupportedModel
from swarm.jobs import Afresh, Backward, Forward
from swarm.models.blocks import find_blocks
from swarm.models.lora import Pair, Place, encode
from swarm.models.span import backward
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.types import Adapter, Segment, Span
from tests.checkpoints import put_on_grids, reference

COUNTS = (7, 4)
SPAN = Span(1, 5)


def plain(model: Any, counts: tuple[int, ...], wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes to the first block of `SPAN`, and its gradient, given that of what leaves the last: `[T, hidden]`."""
    layers = find_blocks(model).layers
    inputs, found = [], []
    for seed, (count, part) in enumerate(zip(counts, wanted.split(list(counts)), strict=True)):
        seen: dict[str, torch.Tensor] = {}

        def enter(module: Any, args: Any, kwargs: Any, seen: dict[str, torch.Tensor] = seen) -> None:
            seen["in"] = args[0] if args else kwargs["hidden_states"]
            seen["in"].requires_grad_() if seen["in"].is_leaf else seen["in"].retain_grad()

        def leave(module: Any, args: Any, output: Any, seen: dict[str, torch.Tensor] = seen) -> None:
            seen["out"] = output[0] if isinstance(output, tuple) else output

        hooks = [
            layers[SPAN.first].register_forward_pre_hook(enter, with_kwargs=True),
            layers[SPAN.last - 1].register_forward_hook(leave),
        ]
        model(torch.randint(3, 150, (1, count), generator=torch.Generator().manual_seed(seed)), use_cache=False)
        for hook in hooks:
            hook.remove()
        (gradient,) = torch.autograd.grad(seen["out"], seen["in"], part.view_as(seen["out"]))
        inputs.append(seen["in"].detach().view(count, -1))
        found.append(gradient.view(count, -1))
    return torch.cat(inputs), torch.cat(found)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss", "mixtral", "gpt2", "bloom", "lfm2"])
def test_gradients_are_those_of_plain_autograd(kind: str) -> None:
    model = build(small_config(kind))
    span = SpanModel(copy.deepcopy(model), SPAN)
    wanted = torch.randn(sum(COUNTS), span.hidden_size, generator=torch.Generator().manual_seed(1))
    inputs, expected = plain(model, COUNTS, wanted)
    got = span.run(Backward(SPAN, COUNTS, inputs, wanted))
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
    assert span.bytes_held() == 0
    # The weights are the server's: they gather no gradients.
    assert all(p.grad is None for block in span._model.blocks for p in block.parameters())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_gradients_of_quantized_blocks_are_those_of_their_numbers(checkpoints: Any, quantization: str) -> None:
    folder = checkpoints("llama")
    model = reference(folder)
    put_on_grids(model.model.layers, quantization)
    span = load_span(folder, SPAN, quantization=quantization, progress=False)
    wanted = torch.randn(sum(COUNTS), span.hidden_size, generator=torch.Generator().manual_seed(1))
    inputs, expected = plain(model, COUNTS, wanted)
    got = span.run(Backward(SPAN, COUNTS, inputs, wanted))
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-3


def adapter_for(span: SpanModel, names: Sequence[str], blocks: Iterable[int] = SPAN) -> Adapter:
    """Of random numbers, beside these layers."""
    generator, pairs = torch.Generator().manual_seed(3), dict[Place, Pair]()
    for block in blocks:
        for name in names:
            layer: Any = span._model.blocks[block - span.span.first].get_submodule(name)
            a = torch.randn(4, layer.in_features, generator=generator)
            pairs[Place(block, name)] = Pair(a, 0.1 * torch.randn(layer.out_features, 4, generator=generator))
    data = encode(pairs)
    return Adapter(hashlib.sha256(data).digest(), data)


NAMES = ("self_attn.q_proj", "mlp.down_proj")
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def llama() -> SpanModel:
    return SpanModel(build(small_config("llama")), SPAN)


def rows_of(span: SpanModel, seed: int) -> torch.Tensor:
    return torch.randn(sum(COUNTS), span.hidden_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("blocks", [range(1, 5), range(3, 5)], ids=["everywhere", "late"])
@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_kept_of_a_pass_gives_the_same_gradients(llama: SpanModel, wanted: bool, blocks: range) -> None:
    inputs, gradient, adapter = rows_of(llama, 1), rows_of(llama, 2), adapter_for(llama, NAMES, blocks)
    job = Backward(SPAN, COUNTS, inputs, gradient, adapter, wanted, seed=7)
    rows, file = llama.run(job)
    outputs = llama.run(Afresh(SPAN, COUNTS, inputs, adapter, 7))
    forward = Afresh(SPAN, COUNTS, inputs, adapter, 7, PLENTY, wanted)
    kept, activations = llama.run(forward)
    assert torch.equal(kept, outputs)
    whole = activations.nbytes
    assert whole == activations.whole_nbytes > 5 * inputs.nbytes
    for room in (PLENTY, 3 * whole // 4, inputs.nbytes * 2):
        _, activations = llama.run(replace(forward, room=room))
        assert activations is None or activations.nbytes <= room
        assert (activations is None) == (room < 3 * whole // 4)
        for _ in range(2):  # the second time they are used up
            got, got_file = llama.run(replace(job, activations=activations))
            assert torch.equal(got, rows)
            assert got_file == file


def test_activations_of_another_pass_are_not_used(llama: SpanModel) -> None:
    inputs, gradient, adapter = rows_of(llama, 1), rows_of(llama, 2), adapter_for(llama, NAMES)
    right, _ = llama.run(Backward(SPAN, COUNTS, inputs, gradient, adapter))
    others = [
        Afresh(SPAN, COUNTS[::-1], inputs, adapter, room=PLENTY),
        Afresh(SPAN, COUNTS, inputs, None, room=PLENTY),
        Afresh(SPAN, COUNTS, inputs, adapter, inputs_wanted=False, room=PLENTY),
        Afresh(Span(1, 4), COUNTS, inputs, adapter_for(llama, NAMES, range(1, 4)), room=PLENTY),
    ]
    for other in others:
        _, activations = llama.run(other)
        assert activations is not None
        got, _ = llama.run(Backward(SPAN, COUNTS, inputs, gradient, adapter, activations=activations))
        assert torch.equal(got, right)


def test_rows_of_one_pass_get_each_their_own_adapter(llama: SpanModel) -> None:
    adapters = [adapter_for(llama, NAMES, blocks) for blocks in (range(1, 5), range(2, 3))] + [None]
    adapters.append(adapter_for(llama, ("self_attn.v_proj",)))
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(count, llama.hidden_size, generator=generator) for count in (3, 1, 2, 1)]

    def segments(session: bytes) -> list[Segment]:
        each = enumerate(zip(parts, adapters, strict=True))
        return [Segment((session, i), 0, len(part), adapter=adapter) for i, (part, adapter) in each]

    together = llama.run(Forward(SPAN, segments(b"together"), torch.cat(parts)))
    alone = [llama.run(Forward(SPAN, [segment], part)) for segment, part in zip(segments(b"alone"), parts, strict=True)]
    plain = llama.run(Forward(SPAN, [replace(each, adapter=None) for each in segments(b"plain")], torch.cat(parts)))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    apart = [
        bool((a - b).abs().max() > 1e-2)
        for a, b in zip(together.split([3, 1, 2, 1]), plain.split([3, 1, 2, 1]), strict=True)
    ]
    assert apart == [True, True, False, True]
    for session in (b"together", b"alone", b"plain"):
        for i in range(len(parts)):
            llama.free((session, i))


def test_where_there_is_hardly_room_blocks_are_computed_several_times(
    llama: SpanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, gradient, adapter = rows_of(llama, 1), rows_of(llama, 2), adapter_for(llama, NAMES, range(2, 5))
    for wanted in (True, False):
        job = Backward(SPAN, COUNTS, inputs, gradient, adapter, wanted)
        monkeypatch.setattr(backward, "LEAST_ROOM", PLENTY)
        rows, file = llama.run(job)
        monkeypatch.setattr(backward, "LEAST_ROOM", 0)
        got, got_file = llama.run(job)
        assert torch.equal(got, rows)
        assert got_file == file


def test_what_has_no_gradients_is_refused() -> None:
    model = build(small_config("llama"))
    rows = torch.zeros(3, model.config.hidden_size)
    whole = Span(0, model.config.num_hidden_layers)
    half = SpanModel(copy.deepcopy(model).half(), whole)
    with pytest.raises(UnsupportedModel, match="float16 give no gradients"):
        half.run(Backward(whole, [3], rows.half(), rows.half()))
    with pytest.raises(InvalidInput, match="3 rows are not the hidden states of 4"):
        SpanModel(model, whole).run(Backward(whole, [4], rows, rows))
