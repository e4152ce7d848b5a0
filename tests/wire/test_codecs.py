"""Codecs: little is lost, nothing crashes, and a position is always encoded to the same bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.config import FRAME_LIMIT
from swarm.errors import ContractMismatch, MalformedFrame
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import GROUP, OUTLIERS, codec_of, decode_step, encode_step, offered

DTYPES = ["float32", "bfloat16", "float16"]
SIZES = st.one_of(st.sampled_from([1, 15, 16, 17, 127, 128, 129, 192, 300]), st.integers(1, 600))
Array = npt.NDArray[Any]


def to_bytes(values: Array, dtype: str) -> bytes:
    """As torch has them: what a server computes with."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(getattr(torch, dtype))
    return tensor.view(torch.uint8).numpy().tobytes()


def from_bytes(buffer: bytes, dtype: str, size: int) -> Array:
    tensor = torch.frombuffer(bytearray(buffer), dtype=getattr(torch, dtype))
    return tensor.float().numpy().reshape(-1, size)


@st.composite
def any_rows(draw: st.DrawFn, *, scale: float = 1e4) -> tuple[str, int, Array]:
    """Some positions of gaussian values, a few of them far out."""
    size, count = draw(SIZES), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    values = rng.normal(size=(count, size)) * draw(st.floats(scale**-0.5, scale**0.5))
    for _ in range(draw(st.integers(0, 6))):
        values[rng.integers(count), rng.integers(size)] *= draw(st.floats(1, 100))
    return draw(st.sampled_from(DTYPES)), size, np.clip(values, -6e4, 6e4).astype(np.float32)


@given(any_rows())
def test_a_round_trip_loses_less_than_one_percent(drawn: tuple[str, int, Array]) -> None:
    dtype, size, values = drawn
    codec, raw = codec_of("int8", dtype, size), to_bytes(values, dtype)
    encoded = codec.encode(raw)
    assert len(encoded) == codec.row_bytes * len(values)
    decoded = codec.decode(encoded)
    assert len(decoded) == len(raw) == codec.raw_bytes * len(values)
    before, after = from_bytes(raw, dtype, size), from_bytes(decoded, dtype, size)
    assert np.all(np.linalg.norm(after - before, axis=1) <= 0.01 * np.linalg.norm(before, axis=1))


@given(any_rows())
def test_no_value_is_off_by_more_than_half_a_step_of_its_group(drawn: tuple[str, int, Array]) -> None:
    """And the outliers, which do not count for the step, by no more than bfloat16 rounds off."""
    _, size, values = drawn
    codec = codec_of("int8", "float32", size)
    after = from_bytes(codec.decode(codec.encode(to_bytes(values, "float32"))), "float32", size)
    for row, decoded in zip(values, after, strict=True):
        far = set(np.argsort(-np.abs(row), kind="stable")[:OUTLIERS].tolist())
        for begin in range(0, size, GROUP):
            places = np.arange(begin, min(begin + GROUP, size))
            near = [place for place in places if place not in far]
            step = max((abs(row[place]) for place in near), default=0.0) / 127 * 1.002 + 2**-24
            assert np.all(np.abs(decoded[near] - row[near]) <= step / 2 * 1.001)
        kept = sorted(far)
        assert np.all(np.abs(decoded[kept] - row[kept]) <= np.abs(row[kept]) * 2**-8)


def test_outliers_of_bfloat16_are_exact_and_take_nothing_from_the_others() -> None:
    values = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    calm = codec_of("int8", "bfloat16", 256)
    values[:, 7], values[:, 200] = 30_000.0, -5_000.0
    raw = to_bytes(values, "bfloat16")
    before, after = (from_bytes(b, "bfloat16", 256) for b in (raw, calm.decode(calm.encode(raw))))
    assert np.array_equal(before[:, [7, 200]], after[:, [7, 200]])
    assert np.abs(after - before).max() < 0.03


