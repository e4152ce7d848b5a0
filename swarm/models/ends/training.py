"""Gradients through remote blocks: one step of torch's autograd, whose forward and backward are computed by servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from swarm.errors import InvalidInput
from swarm.models.lora import Pair, Place, added, encode
from swarm.types import Span


class RemoteTraining(Protocol):
    """Computes whole sequences through the remote blocks, and their gradients."""

    def forward(
        self, sequences: Sequence[bytes], matrices: Callable[[Span], bytes], seed: int, first: int | None
    ) -> Any:
        """What becomes of each, as `outputs` of what is given. `matrices`: the file of an adapter for some blocks;
        `seed`: of what it drops, 0 for nothing; `first`: as `backward` will be asked."""

    def backward(self, passed: Any, gradients: Sequence[bytes], first: int | None) -> Any:
        """From the gradients of the outputs: `inputs`, those of each sequence's inputs, unless only the adapter's
        from block `first` on are wanted, and `adapters`, files with parts of those."""


def through(
    training: RemoteTraining,
    hidden: torch.Tensor,
    real: torch.Tensor,
    dtype: torch.dtype | None,
    pairs: Mapping[Place, Pair],
) -> torch.Tensor:
    """`hidden` `[batch, T, hidden_size]` through the remote blocks, to the same, with gradients; `real` `[batch, T]`
    says what is no padding, of which nothing comes back. `dtype`: what servers compute in, where that is another;
    `pairs`: what is added beside linear layers.

    Raises InvalidInput for float16, and what the servers' side raises.
    """
    dtype = dtype or hidden.dtype
    if dtype == torch.float16:
        raise InvalidInput("float16: gradients overflow in it; load the model in float32 or bfloat16 to train")
    matrices = [matrix for pair in pairs.values() for matrix in (pair.a, pair.b)]
    output: torch.Tensor = _Through.apply(_Way(training, real, dtype, pairs), hidden, *matrices)  # type: ignore[no-untyped-call]
    return output


def files_of(pairs: Mapping[Place, Pair]) -> Callable[[Span], bytes]:
    """The pairs as they are now, as a file for each span that is asked for; empty where there are none."""
    now = {place: replace(pair, a=pair.a.detach().clone(), b=pair.b.detach().clone()) for place, pair in pairs.items()}

    def on(span: Span) -> bytes:
        here = {place: pair for place, pair in now.items() if place.block in span}
        return encode(here) if here else b""

    return on


class _Way:
    """One pass, there and back."""

    def __init__(
        self, training: RemoteTraining, real: torch.Tensor, dtype: torch.dtype, pairs: Mapping[Place, Pair]
    ) -> None:
        self._training = training
        self._dtype = dtype
        self._real = real
        self._places = list(pairs)
        self._dropouts = [pair.dropout for pair in pairs.values()]
        self._filled = [row for row in range(real.shape[0]) if bool(real[row].any())]
        self._passed: Any = None

    def forward(self, hidden: torch.Tensor, matrices: Sequence[torch.Tensor], needed: Sequence[bool]) -> torch.Tensor:
        """`[batch, T, hidden_size]` → the same. `needed`: as in `backward`."""
        found = zip(self._places, matrices[::2], matrices[1::2], self._dropouts, strict=True)
        pairs = {place: Pair(a, b, dropout=dropout) for place, a, b, dropout in found}
        # Of the caller's own numbers, so that a seed makes the same run again.
        seed = int(torch.randint(1, 1 << 62, ())) if any(self._dropouts) else 0
        self._passed = self._training.forward(self._rows(hidden), files_of(pairs), seed, self._first(needed))
        return self._batch(self._passed.outputs, hidden)

    def backward(self, gradient: torch.Tensor, needed: Sequence[bool]) -> list[torch.Tensor | None]:
        """Of the outputs → of the inputs `[batch, T, hidden_size]` and all matrices, as far as they are `needed`."""
        rows = gradient[self._real.to(gradient.device)]
        if not bool(torch.isfinite(rows).all()):
            raise InvalidInput("the loss gives gradients that are not finite: no server is asked to go on with them")
        found = self._training.backward(self._passed, self._rows(gradient), self._first(needed))
        sums = added(found.adapters)
        of_matrices = list[torch.Tensor | None]()
        for place in self._places:
            of_matrices += (sums[place].a, sums[place].b) if place in sums else (None, None)
        return [self._batch(found.inputs, gradient) if needed[0] else None, *of_matrices]

    def _first(self, needed: Sequence[bool]) -> int | None:
        """The first block of which gradients are `needed`; None: those of the inputs are."""
        pairs = zip(self._places, needed[1::2], needed[2::2], strict=True)
        return None if needed[0] else min(place.block for place, a, b in pairs if a or b)

    def _rows(self, batch: torch.Tensor) -> list[bytes]:
        """What is no padding of each row that has anything."""
        plain = batch.detach().to("cpu", self._dtype)
        return [plain[i, self._real[i]].contiguous().view(torch.uint8).numpy().tobytes() for i in self._filled]

    def _batch(self, rows: Sequence[bytes], like: torch.Tensor) -> torch.Tensor:
        result = torch.zeros(like.shape, dtype=self._dtype)
        for index, row in zip(self._filled, rows, strict=True):
            numbers = torch.frombuffer(bytearray(row), dtype=self._dtype)
            result[index, self._real[index]] = numbers.view(-1, like.shape[2])
        return result.to(like.device, like.dtype)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: _Way, hidden: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
        ctx.way = way
        return way.forward(hidden, matrices, ctx.needs_input_grad[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.way.backward(gradient, ctx.needs_input_grad[1:])
