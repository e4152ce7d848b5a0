"""A span computes as the library's own blocks do, however its positions arrive, and gives its memory back."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from survey.configs import HEAD_DIM, HIDDEN, KV_HEADS, small_config
from survey.reference import build
from swarm.errors import Gap, InvalidInput, UnsupportedModel
from swarm.jobs import compute
from swarm.models.blocks import find_blocks
from swarm.models.span.kv.cost import OBJECT_BYTES, SMALLEST, capacity
from swarm.models.span.model import SpanModel
from swarm.types import Segment, SequenceKey, Span

A: SequenceKey = (b"session a", 1)
B: SequenceKey = (b"session b", 1)
C: SequenceKey = (b"session a", 2)
TYPES = ("llama", "gemma2", "gpt_oss", "mixtral", "bloom")
BATCHED = ("llama", "gemma2", "gpt_oss", "mixtral")
WHOLE = Span(0, 6)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Small models with random weights, by type; to be copied before they are taken apart."""
    return {model_type: build(small_config(model_type)) for model_type in (*TYPES, "lfm2", "phi3+longrope")}


def spanned(model: Any, span: Span = WHOLE) -> SpanModel:
    return SpanModel(copy.deepcopy(model), span)


@torch.no_grad()
def boundaries(model: Any, length: int, seed: int = 0) -> list[torch.Tensor]:
    """Hidden states `[length, hidden_size]` before each block of the whole model, and after the last."""
    seen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0].clone())
        last[:] = [(output[0] if isinstance(output, tuple) else output)[0].clone()]

    last: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in find_blocks(model).layers]
    model(torch.randint(3, 150, (1, length), generator=torch.Generator().manual_seed(seed)), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen + last


def feed(
    model: SpanModel, parts: Iterable[tuple[SequenceKey, int, torch.Tensor]], span: Span | None = None
) -> torch.Tensor:
    """Run `(sequence, start, rows [n, hidden_size])` in one pass; returns all rows."""
    parts = list(parts)
    rows = torch.cat([rows for _, _, rows in parts]).to(model.dtype).contiguous()
    segments = [Segment(sequence, start, len(rows)) for sequence, start, rows in parts]
    output = compute(model, span or model.span, segments, rows.view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(output), dtype=model.dtype).view(-1, model.hidden_size)


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert got.shape == expected.shape
    difference = (got.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert difference <= tolerance, f"differs by {difference:.2g} of the largest"


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("span", [Span(0, 3), Span(2, 3), Span(3, 6)])
def test_any_span_in_chunks_is_the_models_own(models: dict[str, Any], model_type: str, span: Span) -> None:
    states = boundaries(models[model_type], 16)
    model = spanned(models[model_type], span)
    pieces = [(0, 9), (9, 14), (14, 15), (15, 16)]
    got = torch.cat([feed(model, [(A, begin, states[span.first][begin:end])]) for begin, end in pieces])
    assert_close(got, states[span.last])


@pytest.mark.parametrize("model_type", TYPES)
def test_a_part_of_a_span_serves_another_session(models: dict[str, Any], model_type: str) -> None:
    states, model = boundaries(models[model_type], 12), spanned(models[model_type])
    for begin, end in ((0, 7), (7, 12)):  # the two take turns
        assert_close(feed(model, [(A, begin, states[0][begin:end])]), states[6][begin:end])
        assert_close(feed(model, [(B, begin, states[2][begin:end])], Span(2, 5)), states[5][begin:end])


@pytest.mark.parametrize("model_type", TYPES)
def test_strangers_of_all_lengths_in_one_row_get_what_each_gets_alone(models: dict[str, Any], model_type: str) -> None:
    model = spanned(models[model_type], Span(1, 4))
    assert model.proven.batched == (model_type in BATCHED)
    ours, theirs = boundaries(models[model_type], 14, seed=1), boundaries(models[model_type], 11, seed=2)
    feed(model, [(A, 0, ours[1][:10])])
    both = feed(model, [(B, 0, theirs[1][:8]), (A, 10, ours[1][10:11])])
    assert_close(both, torch.cat([theirs[4][:8], ours[4][10:11]]))
    both = feed(model, [(A, 11, ours[1][11:14]), (B, 8, theirs[1][8:11])])
    assert_close(both, torch.cat([ours[4][11:14], theirs[4][8:11]]))


@pytest.mark.parametrize("model_type", TYPES)
def test_fork_move_truncate_and_free(models: dict[str, Any], model_type: str) -> None:
    ours, theirs = boundaries(models[model_type], 12, seed=1), boundaries(models[model_type], 12, seed=2)
    model = spanned(models[model_type])
    feed(model, [(A, 0, ours[0])])
    model.fork(A, C, 7)
    assert (model.length(A), model.length(C)) == (12, 7)
    assert_close(feed(model, [(C, 7, ours[0][7:])]), ours[6][7:])
    model.truncate(A, 5)
    assert_close(feed(model, [(A, 5, ours[0][5:9])]), ours[6][5:9])
    assert model.length(C) == 12, "a fork is a copy"
    model.move(C, A, 3)
    assert (model.length(A), model.length(C)) == (3, 0)
    assert_close(feed(model, [(A, 3, ours[0][3:])]), ours[6][3:])
    model.truncate(A, 0)
    assert_close(feed(model, [(A, 0, theirs[0])]), theirs[6])
    model.free(A)
    model.free(A)
    assert model.bytes_held() == 0


@pytest.mark.parametrize("model_type", TYPES)
def test_bytes_come_back_to_nothing(models: dict[str, Any], model_type: str) -> None:
    model = spanned(models[model_type], Span(0, 3))
    states = boundaries(models[model_type], 20)[0]
    for number in range(3):
        feed(model, [((b"s", number), 0, states)])
        feed(model, [((b"s", number), 20, states[:1])])
    assert 0 < model.bytes_held() <= 3 * model.reserved_bytes(model.span, 21)
    model.fork((b"s", 0), (b"s", 7), 4)
    model.move((b"s", 1), (b"s", 8), 2)
    for number in (0, 2, 7, 8):
        model.free((b"s", number))
    assert model.bytes_held() == 0


def test_what_is_reserved_is_room_for_keys_and_values(models: dict[str, Any]) -> None:
    model = spanned(models["llama"], Span(1, 5))
    position = 2 * KV_HEADS * HEAD_DIM * 4
    assert model.reserved_bytes(Span(2, 4), 100) == 2 * (OBJECT_BYTES + 112 * position)
    assert model.reserved_bytes(Span(1, 5), 100) == 2 * model.reserved_bytes(Span(2, 4), 100)
    assert model.reserved_bytes(Span(1, 5), 0) == 0


@given(st.integers(1, 100_000))
def test_there_is_room_for_what_is_held_and_little_more(length: int) -> None:
    assert length <= capacity(length) <= max(SMALLEST, length * 1.25)
    assert capacity(capacity(length)) == capacity(length)


LOADED: dict[str, SpanModel] = {}


def once(models: dict[str, Any], model_type: str) -> SpanModel:
    """Loading takes longer than what hypothesis does with it."""
    if model_type not in LOADED:
        LOADED[model_type] = spanned(models[model_type], Span(0, 2))
    return LOADED[model_type]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["feed", "fork", "move", "truncate", "free"]), *[st.integers(0, 3)] * 2, st.integers(0, 40)
    ),
    max_size=12,
)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "bloom"])
@given(operations=OPERATIONS)
@settings(max_examples=15)
def test_what_is_held_follows_from_the_lengths_alone(
    models: dict[str, Any], model_type: str, operations: list[tuple[str, int, int, int]]
) -> None:
    """However a sequence came to its length: grown, forked, cut or renamed."""
    model = once(models, model_type)
    keys = [(b"s", number) for number in range(4)]
    for what, one, other, length in operations:
        source, target, held = keys[one], keys[other], model.length(keys[one])
        if what == "feed" and length and held + length <= 48:
            feed(model, [(source, held, torch.zeros(length, HIDDEN))])
        elif what == "free":
            model.free(source)
        elif held and what == "truncate":
            model.truncate(source, length)
        elif held and source != target and what in ("fork", "move"):
            getattr(model, what)(source, target, min(length, held))
        reserved = [model.reserved_bytes(model.span, model.length(key)) for key in keys]
        assert model.bytes_held() == sum(reserved) if model.proven.batched else model.bytes_held() <= sum(reserved)
    for key in keys:
        model.free(key)
    assert model.bytes_held() == 0


