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
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from torch import nn
from torch.nn.functional import cross_entropy

from swarm.jobs import Activations, Afresh, Backward
from swarm.models.span.model import SpanModel
from swarm.types import Adapter, Span

TOLERANCE = 1e-5
"""Largest difference of a gradient, relative to it, both as norms, in float32; or twice that between the whole model's
own and those computed text by text."""
NEAR = 1e-4
"""What is no further off is said with how far."""
FLOOR = 1e-4
"""Of the largest gradient: one that is smaller is compared with this."""
INPUTS, APART = "inputs", "apart."
RANK = 2
ROOM = 1 << 30
"""Bytes for activations; of every other span none are kept."""

Gradients = dict[str, torch.Tensor]


def linear_layers(model: nn.Module) -> list[str]:
    """The names of plain linear layers that are in a numbered module, as far as peft takes them for what they are.

    What is in a module of the name of one with experts in one tensor it takes for adapters of these.
    """
    experts = {name.split(".")[-3] for name, each in model.named_parameters() if each.ndim == 3 and name.count(".") > 2}
    named = [name for name, module in model.named_modules() if type(module) is nn.Linear and NUMBERED.search(name)]
    return [name for name in named if not experts & set(name.split(".")) and _is_taken(model, name)]


NUMBERED = re.compile(r"\.\d+\.")


def _is_taken(model: nn.Module, name: str) -> bool:
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return False
    return True


class Learning:
    """A model with LoRA beside `layers`, of which what is embedded is looked at, too."""

    def __init__(self, model: Any, layers: Sequence[str]) -> None:
        self.model = model
        self._shift: list[torch.Tensor] = []
        model.get_input_embeddings().register_forward_hook(self._shifted)
        model.requires_grad_(False)
        self._matrices = _lora(model, layers) if layers else {}

    def gradients(self, ids: torch.Tensor) -> Gradients:
        """Of the loss of `ids` `[batch, T]`, by name: of all matrices, and of what is embedded, `[batch, T, size]`."""
        self._shift.clear()
        self.model.zero_grad()
        made = self.model(input_ids=ids, use_cache=False).logits.float()
        loss: Any = cross_entropy(made[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        learning: dict[str, torch.Tensor] = dict(self._matrices)
        learning |= zip([INPUTS], self._shift[-1:], strict=False)
        # Of what nothing uses there is none, or zeros.
        found = {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in learning.items()}
        return {name: gradient.clone().contiguous() for name, gradient in found.items()}

    def one_by_one(self, ids: torch.Tensor) -> Gradients:
        """The same, computed text by text."""
        found = [self.gradients(text.unsqueeze(0)) for text in ids]
        means = {name: torch.stack([each[name] for each in found]).mean(dim=0) for name in self._matrices}
        inputs = [each[INPUTS] / len(found) for each in found if INPUTS in each]
        return means | ({INPUTS: torch.cat(inputs)} if inputs else {})

    def _shifted(self, module: nn.Module, given: Any, embedded: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() or embedded.ndim != 3:
            return embedded
        self._shift.append(torch.zeros_like(embedded, requires_grad=True))
        return embedded + self._shift[-1]


def _lora(model: Any, layers: Sequence[str]) -> dict[str, nn.Parameter]:
    get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(layers)))
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in learning.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return learning


def compared(found: Gradients, right: Gradients, again: Gradients) -> str:
    """What is said of gradients; `again`: what is right, computed otherwise."""
    if missing := sorted(right.keys() ^ found.keys()):
        return f"wrong: gradients of {missing[0]} and {len(missing) - 1} others are on one side only"
    least = FLOOR * max(float(each.norm()) for each in right.values())
    worst, which = 0.0, ""
    for name, each in right.items():
        size = max(float(each.norm()), least)
        apart, noise = float((found[name] - each).norm()) / size, float((again[name] - each).norm()) / size
        if not apart <= max(TOLERANCE, 2 * noise, worst):
            worst, which = apart, name
    if not worst <= NEAR:
        return f"wrong: the gradient of {which} differs by {worst:.1g} of it"
    kind = "LoRA" if len(right) > 1 else "inputs"
    return f"{kind}, within {worst:.1g}" if worst else kind


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
