"""Each layout, written from its documentation, stands for the numbers that were written, and for nothing if damaged."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import Grid, as_dense
from swarm.models.loading.layouts.choose import layout_of
from swarm.models.loading.tensors import Tensors
from tests.quantizing import LAYOUTS, MXFP4, ON_GRID, Held, microscaled

NAMES = (*LAYOUTS, "mxfp4")
layouts = pytest.mark.parametrize("name", NAMES)


class Config:
    """As much of a model's configuration as a layout looks at."""

    dtype = torch.bfloat16

    def __init__(self, quantization: dict[str, Any]) -> None:
        self.quantization_config = quantization


def written(name: str, seed: int = 0) -> tuple[Config, Held, str, torch.Tensor]:
    """A layer and a norm in a layout: configuration, what is stored, the weight's name and its numbers."""
    generator = torch.Generator().manual_seed(seed)
    if name == "mxfp4":
        experts = torch.randn(3, 64, 48, generator=generator) * 0.1
        stored, dense = microscaled("experts.down_proj", experts)
        return Config(MXFP4), Held(stored | {"norm.weight": torch.ones(4)}), "experts.down_proj", dense
    quantization, writer = LAYOUTS[name]
    stored, dense = writer("a.q_proj", torch.randn(48, 96, generator=generator) * 0.1)
    return Config(quantization), Held(stored | {"norm.weight": torch.ones(4)}), "a.q_proj.weight", dense


def opened(name: str, seed: int = 0) -> tuple[Tensors, str, torch.Tensor]:
    config, stored, weight, dense = written(name, seed)
    return layout_of(config, stored), weight, dense


@layouts
def test_the_numbers_are_those_that_were_written(name: str) -> None:
    tensors, weight, dense = opened(name)
    assert set(tensors.names()) == {weight, "norm.weight"}
    assert tensors.shape(weight) == tuple(dense.shape)
    assert tensors.on_grid(weight) == (name in ON_GRID)
    read = tensors.read(weight)
    assert isinstance(read, Grid) == (name in ON_GRID)
    # Scales of 16 bits make products that float32 holds; those of float32 are rounded, here and there.
    torch.testing.assert_close(as_dense(read).float(), dense, rtol=1e-6 if name == "int8" else 0, atol=0)
    assert torch.equal(as_dense(read).bfloat16(), dense.bfloat16())


@layouts
def test_what_is_not_quantized_is_as_it_is_stored(name: str) -> None:
    tensors, _, _ = opened(name)
    assert not tensors.on_grid("norm.weight")
    assert torch.equal(as_dense(tensors.read("norm.weight", slice(1, 3))), torch.ones(2))


@layouts
def test_bytes_are_those_of_all_parts(name: str) -> None:
    config, stored, weight, _ = written(name)
    parts = sum(tensor.nbytes for part, tensor in stored.tensors.items() if part != "norm.weight")
    assert layout_of(config, stored).nbytes(weight) == parts


@layouts
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_rows_are_those_of_the_whole(name: str, data: st.DataObject) -> None:
    tensors, weight, dense = opened(name)
    first = data.draw(st.integers(0, len(dense)))
    rows = slice(first, data.draw(st.integers(first, len(dense) + 3)))
    whole = as_dense(tensors.read(weight))
    assert torch.equal(as_dense(tensors.read(weight, rows)), whole[rows])


def cut(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:-1] if tensor.dim() else tensor.new_zeros(2)


def grown(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor[-1:]], dim=0) if tensor.dim() else tensor.new_zeros(2, 3)


