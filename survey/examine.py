"""Compare a model cut into spans with the library's whole model, on every way in which positions can arrive."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, PreTrainedModel

from survey.reference import together
from survey.trained import APART, Learning, SpansTraining, compared
from swarm.errors import InvalidInput, UnsupportedModel
from swarm.jobs import compute
from swarm.models.ends.hollow import hollow_blocks
from swarm.models.ends.load import load_ends, returns_tuple
from swarm.models.ends.remote import RemoteSpan, rearrange
from swarm.models.loading.cost import describe
from swarm.models.loading.refused import CANNOT, REASONS, reason_to_refuse
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.span import is_inside
from swarm.types import Rows, Segment, Span

TOLERANCE = 2e-4
"""Largest difference of logits, relative to the largest logit, in float32."""
CHUNKS = (7, 8, 5, 1, 1, 1, 1)
EXACT = ("batched", "stacked", "unbatched")


class Wrong(Exception):
    """The cut model computed something else than the whole one, and nobody noticed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a survey says of a type. `kind`: batched, stacked, unbatched, refused, impossible or wrong; `why`
    unless batched; `trained`: of one that is exact, what was found of its gradients."""

    model_type: str
    kind: str
    why: str = ""
    trained: str = ""


class Recorder:
    """A session in this process: runs the spans one after another, and keeps what went in and came out."""

    def __init__(self, spans: Sequence[SpanModel], session: bytes) -> None:
        self.spans, self.session = spans, session
        self.lengths: dict[int, int] = {}
        self.steps: list[tuple[bytes, bytes]] = []

    @property
    def can_rollback(self) -> bool:
        return all(span.can_rollback for span in self.spans)

    def begin(self, rows: Sequence[Rows], operations: Sequence[Any]) -> Callable[[], list[bytes]]:
        outputs = [self._run(row) for row in rows]
        return lambda: outputs

    def _run(self, row: Rows) -> bytes:
        start = self.lengths.get(row.sequence, 0)
        count = len(row.hidden) // (self.spans[0].hidden_size * self.spans[0].dtype.itemsize)
        output = through(self.spans, [Segment((self.session, row.sequence), start, count, row.places)], row.hidden)
        self.lengths[row.sequence] = start + count
        self.steps.append((row.hidden, output))
        return output[len(output) * (count - row.want) // count :]

    def close(self) -> None:
        """The spans are thrown away as a whole."""


def through(spans: Sequence[SpanModel], segments: Sequence[Segment], hidden: bytes) -> bytes:
    """Hidden states through all spans in order."""
    for span in spans:
        hidden = bytes(compute(span, span.span, segments, hidden))
    return hidden


def cuts(blocks: int, joined: Sequence[Span] = ()) -> list[Span]:
    """Three spans of different lengths; fewer where some blocks must stay together."""
    free = [place for place in range(1, blocks) if not is_inside(place, joined)]
    wanted = [min(free, key=lambda place: abs(place - at)) for at in (blocks // 3, blocks // 2) if free]
    return [Span(first, last) for first, last in itertools.pairwise(sorted({0, *wanted, blocks}))]


def examine(folder: Path) -> Outcome:
    """Cut the model in `folder` and compare it with its reference. Never raises: the outcome says what happened."""
    name = folder.name
    impossible = folder / "impossible.txt"
    if impossible.exists():
        reason = REASONS.get(name) or reason_to_refuse(CONFIG_MAPPING[name]())
        return Outcome(name, *(("refused", reason) if reason else ("impossible", impossible.read_text("utf-8"))))
    spans = list[SpanModel]()
    found = outcome_of(name, lambda: _kept(spans, _examined(folder)))
    return replace(found, trained=how_trained(folder, spans)) if found.kind in EXACT else found


def _kept(spans: list[SpanModel], found: Sequence[SpanModel]) -> Sequence[SpanModel]:
    spans[:] = found
    return found


def how_trained(folder: Path, spans: Sequence[SpanModel]) -> str:
    """What comes of a step of training through these spans: `LoRA`, or `inputs` where nothing has plain linear layers,
    if gradients are those of the whole model, and how far off they are where that is a little; else why not."""
    untrained = folder / "untrained.txt"
    if untrained.exists():
        return f"not tried: {untrained.read_text('utf-8')}"
    layers = json.loads((folder / "layers.json").read_text("utf-8"))
    ids = load_file(folder / "reference.safetensors")
    client = Client(folder, spans, trains=True)
    try:
        found = Learning(client.model, layers).gradients(together([ids["a.ids"], ids["b.ids"]]))
    except (UnsupportedModel, InvalidInput) as error:
        return f"refused: {error}"
    except Exception as error:  # whatever it is, the survey must show it
        return f"wrong: {' '.join(f'{type(error).__name__}: {error}'.split())}"
    saved = load_file(folder / "gradients.safetensors")
    right = {name: each for name, each in saved.items() if not name.startswith(APART)}
    return compared(found, right, {name: saved[APART + name] for name in right})


def _examined(folder: Path) -> Sequence[SpanModel]:
    model = describe(folder)
    spans = [load_span(folder, span, progress=False) for span in cuts(model.info.blocks, model.joined)]
    compare(folder, spans)
    return spans


def outcome_of(name: str, examined: Callable[[], Sequence[SpanModel]]) -> Outcome:
    """What comes of a comparison, which returns the spans that were exact. A type that is refused by a rule is tried
    as if there were none: it must not be exact."""
    try:
        return Outcome(name, *how_computed(examined()))
    except (UnsupportedModel, InvalidInput) as error:
        refused = Outcome(name, "refused", str(error))
    except Exception as error:  # whatever it is, the survey must show it
        return Outcome(name, "wrong", " ".join(f"{type(error).__name__}: {error}".split()))
    if CANNOT in refused.why:
        with mock.patch(f"{reason_to_refuse.__module__}.reason_to_refuse", lambda config: None):
            try:
                examined()
            except Exception:  # in whichever way it shows
                return refused
        return Outcome(name, "wrong", f"exact, and refused: {refused.why}")
    return refused


def how_computed(spans: Sequence[SpanModel]) -> tuple[str, str]:
    """The kind of outcome of spans that are exact, and why it is not the best."""
    why = next((span.proven.why_unbatched for span in spans if not span.proven.batched), "")
    stacked = all(span.proven.batched or span.proven.stacked for span in spans)
    return ("stacked" if stacked else "unbatched") if why else "batched", why


@torch.inference_mode()
def compare(folder: Path, spans: Sequence[SpanModel]) -> None:
    """Prefill, prefill in chunks, decode, two sessions in one row, rollback. Raises Wrong, UnsupportedModel."""
    reference = load_file(folder / "reference.safetensors")
    client = Client(folder, spans)
    whole, _ = client.run(b"whole", reference["a.ids"], (20,))
    expect("prefill", whole, reference["a.logits"][:, :20])
    steps = {}
    for name in "ab":
        logits, recorder = client.run(name.encode(), reference[f"{name}.ids"], CHUNKS)
        expect("prefill in chunks and decode", logits, reference[f"{name}.logits"][:, : logits.shape[1]])
        steps[name] = recorder.steps
    _together(spans, steps["a"], steps["b"])
    if all(span.can_rollback for span in spans):
        _back(spans, steps["a"])


class Client:
    """The client's part of a model, whose blocks are spans in this process."""

    def __init__(self, folder: Path, spans: Sequence[SpanModel], *, trains: bool = False) -> None:
        self.model, _ = load_ends(folder, progress=False)
        self.spans = spans
        self.recorder: Recorder | None = None
        self._session = b""
        through = SpansTraining(spans) if trains else None
        remote = RemoteSpan(self._open, returns_tuple=returns_tuple(self.model), training_through=through)
        blocks = range(spans[-1].span.last) if trains else ()
        rearrange(self.model, [remote], [0], hollow_blocks(self.model.config, blocks, torch.float32))

    def _open(self) -> Recorder:
        self.recorder = Recorder(self.spans, self._session)
        return self.recorder

    def run(self, session: bytes, ids: torch.Tensor, chunks: Sequence[int]) -> tuple[torch.Tensor, Recorder]:
        """Logits `[1, T, vocabulary]` of the token ids `[1, T]`, given chunk by chunk."""
        self._session = session
        model: PreTrainedModel = self.model
        # Models that have nothing but states call their cache otherwise.
        takes = inspect.signature(type(model).forward).parameters
        name = "past_key_values" if "past_key_values" in takes else "cache_params"
        cache, outputs, begin = None, [], 0
        for count in chunks:
            if begin + count > ids.shape[1]:
                break
            output: Any = model(input_ids=ids[:, begin : begin + count], use_cache=True, **{name: cache})
            cache, begin = output[name], begin + count
            outputs.append(output.logits.float())
        if self.recorder is None:
            raise UnsupportedModel("its blocks are not called")
        return torch.cat(outputs, dim=1), self.recorder