def test_a_pass_that_fails_leaves_nothing(models: dict[str, Any]) -> None:
    states, model = boundaries(models["llama"], 10), spanned(models["llama"])
    feed(model, [(A, 0, states[0][:6])])
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("the device is gone")

    model.on_block = fail
    with pytest.raises(RuntimeError):
        feed(model, [(A, 6, states[0][6:])])
    model.on_block = None
    assert model.length(A) == 6
    assert_close(feed(model, [(A, 6, states[0][6:])]), states[6][6:])


@pytest.mark.parametrize("model_type", TYPES)
def test_the_heartbeat_beats_once_a_block(models: dict[str, Any], model_type: str) -> None:
    model, beats = spanned(models[model_type]), []
    model.on_block = lambda: beats.append(1)
    feed(model, [(A, 0, torch.randn(3, HIDDEN))])
    assert len(beats) == 6
    feed(model, [(B, 0, torch.randn(3, HIDDEN))], Span(2, 4))
    assert len(beats) == 8


def test_a_long_sequence_grows_its_buffers_and_stays_right(models: dict[str, Any]) -> None:
    config = small_config("llama")
    config.max_position_embeddings = 400
    whole = build(config)
    states, model = boundaries(whole, 300), spanned(whole)
    for begin in range(0, 300, 60):
        got = feed(model, [(A, begin, states[0][begin : begin + 60])])
        assert_close(got, states[6][begin : begin + 60])
    assert model.bytes_held() == model.reserved_bytes(model.span, 300)


