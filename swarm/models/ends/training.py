"""Gradients through remote blocks: one step of torch's autograd, whose forward and backward are computed by servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from swarm.errors import InvalidInput


class Passed(Protocol):
    """A pass that went forward."""

    @property
    def outputs(self) -> Sequence[bytes]:
        """Of each sequence."""


class RemoteTraining(Protocol):
    """Computes whole sequences through the remote blocks, and their gradients."""

    def forward(self, sequences: Sequence[bytes]) -> Any:
        """What becomes of each, as a `Passed`."""

    def backward(self, passed: Any, gradients: Sequence[bytes]) -> list[bytes]:
        """Gradients of each sequence's inputs, from those of its outputs."""


def through(
    training: RemoteTraining, hidden: torch.Tensor, real: torch.Tensor, dtype: torch.dtype | None
) -> torch.Tensor:
    """`hidden` `[batch, T, hidden_size]` through the remote blocks, to the same, with gradients; `real` `[batch, T]`
    says what is no padding, of which nothing comes back. `dtype`: what servers compute in, where that is another.

    Raises InvalidInput for float16, and what the servers' side raises.
    """
    if (dtype or hidden.dtype) == torch.float16:
        raise InvalidInput("float16: gradients overflow in it; load the model in float32 or bfloat16 to train")
    output: torch.Tensor = _Through.apply(_Way(training, real, dtype or hidden.dtype), hidden)  # type: ignore[no-untyped-call]
    return output


class _Way:
    """One pass, there and back."""

    def __init__(self, training: RemoteTraining, real: torch.Tensor, dtype: torch.dtype) -> None:
        self._training = training
        self._dtype = dtype
        self._real = real
        self._filled = [row for row in range(real.shape[0]) if bool(real[row].any())]
        self._passed: Any = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[batch, T, hidden_size]` → the same."""
        self._passed = self._training.forward(self._rows(hidden))
        return self._batch(self._passed.outputs, hidden)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Of the outputs → of the inputs, `[batch, T, hidden_size]`."""
        rows = gradient[self._real.to(gradient.device)]
        if not bool(torch.isfinite(rows).all()):
            raise InvalidInput("the loss gives gradients that are not finite: no server is asked to go on with them")
        return self._batch(self._training.backward(self._passed, self._rows(gradient)), gradient)

    def _rows(self, batch: torch.Tensor) -> list[bytes]:
        """What is no padding of each row that has anything."""
        plain = batch.detach().to("cpu", self._dtype)
        return [plain[i, self._real[i]].contiguous().view(torch.uint8).numpy().tobytes() for i in self._filled]

    def _batch(self, rows: Sequence[bytes], like: torch.Tensor) -> torch.Tensor:
        result = torch.zeros(like.shape, dtype=self._dtype)
        for index, row in zip(self._filled, rows, strict=True):
            result[index, self._real[index]] = torch.frombuffer(bytearray(row), dtype=self._dtype).view(
                -1, like.shape[2]
            )
        return result.to(like.device, like.dtype)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: _Way, hidden: torch.Tensor) -> torch.Tensor:
        ctx.way = way
        return way.forward(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ctx.way.backward(gradient)
