"""Decode steps of models with running states in one pass: what each sequence gets alone, and what a failure leaves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from survey.configs import HIDDEN, small_config
from survey.reference import build
from swarm.errors import Gap
from swarm.jobs import Forward
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.models.span.passes import Unbatched
from swarm.models.span.stacked import Stacked
from swarm.types import Segment, Span
from tests.checkpoints import save

TYPES = ("qwen3_next", "lfm2", "kimi_linear", "granitemoehybrid", "olmo_hybrid", "qwen3_5_text", "mamba", "jamba")
SPAN = Span(0, 6)


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, SpanModel] = {}

    def span(kind: str, part: Span = SPAN) -> SpanModel:
        name = f"{kind} {part}"
        if name not in made:
            made[name] = load_span(save(tmp_path_factory.mktemp(kind), kind), part, progress=False)
        return made[name]

    return span


def step(
    model: SpanModel, parts: dict[int, torch.Tensor], session: bytes = b"s", *, rollback: bool = False
) -> dict[int, torch.Tensor]:
    """Rows `[n, hidden]` of several sequences through the span, in one job."""
    segments = [
        Segment((session, s), model.length((session, s)), len(rows), rollback=rollback) for s, rows in parts.items()
    ]
    output = model.run(Forward(model.span, segments, torch.cat(list(parts.values()))))
    return dict(zip(parts, torch.split(output, [len(rows) for rows in parts.values()]), strict=True))


@pytest.mark.parametrize("kind", TYPES)
def test_any_mixture_of_prompts_and_steps_is_what_each_gets_alone(spans: Any, kind: str) -> None:
    model = spans(kind)
    assert model.proven.stacked and not model.proven.batched and not model.can_rollback
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    inputs: dict[int, list[torch.Tensor]] = {s: [] for s in range(5)}
    got: dict[int, list[torch.Tensor]] = {s: [] for s in range(5)}
    for turn in range(9):
        chosen = rng.sample(range(5), rng.randint(1, 5)) if turn else [0, 1, 2]
        parts = {s: torch.randn(rng.choice((1, 1, 1, 3)), HIDDEN, generator=generator) for s in chosen}
        for s, output in step(model, parts).items():
            inputs[s].append(parts[s])
            got[s].append(output)
        held = sum(model.reserved_bytes(SPAN, model.length((b"s", s))) for s in range(5))
        assert model.bytes_held() <= held
    for s in range(5):
        alone = step(model, {9: torch.cat(inputs[s])}, b"alone")[9]
        model.free((b"alone", 9))
        torch.testing.assert_close(torch.cat(got[s]), alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    for s in range(5):
        model.free((b"s", s))
    assert model.bytes_held() == 0


class Walk:
    """Sequences that go on and back at random, in one model, and what each has to be."""

    def __init__(self, model: SpanModel, rng: random.Random, kept: int) -> None:
        self.model, self.rng = model, rng
        self.inputs = {s: torch.empty(0, HIDDEN) for s in range(kept)}
        self.outputs = {s: torch.empty(0, HIDDEN) for s in range(kept)}

    def on(self, sequences: list[int], longest: int = 9) -> None:
        """Windows, some of one length."""
        counts = [self.rng.choice((1, 1, 4, 4, longest)) for _ in sequences]
        parts = {s: torch.randn(n, HIDDEN) for s, n in zip(sequences, counts, strict=True)}
        for s, output in step(self.model, parts, rollback=True).items():
            self.inputs[s] = torch.cat([self.inputs[s], parts[s]])
            self.outputs[s] = torch.cat([self.outputs[s], output])

    def back(self, s: int) -> None:
        """To any length in reach, as a copy that goes on in its place."""
        reach, length = self.model.reach((b"s", s)), len(self.inputs[s])
        to = self.rng.randint(max(reach, 1), length)
        self.model.fork((b"s", s), (b"s", 99), to)
        self.model.move((b"s", 99), (b"s", s), to)
        self.inputs[s], self.outputs[s] = self.inputs[s][:to], self.outputs[s][:to]

    def check(self) -> None:
        """Everything that each got is what it gets alone, and takes no more than was said."""
        for s, inputs in self.inputs.items():
            alone = step(self.model, {9: inputs}, b"alone")[9]
            self.model.free((b"alone", 9))
            torch.testing.assert_close(self.outputs[s], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
        lengths = [self.model.length((b"s", s)) for s in self.inputs]
        beside = self.model.snapshot_bytes(self.model.span)
        assert self.model.bytes_held() <= sum(self.model.reserved_bytes(self.model.span, n) + beside for n in lengths)


@pytest.mark.parametrize("kind", TYPES)
def test_sequences_that_go_back_get_what_they_get_alone(spans: Any, kind: str) -> None:
    """Windows of several sequences, taken back in part, in one pass or several: all outputs, and what it takes."""
    model = spans(kind)
    torch.manual_seed(4)
    walk = Walk(model, random.Random(4), 3)
    walk.on([0, 1, 2])
    for turn in range(12):
        walk.on(walk.rng.sample(range(3), walk.rng.randint(1, 3)))
        if turn % 3 == 0:
            walk.check()
        walk.back(walk.rng.randrange(3))
    walk.on([0, 1, 2])
    walk.check()
    for s in range(3):
        model.free((b"s", s))
    assert model.bytes_held() == 0


def test_who_goes_back_too_far_is_told_and_who_does_not_say_so_keeps_nothing(spans: Any) -> None:
    model, key = spans("qwen3_next", Span(2, 3)), (b"s", 0)
    torch.manual_seed(5)
    step(model, {0: torch.randn(5, HIDDEN)})
    assert model.reach(key) == 5
    step(model, {0: torch.randn(4, HIDDEN)}, rollback=True)
    with pytest.raises(Gap, match="running state"):
        model.truncate(key, 4)
    with pytest.raises(Gap, match="running state"):
        model.fork(key, (b"s", 1), 4)
    model.truncate(key, 5)
    step(model, {0: torch.randn(1, HIDDEN)})
    assert model.reach(key) == model.length(key) == 6
    model.free(key)


def test_going_back_costs_no_pass_where_few_positions_lie_between(spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = spans("qwen3_next")
    torch.manual_seed(6)
    rows: list[int] = []
    run = model._model.run
    monkeypatch.setattr(
        model._model, "run", lambda hidden, *a, **k: (rows.append(hidden.shape[1]), run(hidden, *a, **k))[1]
    )
    step(model, {0: torch.randn(20, HIDDEN)}, rollback=True)
    for _ in range(6):
        step(model, {0: torch.randn(8, HIDDEN)}, rollback=True)
        model.truncate((b"s", 0), model.length((b"s", 0)) - 6)
    assert rows == [20, 8, 2 + 8, 4 + 8, 6 + 8, 8 + 8, 10 + 8], "never the prompt"
    model.free((b"s", 0))


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2"])
def test_a_copy_goes_on_by_itself(spans: Any, kind: str) -> None:
    model, generator = spans(kind), torch.Generator().manual_seed(1)
    prompt, one, other = (torch.randn(n, HIDDEN, generator=generator) for n in (5, 1, 1))
    step(model, {0: prompt})
    model.fork((b"s", 0), (b"s", 1), 5)
    both = step(model, {0: one, 1: other})
    again = step(model, {2: torch.cat([prompt, other])})[2][-1:]
    torch.testing.assert_close(both[1], again, rtol=1e-4, atol=1e-4 * float(again.abs().max()))
    for s in range(3):
        model.free((b"s", s))


def test_a_pass_that_fails_leaves_states_as_they_were(spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, generator = spans("qwen3_next"), torch.Generator().manual_seed(2)
    prompts = {s: torch.randn(4 + s, HIDDEN, generator=generator) for s in (0, 1)}
    steps = {s: torch.randn(1, HIDDEN, generator=generator) for s in (0, 1)}
    step(model, prompts)
    last = model._model.blocks[-1]
    monkeypatch.setattr(last, "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(model, steps)
    monkeypatch.undo()
    for s in (0, 1):
        model.truncate((b"s", s), 4 + s)
    got = step(model, steps)
    for s in (0, 1):
        alone = step(model, {7: torch.cat([prompts[s], steps[s]])}, b"alone")[7][-1:]
        torch.testing.assert_close(got[s], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
        model.free((b"alone", 7))
        model.free((b"s", s))


def test_a_span_of_nothing_but_states(spans: Any) -> None:
    """The library asks the cache of a layer with keys how long it is; here there is none."""
    model = spans("qwen3_next", Span(2, 3))
    assert isinstance(model._passes, Stacked)
    generator = torch.Generator().manual_seed(3)
    prompts = {s: torch.randn(4, HIDDEN, generator=generator) for s in (0, 1)}
    steps = {s: torch.randn(1, HIDDEN, generator=generator) for s in (0, 1)}
    step(model, prompts)
    got = step(model, steps)
    for s in (0, 1):
        alone = step(model, {7: torch.cat([prompts[s], steps[s]])}, b"alone")[7][-1:]
        torch.testing.assert_close(got[s], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
        model.free((b"alone", 7))


def test_where_attention_is_not_the_interfaces_all_run_alone(tmp_path: Path) -> None:
    build(small_config("inkling_text")).save_pretrained(tmp_path)
    model = load_span(tmp_path, SPAN, progress=False)
    assert isinstance(model._passes, Unbatched)
    assert not model.proven.stacked