def test_bfloat16_is_within_its_tolerance(models: dict[str, Any]) -> None:
    states = boundaries(models["llama"], 16)
    model = SpanModel(copy.deepcopy(models["llama"]).to(torch.bfloat16), Span(0, 3))
    assert model.proven.batched
    assert model.dtype == torch.bfloat16
    got = torch.cat([feed(model, [(A, 0, states[0][:12])]), feed(model, [(A, 12, states[0][12:])])])
    assert_close(got, states[3], tolerance=6e-2)


def test_wrong_input_is_a_typed_error_and_changes_nothing(models: dict[str, Any]) -> None:
    states, model = boundaries(models["llama"], 8)[0], spanned(models["llama"], Span(1, 4))
    feed(model, [(A, 0, states[:4])])
    for parts, span in (
        ([(A, 5, states[:2])], Span(1, 4)),
        ([(A, 3, states[:2])], Span(1, 4)),
        ([(B, 1, states[:2])], Span(1, 4)),
        ([(A, 4, states[:2])], Span(0, 4)),
        ([(B, 0, states.repeat(10, 1))], Span(1, 4)),
    ):
        with pytest.raises(InvalidInput):
            feed(model, parts, span)
    with pytest.raises(InvalidInput, match="bytes"):
        compute(model, model.span, [Segment(A, 4, 2)], b"\0" * 8)
    for act in (model.fork, model.move):
        with pytest.raises(InvalidInput):
            act(B, C, 1)
    assert (model.length(A), model.length(B)) == (4, 0)


def test_a_running_state_cannot_roll_back_but_can_begin_again(models: dict[str, Any]) -> None:
    model = spanned(models["lfm2"])
    states = boundaries(models["lfm2"], 10)
    assert not model.proven.batched
    assert not model.can_rollback
    assert_close(feed(model, [(A, 0, states[0][:6]), (B, 0, states[0][:4])])[:6], states[6][:6])
    with pytest.raises(Gap, match="running state"):
        model.truncate(A, 3)
    with pytest.raises(Gap, match="running state"):
        model.fork(A, C, 3)
    model.fork(A, C, 6)
    assert_close(feed(model, [(C, 6, states[0][6:])]), states[6][6:])
    assert_close(feed(model, [(A, 6, states[0][6:])]), states[6][6:])
    model.truncate(A, 0)
    assert_close(feed(model, [(A, 0, states[0])]), states[6])


def test_a_span_of_running_states_only(models: dict[str, Any]) -> None:
    states, model = boundaries(models["lfm2"], 10), spanned(models["lfm2"], Span(2, 4))
    assert_close(feed(model, [(A, 0, states[2][:6])]), states[4][:6])
    assert_close(feed(model, [(A, 6, states[2][6:])]), states[4][6:])


def test_the_context_ends_where_rotary_embeddings_change(models: dict[str, Any]) -> None:
    states, model = boundaries(models["phi3+longrope"], 30), spanned(models["phi3+longrope"])
    assert model.proven.batched
    assert model.max_positions == 32
    assert_close(feed(model, [(A, 0, states[0])]), states[6])
    with pytest.raises(InvalidInput, match="32"):
        feed(model, [(A, 30, states[0][:3])])


def test_multipliers_belong_to_the_client() -> None:
    config: Any = small_config("granite")
    config.embedding_multiplier = 12.0
    whole = build(config)
    states = boundaries(whole, 9)
    for span in (Span(0, 2), Span(4, 6)):
        assert_close(feed(spanned(whole, span), [(A, 0, states[span.first])]), states[span.last])


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("roformer", "more than hidden states and positions: sinusoidal_pos"),
        ("recurrent_gemma", "outside the cache"),
        ("openai-gpt", "outside the cache"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_reason(model_type: str, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        SpanModel(build(small_config(model_type)), Span(0, 2))  # type: ignore[arg-type]