@given(any_rows(), st.data())
def test_a_position_is_encoded_the_same_in_whatever_company(drawn: tuple[str, int, Array], data: st.DataObject) -> None:
    dtype, size, values = drawn
    codec, raw = codec_of("int8", dtype, size), to_bytes(values, dtype)
    cut = data.draw(st.integers(0, len(values))) * codec.raw_bytes
    assert codec.encode(raw) == codec.encode(raw[:cut]) + codec.encode(memoryview(raw)[cut:])


def test_many_positions_are_encoded_as_each_alone() -> None:
    values = np.random.default_rng(0).normal(size=(700, 192)).astype(np.float32)
    codec, raw = codec_of("int8", "float32", 192), to_bytes(values, "float32")
    alone = [codec.encode(raw[i : i + 768]) for i in range(0, len(raw), 768)]
    assert codec.encode(raw) == b"".join(alone)
    assert codec.decode(codec.encode(raw)) == b"".join(map(codec.decode, alone))


@pytest.mark.parametrize("size", [200, 512, 544, 1024, 4096])
@pytest.mark.parametrize("different", [2, 20, 1 << 20])
def test_outliers_are_the_largest_and_of_equals_the_first(size: int, different: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.integers(-different, different, (50, size)).astype(np.float32)
    codec = codec_of("int8", "float32", size)
    rows = np.frombuffer(codec.encode(values.tobytes()), np.uint8).reshape(50, -1)
    begin = 2 * -(-size // GROUP)
    places = np.ascontiguousarray(rows[:, begin : begin + 2 * OUTLIERS]).view("<u2")
    assert np.array_equal(places, np.sort(np.argsort(-np.abs(values), kind="stable", axis=1)[:, :OUTLIERS], axis=1))


def test_of_equals_the_first_are_the_outliers() -> None:
    codec = codec_of("int8", "float32", 64)
    places = codec.encode(np.full(64, 3.0, np.float32).tobytes())[2 : 2 + 2 * OUTLIERS]
    assert np.frombuffer(places, "<u2").tolist() == list(range(OUTLIERS))


@given(st.sampled_from(DTYPES), SIZES, st.data())
def test_any_bytes_can_be_encoded(dtype: str, size: int, data: st.DataObject) -> None:
    """Whatever the bits are as numbers: the largest, the smallest, infinities and NaNs of every kind."""
    codec = codec_of("int8", dtype, size)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    raw = rng.integers(0, 256, 3 * codec.raw_bytes, np.uint8).tobytes()
    encoded = codec.encode(raw)
    assert len(encoded) == 3 * codec.row_bytes
    assert len(codec.decode(encoded)) == len(raw)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none(dtype: str) -> None:
    values = np.ones((2, 200), np.float32)
    values[0, 3], values[0, 4], values[0, 150] = np.nan, np.inf, -np.inf
    codec = codec_of("int8", dtype, 200)
    after = from_bytes(codec.decode(codec.encode(to_bytes(values, dtype))), dtype, 200)
    assert np.isnan(after[0, 3])
    assert after[0, 4] == np.inf
    assert after[0, 150] == -np.inf
    assert np.isfinite(after).sum() == 400 - 3
    assert np.allclose(after[1], 1.0, rtol=0.01)


def test_of_more_than_can_be_kept_the_rest_is_clamped() -> None:
    values = np.full((1, 200), np.inf, np.float32)
    values[0, 100:] = np.nan
    codec = codec_of("int8", "float32", 200)
    after = from_bytes(codec.decode(codec.encode(values.tobytes())), "float32", 200)
    assert np.isnan(after).sum() == OUTLIERS
    assert np.all(after[0, :100] > 8e6)
    assert np.all(after[0, 100 + OUTLIERS :] == 0)


@pytest.mark.parametrize("size", [1e-30, 1e-7, 3e-6, 1e5, 1e20, 3e38])
def test_numbers_beyond_any_scale_keep_sign_and_bounds(size: float) -> None:
    values = np.linspace(-size, size, 256, dtype=np.float32)[None]
    codec = codec_of("int8", "float32", 256)
    after = from_bytes(codec.decode(codec.encode(values.tobytes())), "float32", 256)
    assert np.isfinite(after).all()
    assert np.all(np.sign(after) * np.sign(values) >= 0)
    assert np.abs(after).max() <= size * 1.01 + 6e-8 * 127


@given(st.sampled_from(DTYPES), SIZES, st.data())
def test_foreign_bytes_are_positions_or_malformed(dtype: str, size: int, data: st.DataObject) -> None:
    codec = codec_of("int8", dtype, size)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    foreign = rng.integers(0, 256, 2 * codec.row_bytes, np.uint8).tobytes()
    if data.draw(st.booleans()):
        foreign = bytes(byte * (byte < 3) for byte in foreign)
    try:
        decoded = codec.decode(foreign)
    except MalformedFrame:
        return
    assert len(decoded) == 2 * codec.raw_bytes


@given(st.sampled_from(DTYPES), SIZES, st.integers(1, 2000))
def test_a_part_of_a_position_is_malformed(dtype: str, size: int, length: int) -> None:
    for name in ("raw", "int8"):
        codec = codec_of(name, dtype, size)
        if length % codec.row_bytes:
            with pytest.raises(MalformedFrame):
                codec.decode(bytes(length))
        if length % codec.raw_bytes:
            with pytest.raises(MalformedFrame):
                codec.encode(bytes(length))


@pytest.mark.parametrize("name", ["raw", "int8"])
def test_nothing_is_encoded_to_nothing(name: str) -> None:
    codec = codec_of(name, "bfloat16", 130)
    assert codec.encode(b"") == codec.decode(b"") == b""


@given(st.binary(min_size=8, max_size=64).map(lambda b: b[: len(b) // 8 * 8]))
def test_raw_is_raw(rows: bytes) -> None:
    for codec in (codec_of("raw", "exact", 1, 8), codec_of("", "float32", 2), codec_of("raw", "float16", 4)):
        assert codec.encode(rows) == codec.decode(memoryview(rows)) == rows
        assert codec.row_bytes == codec.raw_bytes == 8


@pytest.mark.parametrize(
    ("name", "dtype"), [("zip", "float32"), ("int8", "exact"), ("raw", "exact"), ("INT8", "float16")]
)
def test_unknown_codecs_are_a_mismatch(name: str, dtype: str) -> None:
    with pytest.raises(ContractMismatch):
        codec_of(name, dtype, 128)


def test_int8_is_offered_where_it_saves() -> None:
    assert offered("bfloat16", 4096) == offered("float32", 192) == ("raw", "int8")
    assert offered("bfloat16", 64) == offered("float32", 8) == offered("exact", 1) == ("raw",)
    half = codec_of("int8", "bfloat16", 4096)
    assert half.row_bytes < 0.52 * half.raw_bytes


def test_wide_positions_have_wide_places() -> None:
    size = (1 << 16) + 1
    values = np.zeros((1, size), np.float32)
    values[0, -1] = 5.0
    codec = codec_of("int8", "float32", size)
    assert np.array_equal(np.frombuffer(codec.decode(codec.encode(values.tobytes())), np.float32), values[0])


def test_a_step_travels() -> None:
    values = np.random.default_rng(0).normal(size=(3, 192)).astype(np.float32)
    codec = codec_of("int8", "float32", 192)
    step = pb.Step(rows=[pb.Rows(sequence=1, start=4, count=3, want=1)], hidden=values.tobytes())
    sent = encode_step(step, codec)
    assert step.hidden == values.tobytes(), "what is sent is another"
    assert len(sent.hidden) == 3 * codec.row_bytes
    taken = decode_step(sent, codec)
    assert taken.rows == step.rows
    assert taken.hidden == codec.decode(codec.encode(step.hidden))
    with pytest.raises(MalformedFrame):
        decode_step(step, codec)


def test_a_small_frame_does_not_become_a_huge_one() -> None:
    codec = codec_of("int8", "float32", 4096)
    count = FRAME_LIMIT // codec.raw_bytes + 1
    step = pb.Step(rows=[pb.Rows(count=count)], hidden=bytes(count * codec.row_bytes))
    with pytest.raises(MalformedFrame):
        decode_step(step, codec)
