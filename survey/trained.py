"""Gradients of what goes into the blocks, and of LoRA beside their linear layers: of the whole model by plain autograd
and peft, and of a model that is cut into spans."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy

from swarm.jobs import Activations, Afresh, Backward
from swarm.models.span.model import SpanModel
from swarm.types import Adapter, Span

TOLERANCE = 1e-5
"""Largest difference of a gradient, relative to it, both as norms, in float32."""
NOISE = 1e-4
"""Of the largest gradient: one that is smaller is compared with this."""
INPUTS = "inputs"
RANK = 2
ROOM = 1 << 30
"""Bytes for activations; of every other span none are kept."""


def linear_layers(model: nn.Module) -> list[str]:
    """The names of plain linear layers that are in a numbered module."""
    return [name for name, module in model.named_modules() if type(module) is nn.Linear and re.search(r"\.\d+\.", name)]


def gradients(model: Any, ids: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Of the loss of `ids` `[batch, T]`, by name: of LoRA beside `layers`, which is put there, and of the embeddings
    `[batch, T, size]`."""
    shift: list[torch.Tensor] = []

    def shifted(module: nn.Module, given: Any, embedded: torch.Tensor) -> torch.Tensor:
        if embedded.shape[:2] != ids.shape:
            return embedded
        shift.append(torch.zeros_like(embedded, requires_grad=True))
        return embedded + shift[-1]

    model.get_input_embeddings().register_forward_hook(shifted)
    model.requires_grad_(False)
    learning = _lora(model, layers) if layers else {}
    made = model(input_ids=ids, use_cache=False).logits.float()
    loss: Any = cross_entropy(made[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    found = {name: parameter.grad for name, parameter in learning.items()}
    found[INPUTS] = shift[-1].grad if shift else None
    return {name: gradient.contiguous() for name, gradient in found.items() if gradient is not None}


def _lora(model: Any, layers: Sequence[str]) -> dict[str, nn.Parameter]:
    get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(layers)))
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in learning.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return learning


def difference(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> str | None:
    """What is not the same of two sets of gradients; None: nothing."""
    if missing := sorted(right.keys() ^ found.keys()):
        return f"gradients of {missing[0]} and {len(missing) - 1} others are on one side only"
    least = NOISE * max(float(each.norm()) for each in right.values())
    apart = {name: float((found[name] - each).norm()) / max(float(each.norm()), least) for name, each in right.items()}
    worst = max(apart, key=lambda name: apart[name])
    return f"the gradient of {worst} differs by {apart[worst]:.1g} of it" if not apart[worst] <= TOLERANCE else None


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """A pass that went forward: what went into each span, and what is kept of it."""

    outputs: Sequence[bytes]
    counts: Sequence[int]
    inputs: Sequence[Any]
    kept: Sequence[Activations | None]
    adapters: Sequence[Adapter | None]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Gradients, as the client's side gives them."""

    inputs: Sequence[bytes]
    adapters: Sequence[bytes]


class SpansTraining:
    """Passes through spans in this process, one after another."""

    def __init__(self, spans: Sequence[SpanModel]) -> None:
        self.spans = spans

    def forward(
        self, sequences: Sequence[bytes], matrices: Callable[[Span], bytes], seed: int, first: int | None
    ) -> Passed:
        """What becomes of whole sequences."""
        row_bytes = self.spans[0].hidden_size * self.spans[0].dtype.itemsize
        counts = [len(each) // row_bytes for each in sequences]
        hidden: Any = self.spans[0].put(memoryview(b"".join(sequences)), sum(counts))
        inputs, kept, adapters = list[Any](), list[Activations | None](), list[Adapter | None]()
        for index, span in enumerate(self.spans):
            file = matrices(span.span)
            adapters.append(Adapter(file, file) if file else None)
            inputs.append(hidden)
            room = 0 if index % 2 else ROOM
            made = span.run(Afresh(span.span, counts, hidden, adapters[-1], seed, room))
            hidden, activations = made if room else (made, None)
            kept.append(activations)
        return Passed(_cut(bytes(self.spans[-1].get(hidden)), counts, row_bytes), counts, inputs, kept, adapters)

    def backward(self, passed: Passed, gradients: Sequence[bytes], first: int | None) -> Found:
        """Gradients of the inputs, and of all matrices."""
        row_bytes = self.spans[0].hidden_size * self.spans[0].dtype.itemsize
        rows: Any = self.spans[-1].put(memoryview(b"".join(gradients)), sum(passed.counts))
        files = list[bytes]()
        for index, span in reversed(list(enumerate(self.spans))):
            job = Backward(
                span.span,
                passed.counts,
                passed.inputs[index],
                rows,
                passed.adapters[index],
                room=ROOM,
                activations=passed.kept[index],
            )
            rows = span.run(job)
            if job.adapter is not None:
                rows, file = rows
                files.append(file)
        return Found(_cut(bytes(self.spans[0].get(rows)), passed.counts, row_bytes), files)


def _cut(rows: bytes, counts: Iterable[int], row_bytes: int) -> list[bytes]:
    parts, begin = list[bytes](), 0
    for count in counts:
        parts.append(rows[begin : begin + count * row_bytes])
        begin += count * row_bytes
    return parts
