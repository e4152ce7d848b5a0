"""Whatever is stored, and whatever the configuration says: numbers, or a typed refusal."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.linear.grid import as_dense
from swarm.models.loading.layouts.choose import METHODS, fault, layout_of, settings_of
from tests.models.loading.layouts.test_layouts import NAMES, Config, written
from tests.quantizing import Held

DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.int8,
    torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
]  # fmt: skip
SIZES = st.sampled_from([0, 1, 2, 3, 6, 12, 16, 24, 32, 48, 96, 144])
WORDS = st.sampled_from([
    "quant_method", "bits", "checkpoint_format", "format", "dynamic", "desc_act", "version", "config_groups", "weights",
    "num_bits", "type", "symmetric", "block_structure", "sparsity_config", "transform_config", "weight_block_size",
    "bnb_4bit_quant_type", "load_in_4bit", "packing_format", "pack_dtype", "group_0",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.sampled_from([*METHODS, "int", "gemm"]) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)


def part_of(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    """Any bytes."""
    count = dtype.itemsize * torch.Size(shape).numel()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=torch.Generator().manual_seed(seed))
    return raw.to(torch.uint8).view(dtype).view(shape)


@given(st.sampled_from(NAMES), st.data())
@settings(max_examples=150, deadline=None, phases=[Phase.generate])
def test_any_part_of_any_shape_dtype_and_content(name: str, data: st.DataObject) -> None:
    config, stored, weight, _ = written(name)
    part = data.draw(st.sampled_from(sorted(set(stored.names()) - {"norm.weight"})))
    old = stored.tensors[part]
    dtype = data.draw(st.sampled_from(DTYPES) | st.just(old.dtype))
    shape = data.draw(st.just(list(old.shape)) | st.lists(SIZES, max_size=4).filter(lambda sizes: prod(sizes) < 50_000))
    stored.tensors[part] = part_of(dtype, shape, data.draw(st.integers(0, 9)))
    try:
        tensors = layout_of(config, stored)
        rows = data.draw(st.none() | st.builds(slice, st.integers(0, 50), st.integers(0, 60)))
        read = as_dense(tensors.read(weight, rows))
        expected = list(tensors.shape(weight))
        assert list(read.shape[1:]) == expected[1:]
        assert len(read) == len(range(expected[0])[rows or slice(None)])
    except BadCheckpoint:
        pass


@given(st.dictionaries(WORDS, VALUES, max_size=6) | VALUES, st.sampled_from(NAMES))
@settings(max_examples=150, deadline=None, phases=[Phase.generate])
def test_any_configuration(said: Any, name: str) -> None:
    _, stored, _, _ = written(name)
    config = Config(said)
    assert (settings_of(config) is None) == (said is None)
    reason = fault(config)
    try:
        tensors = layout_of(config, Held(stored.tensors))
        assert reason is None
        for each in tensors.names():
            tensors.shape(each), tensors.on_grid(each), tensors.nbytes(each)
            tensors.read(each)
    except (BadCheckpoint, UnsupportedModel):
        pass