def _together(spans: Sequence[SpanModel], one: list[tuple[bytes, bytes]], other: list[tuple[bytes, bytes]]) -> None:
    """Two sessions step by step in one row get what each got alone."""
    row = spans[0].hidden_size * spans[0].dtype.itemsize
    starts = [0, 0]
    for pair in zip(one, other, strict=False):
        counts = [len(step[0]) // row for step in pair]
        segments = [Segment((b"pair", i), starts[i], counts[i]) for i in (0, 1)]
        got = through(spans, segments, pair[0][0] + pair[1][0])
        expect("two sessions in one row", _numbers(got), _numbers(pair[0][1] + pair[1][1]))
        starts = [start + count for start, count in zip(starts, counts, strict=True)]


def _back(spans: Sequence[SpanModel], steps: list[tuple[bytes, bytes]]) -> None:
    """What follows a rollback is as if it had never been otherwise."""
    row = spans[0].hidden_size * spans[0].dtype.itemsize
    sequence, start = (b"pair", 0), len(steps[0][0]) // row
    for span in spans:
        span.truncate(sequence, start)
    hidden, right = steps[1]
    got = through(spans, [Segment(sequence, start, len(hidden) // row)], hidden)
    expect("after a rollback", _numbers(got), _numbers(right))


def _numbers(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def expect(what: str, got: torch.Tensor, right: torch.Tensor) -> None:
    """Raises Wrong when they differ."""
    difference = float((got - right).abs().max() / right.abs().max())
    if not difference <= TOLERANCE:
        raise Wrong(f"{what}: differs by {difference:.2g} of the largest value")
