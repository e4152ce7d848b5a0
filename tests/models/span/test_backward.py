"""Gradients through a span are those of plain autograd through the library's whole model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from survey.configs import small_config
from survey.reference import build
from swarm.errors import InvalidInput, UnsupportedModel
from swarm.jobs import Backward
from swarm.models.blocks import find_blocks
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.types import Span
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


def test_what_has_no_gradients_is_refused() -> None:
    model = build(small_config("llama"))
    rows = torch.zeros(3, model.config.hidden_size)
    whole = Span(0, model.config.num_hidden_layers)
    half = SpanModel(copy.deepcopy(model).half(), whole)
    with pytest.raises(UnsupportedModel, match="float16 give no gradients"):
        half.run(Backward(whole, [3], rows.half(), rows.half()))
    with pytest.raises(InvalidInput, match="3 rows are not the hidden states of 4"):
        SpanModel(model, whole).run(Backward(whole, [4], rows, rows))
