"""Low-rank matrices beside linear layers of blocks (Hu et al., "LoRA", 2021), as they travel: a safetensors file.

Beside a layer `W` stand `A` `[rank, in_features]` and `B` `[out_features, rank]`: it gives `W x + B A x`. Any factor is
in `B` already. They are called `{block}.{path in the block}.A` and `.B`, where the block has its number in the model;
`.dropout` is one number, how likely each number of `x` is to be left out for `A` in a pass that has a seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from swarm.errors import InvalidInput

A, B, DROPOUT = ".A", ".B", ".dropout"
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Place:
    """A linear layer: of which block, and where in it."""

    block: int
    path: str

    def __str__(self) -> str:
        return f"{self.block}.{self.path}"


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """`a` `[rank, in_features]` and `b` `[out_features, rank]`. `mark`: another where these have changed; `dropout`:
    how likely each number is to be left out of what goes into `a`, while it is trained."""

    a: torch.Tensor
    b: torch.Tensor
    mark: tuple[object, ...] = ()
    dropout: float = 0.0


def encode(pairs: Mapping[Place, Pair]) -> bytes:
    """As a file; the same pairs give the same bytes."""
    named = sorted((str(place), pair) for place, pair in pairs.items())
    tensors = {name + A: pair.a.detach().cpu().contiguous() for name, pair in named}
    tensors |= {name + B: pair.b.detach().cpu().contiguous() for name, pair in named}
    tensors |= {name + DROPOUT: torch.tensor([pair.dropout]) for name, pair in named if pair.dropout}
    return save(tensors)


def added(files: Iterable[bytes]) -> dict[Place, Pair]:
    """The sums of the pairs in several files. Raises InvalidInput as `decode`, and for pairs of other shapes."""
    sums: dict[Place, Pair] = {}
    for file in files:
        for place, pair in decode(file, None).items():
            known = sums.get(place, pair)
            if (known.a.shape, known.b.shape) != (pair.a.shape, pair.b.shape):
                raise InvalidInput(f"matrices of {place} of several shapes")
            sums[place] = pair if known is pair else Pair(known.a + pair.a, known.b + pair.b)
    return sums


def check_gradients(matrices: bytes, found: bytes) -> None:
    """Raises InvalidInput where what is `found` are not gradients of the pairs in the file `matrices`: of other shapes,
    or with numbers that are not finite."""
    given, gradients = decode(matrices, None), decode(found, None)
    if given.keys() != gradients.keys():
        raise InvalidInput(f"gradients of {len(gradients)} layers, of {len(given)} that are asked")
    for place, pair in given.items():
        other = gradients[place]
        if (pair.a.shape, pair.b.shape) != (other.a.shape, other.b.shape):
            raise InvalidInput(f"gradients of {place} of other shapes than its matrices")


def decode(data: bytes | memoryview, blocks: Iterable[int] | None) -> dict[Place, Pair]:
    """The pairs in a file, all beside layers of `blocks` (None: of any).

    Raises InvalidInput for what is no such file, or holds no numbers.
    """
    try:
        tensors = load(bytes(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"an adapter of {len(data)} bytes is no safetensors file: {str(error)[:200]}") from error
    known, pairs = None if blocks is None else set(blocks), dict[Place, Pair]()
    for name in tensors:
        if name.endswith(DROPOUT) and name.removesuffix(DROPOUT) + A in tensors:
            continue
        layer, end = name[: -len(A)], name[-len(A) :]
        number, _, path = layer.partition(".")
        if end not in (A, B) or not number.isdecimal() or layer + A not in tensors or layer + B not in tensors:
            raise InvalidInput(f"an adapter with a tensor called {name[:100]!a}")
        if known is not None and int(number) not in known:
            raise InvalidInput(f"an adapter of block {number[:10]}, which is not among those that are asked")
        pair = _pair(layer, tensors[layer + A], tensors[layer + B])
        pairs[Place(int(number), path)] = replace(pair, dropout=_dropout(layer, tensors.get(layer + DROPOUT)))
    return pairs


def _dropout(layer: str, given: torch.Tensor | None) -> float:
    if given is None:
        return 0.0
    if given.numel() != 1 or not 0.0 <= float(given) < 1.0:
        raise InvalidInput(f"the dropout of {layer[:100]} is no number from 0 to below 1")
    return float(given)


def _pair(layer: str, a: torch.Tensor, b: torch.Tensor) -> Pair:
    fits = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] and a.dtype == b.dtype
    if not fits or a.dtype not in DTYPES:
        raise InvalidInput(
            f"the adapter of {layer[:100]} is {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}: [rank, in] "
            "and [out, rank], in float32 or bfloat16, are wanted"
        )
    if not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(b).all()):
        raise InvalidInput(f"the adapter of {layer[:100]} has numbers that are not finite")
    return Pair(a, b)
