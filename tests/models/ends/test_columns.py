"""Masks and positions of every shape: as plain transformers computes them where there is a token, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm.errors import InvalidInput, NoServerFits
from swarm.models.ends.columns import Habits, places
from tests.checkpoints import GREEDY, Served, left_padded, prompt, reference, save, spans_of

Serve = Callable[[str, int], Served]
Whole = Callable[[str], Any]
T = 10
KINDS = ("llama", "gemma2+untied", "gpt2", "bloom+untied")


def padding(*columns: int) -> torch.Tensor:
    """A mask `[1, T]` with these columns out."""
    mask = torch.ones(1, T, dtype=torch.long)
    mask[0, list(columns)] = 0
    return mask


def counted(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


HOLE, LEFT, RIGHT = padding(4), padding(0, 1, 2), padding(8, 9)
HONOURED: dict[str, dict[str, Any]] = {
    "positions as they are": {"position_ids": torch.arange(T)[None]},
    "positions from elsewhere on": {"position_ids": torch.arange(T)[None] + 5},
    "all ones": {"attention_mask": torch.ones(1, T)},
    "bool": {"attention_mask": torch.ones(1, T, dtype=torch.bool)},
    "left": {"attention_mask": LEFT},
    "left, with positions": {"attention_mask": LEFT, "position_ids": counted(LEFT)},
    "right": {"attention_mask": RIGHT},
    "both sides": {"attention_mask": LEFT * RIGHT, "position_ids": counted(LEFT * RIGHT)},
    "a hole that positions pass over": {"attention_mask": HOLE, "position_ids": counted(HOLE)},
    "columns": {"cache_position": torch.arange(T)},
    "gaps": {"position_ids": torch.arange(T)[None] * 2},
    "backwards": {"position_ids": torch.arange(T).flip(0)[None]},
    "backwards, in one text": {"position_ids": torch.arange(T).flip(0)[None], "attention_mask": torch.ones(1, T)},
    "two texts in one row": {"position_ids": torch.arange(T)[None] % 5, "use_cache": False},
    "two texts that begin elsewhere": {"position_ids": torch.arange(T)[None] % 6 + 3, "use_cache": False},
    "a hole that positions count": {"attention_mask": HOLE},
    "gaps between padding": {"attention_mask": LEFT * RIGHT, "position_ids": counted(LEFT * RIGHT) * 3 + 1},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "before the first": ({"position_ids": torch.arange(T)[None] * 2 - 3}, "position_ids: -3 in row 0"),
    "beyond every context": ({"position_ids": torch.arange(T)[None] * (1 << 40)}, "position_ids: .* is no position"),
    "fractions": ({"position_ids": torch.arange(T)[None] * 0.5}, "position_ids must be"),
    "one dimension": ({"position_ids": torch.arange(T)}, "position_ids is"),
    "too few positions": ({"position_ids": torch.arange(T - 1)[None]}, "position_ids is"),
    "planes of another length": ({"position_ids": torch.zeros(3, 1, T + 1, dtype=torch.long)}, "position_ids is"),
    "4-D bool": ({"attention_mask": torch.ones(1, 1, T, T, dtype=torch.bool).tril()}, "attention_mask must be 2-D"),
    "other numbers": ({"attention_mask": torch.full((1, T), 0.5)}, "attention_mask holds other numbers"),
    "4-D float": ({"attention_mask": torch.zeros(1, 1, T, T)}, "attention_mask must be 2-D"),
    "3-D": ({"attention_mask": torch.ones(1, T, T)}, "attention_mask must be 2-D"),
    "by kind of block": ({"attention_mask": {"full_attention": None}}, "attention_mask must be 2-D"),
    "too short": ({"attention_mask": torch.ones(1, T - 2)}, "attention_mask is"),
    "too long": ({"attention_mask": torch.ones(1, T + 2)}, "attention_mask is"),
    "of another batch": ({"attention_mask": torch.ones(2, T)}, "attention_mask is"),
    "the last of the right": ({"attention_mask": RIGHT, "logits_to_keep": 1}, "padded on the right"),
    "other columns": ({"cache_position": torch.arange(T) + 3}, "cache_position"),
    "labels behind padding": ({"attention_mask": RIGHT, "labels": prompt(T)}, "labels"),
}  # fmt: skip


def compared(served: Serve, whole: Whole, kind: str, options: dict[str, Any]) -> None:
    """The logits of tokens are those of plain transformers; of padding there are none to compare."""
    model, real = served(kind, 2).model(), options.get("attention_mask", torch.ones(1, T)).bool()
    expected, got = (each(prompt(T), **options).logits[real] for each in (whole(kind), model))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", HONOURED)
@pytest.mark.parametrize("kind", KINDS)
def test_honoured(served: Serve, whole: Whole, kind: str, name: str) -> None:
    options = HONOURED[name]
    if "position_ids" in options and kind.startswith("bloom"):
        pytest.skip("it takes no positions")
    if name == "a hole that positions count" and kind.startswith("bloom"):
        with pytest.raises(InvalidInput, match="position_ids: those of row 0"):
            compared(served, whole, kind, options)
    elif "hole" in name and kind.startswith("gemma2"):
        with pytest.raises(InvalidInput, match="no padding between tokens"):
            compared(served, whole, kind, options)
    else:
        compared(served, whole, kind, options)


@torch.no_grad()
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(served: Serve, name: str) -> None:
    options, words = REFUSED[name]
    servers = served("llama", 2)
    with pytest.raises(InvalidInput, match=words):
        servers.model()(prompt(T), **options)
    servers.assert_free()


@torch.no_grad()
def test_positions_that_only_the_embeddings_look_at_may_be_any(served: Serve, whole: Whole) -> None:
    for options in ({"position_ids": torch.arange(T).flip(0)[None]}, {"attention_mask": HOLE}):
        compared(served, whole, "gpt2", options)


@torch.no_grad()
def test_arguments_that_are_given_in_order_are_the_same(served: Serve, whole: Whole) -> None:
    model = served("llama", 2).model()
    expected, got = (each(prompt(T), LEFT).logits[LEFT.bool()] for each in (whole("llama"), model))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInput, match="position_ids"):
        model(prompt(T), LEFT, torch.arange(T)[None] * 0.5)


@torch.no_grad()
def test_the_model_without_its_head_sees_masks_too(served: Serve, whole: Whole) -> None:
    inputs = left_padded((9, 4, 7))
    real = inputs["attention_mask"].bool()
    expected, got = (
        each.model(**inputs).last_hidden_state[real] for each in (whole("llama"), served("llama", 2).model())
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInput, match="output_hidden_states"):
        served("llama", 2).model().model(**inputs, output_hidden_states=True)


BEFORE = left_padded((9, 4, 7))
WHOLE = torch.cat([BEFORE["attention_mask"], torch.ones(3, 3, dtype=torch.long)], dim=1)
ON = counted(WHOLE)[:, -3:]


@torch.no_grad()
@pytest.mark.parametrize("positions", [None, ON])
def test_a_step_that_goes_on(served: Serve, whole: Whole, positions: torch.Tensor | None) -> None:
    logits = []
    for model in (whole("llama"), served("llama", 2).model()):
        before = counted(BEFORE["attention_mask"]) if positions is not None else None
        cache = model(**BEFORE, position_ids=before, use_cache=True).past_key_values
        logits.append(
            model(prompt(3, 5, 3), attention_mask=WHOLE, position_ids=positions, past_key_values=cache).logits
        )
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "there was padding before"),
        ({"attention_mask": torch.ones(3, 3)}, r"attention_mask is \(3, 3\)"),
        ({"attention_mask": torch.ones(3, 12)}, "cannot become"),
        ({"attention_mask": WHOLE, "position_ids": ON - 9}, "position_ids: -.* in row 1"),
        ({"attention_mask": WHOLE, "position_ids": ON - 4}, "position_ids: those of row 1 go back to 0"),
    ],
)
def test_a_step_that_does_not_go_on(served: Serve, options: dict[str, Any], words: str) -> None:
    """Its prompt had the positions of columns, padding too."""
    model = served("llama", 2).model()
    cache = model(**BEFORE, use_cache=True).past_key_values
    with pytest.raises(InvalidInput, match=words):
        model(prompt(3, 5, 3), past_key_values=cache, **options)


@torch.no_grad()
def test_positions_that_no_server_takes(served: Serve) -> None:
    planes = torch.stack([torch.arange(T), torch.arange(T) * 2, torch.arange(T)])[:, None]
    with pytest.raises(NoServerFits, match="takes 1 numbers of its own a position, and 3 are needed"):
        served("llama", 2).model()(prompt(T), position_ids=planes, attention_mask=torch.ones(1, T))


SPREAD = torch.tensor([[0, 1, 4, 5, 6, 11, 12, 13, 20, 21, 22, 22, 25, 26]])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss", "phi3", "llama4", "qwen3_next", "ministral3"])
@pytest.mark.parametrize("before", [0, 5])
def test_positions_of_its_own_survive_a_server(tmp_path: Path, kind: str, before: int) -> None:
    """What was counted, what has places, and what follows, on one cache, while a server dies between any two."""
    folder = save(tmp_path, kind)
    servers = Served(folder, [*spans_of(2), *spans_of(2)])
    logits = []
    for model in (reference(folder), servers.model()):
        cache, outputs = None, []
        for first, last in [(0, before), (before, 12), (12, 13), (13, 14)]:
            if first == last:
                continue
            ids = prompt(14)[:, first:last]
            positions = torch.arange(first, last)[None]
            if first >= before:
                positions = before + SPREAD[:, first - before : last - before]
            output = model(ids, position_ids=positions, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            outputs.append(output.logits)
            if model is not None and getattr(model, "route", None) and last in (12, 13):
                servers.kill(model.route.hops[last - 12].peer_id)
        logits.append(torch.cat(outputs, dim=1))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    servers.close()


@torch.no_grad()
@pytest.mark.parametrize("labels", [prompt(T), torch.where(prompt(T) > 60, -100, prompt(T))])
def test_a_loss(served: Serve, whole: Whole, labels: torch.Tensor) -> None:
    expected, got = (each(prompt(T), labels=labels).loss for each in (whole("llama"), served("llama", 2).model()))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    padded = torch.where(RIGHT.bool(), labels, -100)
    options = {"attention_mask": RIGHT, "labels": padded}
    expected, got = (each(prompt(T), **options).loss for each in (whole("llama"), served("llama", 2).model()))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "bloom+untied"])
def test_generating_after_padding_on_the_right_is_refused(served: Serve, kind: str) -> None:
    ids, mask = prompt(8, batch=2), torch.ones(2, 8, dtype=torch.long)
    mask[0, 5:] = 0
    servers = served(kind, 2)
    for inputs in ({"input_ids": ids * mask, "attention_mask": mask}, {"input_ids": ids * mask}):
        with pytest.raises(InvalidInput, match=r'padded on the right.*padding_side = "left"'):
            servers.model().generate(**inputs, **GREEDY, max_new_tokens=3)
    servers.assert_free()


def test_positions_in_floating_point_are_those_that_they_count() -> None:
    real, seen = torch.ones(1, T, dtype=torch.bool), torch.zeros(1, 0, dtype=torch.bool)
    gaps = torch.arange(T)[None] * 3
    _, (right,) = places(gaps, seen, real, [None], Habits())
    _, (got,) = places(gaps.float(), seen, real, [None], Habits())
    assert right is not None and got is not None and torch.equal(got, right)
    for wrong in (float("nan"), float("inf"), 1e30, 0.5):
        with pytest.raises(InvalidInput, match="must be a tensor of integers"):
            places(torch.full((1, T), wrong), seen, real, [None], Habits())
