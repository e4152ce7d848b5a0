"""Spans whose weights are put on grids as they are read compute what plain transformers does with these numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from survey.configs import small_config
from survey.reference import build
from swarm.config import FILE, INT4, INT8
from swarm.errors import UnsupportedModel
from swarm.jobs import Forward
from swarm.models.blocks import find_blocks
from swarm.models.linear.experts import ExpertWeights, put_experts_on_grids
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.loading.cost import describe
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.types import Segment, Span
from tests.checkpoints import prompt, put_on_grids, reference

KINDS = ("llama", "gemma2", "qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "bloom", "lfm2_moe")
"""Plain layers; experts, stored one by one and as one, with `[out, in]` and with `[in, out]`."""


def states(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the first block of a whole model for a prompt, and what leaves the last: `[T, hidden_size]`."""
    seen: list[torch.Tensor] = []
    layers = find_blocks(model).layers
    first = layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"])[0]), with_kwargs=True
    )
    last = layers[-1].register_forward_hook(
        lambda module, args, output: seen.append((output[0] if isinstance(output, tuple) else output)[0])
    )
    with torch.inference_mode():
        model(prompt(9), use_cache=False)
    first.remove()
    last.remove()
    return seen[0], seen[1]


def run(span: SpanModel, hidden: torch.Tensor) -> torch.Tensor:
    return span.run(Forward(span.span, [Segment((b"a", 0), 0, len(hidden))], hidden))


@pytest.mark.parametrize("quantization", [INT8, INT4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_span_computes_with_the_numbers_of_its_grid(checkpoints: Any, kind: str, quantization: str) -> None:
    folder: Path = checkpoints(kind)
    model = reference(folder)
    blocks = find_blocks(model).layers
    put_on_grids(blocks, quantization)
    model.set_experts_implementation("eager") if hasattr(model, "set_experts_implementation") else None
    hidden, right = states(model)
    whole = Span(0, len(blocks))
    span = load_span(folder, whole, quantization=quantization, progress=False)
    assert (run(span, hidden) - right).norm() < 5e-3 * (right - hidden).norm()
    for ours, theirs in zip(span._model.blocks, blocks, strict=True):
        for name, experts in ours.named_modules():
            if isinstance(experts, ExpertWeights):
                dense = torch.stack([layer.grid.dense() for layer in experts.layers])  # type: ignore[union-attr, operator]
                assert torch.equal(dense.mT if experts.transposed else dense, theirs.get_parameter(name)), name
    plain = load_span(folder, whole, progress=False)
    assert span.proven.batched == plain.proven.batched
    assert span.proven.can_rollback == plain.proven.can_rollback
    assert (run(plain, hidden) - right).norm() / (right - hidden).norm() > 1e-4


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt_oss"])
def test_what_it_takes_is_told_before(checkpoints: Any, kind: str) -> None:
    """Layers of 64 columns and 32 rows: panels are filled up."""
    folder: Path = checkpoints(kind)
    for quantization in (INT8, INT4):
        span = load_span(folder, Span(1, 3), quantization=quantization, progress=False)
        modules = [module for block in span._model.blocks for module in block.modules()]
        on_grids = [module for module in modules if isinstance(module, QuantizedLinear)]
        held = sum(layer.nbytes for layer in on_grids)
        held += sum(p.nbytes for block in span._model.blocks for p in block.parameters())
        held += sum(module.weight.nbytes for module in modules if hasattr(module, "product") and module not in on_grids)
        told = sum(describe(folder, quantization=quantization).weight_bytes[1:3])
        assert told == pytest.approx(held, rel=0.1)
        assert held < 0.45 * sum(describe(folder).weight_bytes[1:3])


def test_the_same_weights_have_the_same_fingerprints_however_they_are_cut(checkpoints: Any) -> None:
    folder: Path = checkpoints("mixtral")
    for quantization in (INT8, INT4):
        whole = load_span(folder, Span(0, 4), quantization=quantization, progress=False).fingerprints
        part = load_span(folder, Span(2, 4), quantization=quantization, progress=False).fingerprints
        assert whole[2:] == part
        assert len({*whole, *load_span(folder, Span(0, 4), progress=False).fingerprints}) == 8


def test_a_checkpoint_that_is_on_no_grid_has_no_grid_of_its_own(checkpoints: Any) -> None:
    with pytest.raises(UnsupportedModel, match="is not quantized; --quantization int8 or int4"):
        load_span(checkpoints("llama"), Span(0, 1), quantization=FILE, progress=False)


def test_blocks_without_linear_layers_are_refused(checkpoints: Any) -> None:
    with pytest.raises(UnsupportedModel, match="no plain linear layers that int8"):
        load_span(checkpoints("gpt2"), Span(0, 1), quantization=INT8, progress=False)


def test_weights_that_are_something_else_on_a_grid_are_refused(tmp_path: Path) -> None:
    model = build(small_config("llama"))
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e6
    model.save_pretrained(tmp_path)
    assert len(load_span(tmp_path, Span(0, 1), quantization=INT4, progress=False).fingerprints) == 1
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="not finite"):
        load_span(tmp_path, Span(0, 2), quantization=INT4, progress=False)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_experts_that_do_more_than_products_are_refused() -> None:
    model = build(small_config("mixtral"))
    experts: Any = next(m for m in model.modules() if hasattr(m, "is_transposed"))
    assert put_experts_on_grids(experts, INT8) == 2
    weights = experts.gate_up_proj
    assert isinstance(weights, ExpertWeights)
    rows = torch.randn(3, weights.shape[2])
    assert torch.nn.functional.linear(rows, weights[0]).shape == (3, weights.shape[1])
    for attempt in (
        lambda: rows @ weights[0],
        lambda: torch.einsum("ij,kj->ik", rows, weights[0]),
        lambda: weights[0] + 1,
    ):
        with pytest.raises((UnsupportedModel, TypeError)):
            attempt()
    assert isinstance(weights.layers, nn.ModuleList)