def stacked(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack((tensor, tensor))


def doubles(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64)


def spoiled(number: float) -> Any:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.flatten()[len(changed.flatten()) // 2] = number
        return changed

    return spoil


SCALES = ("scale", "scale_inv", "absmax", "SCB", "quant_map")
CHANGES = {"cut": cut, "grown": grown, "stacked": stacked, "doubles": doubles}


@layouts
@pytest.mark.parametrize("change", CHANGES)
def test_a_part_that_does_not_fit_is_refused(name: str, change: str) -> None:
    config, stored, weight, dense = written(name)
    for part in set(stored.names()) - {"norm.weight"}:
        last = part.rpartition(".")[2]
        if last == "weight_format" or (change == "doubles" and (last == "scales" or last.endswith((*SCALES, "shape")))):
            continue  # nothing to fit, or the same numbers in another dtype
        damaged = Held({**stored.tensors, part: CHANGES[change](stored.tensors[part])})
        with pytest.raises(BadCheckpoint):
            tensors = layout_of(config, damaged)
            if tensors.shape(weight) != tuple(dense.shape):
                raise BadCheckpoint("does not fit the model")
            tensors.read(weight)


@layouts
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers_are_refused(name: str, number: float) -> None:
    config, stored, weight, _ = written(name)
    for part in [part for part in stored.names() if part.endswith((*SCALES, "scales"))]:
        tensor = stored.tensors[part]
        if tensor.dtype == torch.uint8 and name != "mxfp4":
            continue  # levels, of which every one is a number
        changed = spoiled(255 if tensor.dtype == torch.uint8 else number)(tensor)
        with pytest.raises(BadCheckpoint, match="no numbers"):
            layout_of(config, Held({**stored.tensors, part: changed})).read(weight)


@layouts
def test_without_one_of_its_parts_a_weight_is_not_read(name: str) -> None:
    config, stored, weight, _ = written(name)
    optional = {"weight_format"} if name in ("gptq-ordered", "gptq-8") else {"weight_format", "g_idx"}
    for part in [
        part
        for part in stored.names()
        if part.rpartition(".")[2] not in {"weight", *optional} and part != "norm.weight"
    ]:
        others = {other: tensor for other, tensor in stored.tensors.items() if other != part}
        try:
            tensors = layout_of(config, Held(others))
            if weight in tensors.names():
                tensors.read(weight)
                raise AssertionError(f"read without {part}")
        except BadCheckpoint:
            pass


@pytest.mark.parametrize("name", ["gptq-ordered", "gptq-8"])
@given(index=st.integers(0, 95), group=st.integers(-(2**31), 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_groups_that_do_not_exist_or_differ_in_size_are_refused(name: str, index: int, group: int) -> None:
    config, stored, weight, _ = written(name)
    changed = stored.tensors["a.q_proj.g_idx"].clone()
    if changed[index] == group:
        return
    changed[index] = group
    with pytest.raises(BadCheckpoint, match="g_idx"):
        layout_of(config, Held({**stored.tensors, "a.q_proj.g_idx": changed})).read(weight)


@given(text=st.binary(max_size=60))
@settings(max_examples=50, deadline=None)
def test_a_state_of_any_bytes_is_refused(text: bytes) -> None:
    config, stored, weight, _ = written("nf4")
    state = torch.tensor(list(text), dtype=torch.uint8)
    tensors = layout_of(config, Held({**stored.tensors, f"{weight}.quant_state.bitsandbytes__nf4": state}))
    with pytest.raises(BadCheckpoint, match="quant_state"):
        tensors.read(weight)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [48]},
        {"shape": [-48, -96]},
        {"shape": "big"},
        {"blocksize": 0},
        {"blocksize": 128},
        {"dtype": "float8_e4m3fn"},
        {"dtype": None},
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    config, stored, weight, _ = written("nf4")
    name = f"{weight}.quant_state.bitsandbytes__nf4"
    said = json.loads(bytes(stored.tensors[name].tolist())) | change
    state = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    with pytest.raises(BadCheckpoint):
        layout_of(config, Held({**stored.tensors, name: state})).read(weight)


def test_a_zero_of_the_first_version_wraps() -> None:
    config, stored, weight, _ = written("gptq")
    stored.tensors["a.q_proj.qzeros"].fill_(-1)  # 15 everywhere, which is one less than none
    levels, scales = layout_of(config, stored).read(weight), stored.tensors["a.q_proj.scales"].float().T
    assert isinstance(levels, Grid)
    assert torch.equal(levels.dense().amin(1) >= 0, torch.ones(48, dtype=torch.bool)) and scales.shape == (48, 3)
