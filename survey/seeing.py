"""Models of images and text, cut into spans, against the library's own whole model with an image.

    python -m survey.seeing FOLDER TYPE...

writes for each type a checkpoint and what plain transformers makes of an image and a text, as `survey.reference` does
for text; `examine_seeing` compares, in another process.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from survey.examine import Outcome, Recorder, Wrong, expect, outcome_of
from survey.images import build_seeing, question, seeing_config
from survey.reference import write_each
from swarm.models.blocks import find_blocks, leading_blocks
from swarm.models.ends.load import load_ends, returns_tuple
from swarm.models.ends.remote import RemoteSpan, rearrange
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.form import Form
from swarm.models.loading.refused import REASONS, reason_to_refuse
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.span import is_inside
from swarm.types import Span

NEW = 6
"""Tokens that are generated."""
WORDS = 160
"""Characters of what the library says."""
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": NEW,
    "eos_token_id": None,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}


@torch.inference_mode()
def write(folder: Path, model_type: str) -> None:
    """The checkpoint, an image with a text, and what the whole model says to them."""
    model = build_seeing(seeing_config(model_type))
    inputs = question(model)
    results = {f"in.{name}": value.contiguous() for name, value in inputs.items()} | spoken(model, inputs)
    model.save_pretrained(folder, max_shard_size="200KB")
    _, report = type(model).from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError("the library does not find its own tensors again")
    save_file({name: value.clone() for name, value in results.items()}, folder / "reference.safetensors")


@torch.inference_mode()
def spoken(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Logits of the question, and the answer with its logits."""
    logits = model(**inputs).logits
    answer = model.generate(**inputs, **GREEDY)
    return {"logits": logits, "answer": answer.sequences, "steps": torch.stack(answer.logits, dim=1)}


def seeing_client(folder: Path) -> tuple[Any, list[SpanModel]]:
    """The client's part of a model, whose other blocks are spans in this process."""
    checkpoint = open_checkpoint(folder).read_as(Form.SEEING)
    local = leading_blocks(checkpoint.config)
    model, _ = load_ends(checkpoint, local_blocks=local, progress=False)
    blocks, first = find_blocks(model), local.last if local is not None else 0
    places = [place for place in range(first + 1, blocks.total) if not is_inside(place, checkpoint.joined)]
    middle = min(places, key=lambda place: abs(2 * place - first - blocks.total), default=first)
    cuts = itertools.pairwise(sorted({first, middle, blocks.total}))
    spans = [load_span(folder, Span(*cut), progress=False) for cut in cuts]
    sessions = iter(range(1 << 20))
    remote = RemoteSpan(lambda: Recorder(spans, b"%d" % next(sessions)), returns_tuple=returns_tuple(model))
    rearrange(model, [*blocks.layers, remote], [*range(first), first])
    return model, spans


def examine_seeing(folder: Path) -> Outcome:
    """Cut the model in `folder` and compare it with its reference. Never raises: the outcome says what happened."""
    name = folder.name
    impossible = folder / "impossible.txt"
    if impossible.exists():
        reason = REASONS.get(name) or _refusal(name)
        return Outcome(name, *(("refused", reason) if reason else ("impossible", impossible.read_text("utf-8"))))
    return outcome_of(name, lambda: compare_seeing(folder))


def _refusal(name: str) -> str | None:
    try:
        return reason_to_refuse(CONFIG_MAPPING[name]())
    except Exception:  # some have no defaults, and say so in ways of their own
        return None


@torch.inference_mode()
def compare_seeing(folder: Path) -> Sequence[SpanModel]:
    """A question about an image, and the answer. Raises Wrong, UnsupportedModel."""
    reference = load_file(folder / "reference.safetensors")
    inputs = {name.removeprefix("in."): value for name, value in reference.items() if name.startswith("in.")}
    model, spans = seeing_client(folder)
    got = spoken(model, inputs)
    expect("a question about an image", got["logits"], reference["logits"])
    expect("each token of the answer", got["steps"], reference["steps"])
    if not torch.equal(got["answer"], reference["answer"]):
        raise Wrong("another answer")
    return spans


if __name__ == "__main__":
    write_each(sys.argv[1:], write, WORDS)
