"""What the blocks of a checkpoint are made of as they are loaded: tensors as they are, and weights on grids."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from transformers import PreTrainedModel

from swarm.config import FILE
from swarm.contract import UNQUANTIZED
from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.blocks import find_blocks
from swarm.models.linear.experts import is_of_experts
from swarm.models.linear.grid import Grid, as_dense
from swarm.models.linear.schemes import BITS, can_quantize, quantized
from swarm.models.loading.block_cache import Damaged, KeptBlock, header_bound
from swarm.models.loading.expert_weights import Experts, Shape, Stored, by_scheme
from swarm.models.loading.partial import Absent
from swarm.models.loading.places import Places
from swarm.models.loading.tensors import Tensors

SAMPLED = 2
"""Outputs of each weight of a block from elsewhere that are compared with the checkpoint."""
LOOKED_AT = 64
"""Of a block's tensors and weights: where there are more, as many are drawn, as each is a question to the hub."""
SMALL = 1 << 16
"""Bytes of a tensor on no grid up to which all of it is compared."""
PER_NUMBER = 1.25
"""Bytes that a number on a grid of ours takes at most, with its share of scales and minima."""
PER_STORED = 2
"""The same for a byte of a checkpoint's own grid: scales may be stored in eight bits, or for several rows."""


@dataclass(frozen=True, slots=True)
class Part:
    """`shape`: of a tensor as it is; `[outputs, inputs]` of a weight on a grid, of several `experts` one below the
    other. `most`: bytes that it can have."""

    shape: tuple[int, ...]
    on_grid: bool
    most: int
    experts: int = 1


class BlockParts:
    """Of the blocks that an outline has. `places`: where the checkpoint's tensors go.

    `weights`: those that are read onto a grid one by one, and their places. They have the names of the checkpoint, but
    for experts that a scheme puts on its grid, which have the model's. `inside`: tensors that such are made of.
    `whole`: blocks with experts that cannot be read one by one.
    """

    def __init__(self, tensors: Tensors, outline: PreTrainedModel, places: Places, scheme: str) -> None:
        self._tensors, self._scheme = tensors, scheme
        blocks = find_blocks(outline)
        self._prefix, self._places = blocks.prefix, places.by_name
        self.present = [index for index, layer in enumerate(blocks.layers) if not isinstance(layer, Absent)]
        self.weights: dict[str, str] = {}
        self._experts: dict[str, Experts] = {}
        self.whole: list[int] = []
        if scheme != UNQUANTIZED:
            self._find_weights(outline)
        for index in self.present if scheme in BITS else ():
            layer = blocks.layers[index]
            if (found := by_scheme(layer, f"{self._prefix}{index}.", tensors, places, scheme)) is None:
                self.whole.append(index)
                continue
            self._experts |= found
            self.weights |= {place: place for place in found}
        if scheme in BITS and self.present and not self.weights and not self.whole:
            raise UnsupportedModel(f"its blocks have no plain linear layers that {scheme} could be used for")
        made = self._experts.items() if scheme in BITS else ()
        self.inside = {name: key for key, each in made for name in each.names}
        self._by_block: dict[int, dict[str, Part]] = {index: {} for index in self.present}
        for name in [*(name for name in places.by_name if name not in self.inside), *self._experts]:
            if (block := self.block(name)) is not None and block in self._by_block:
                self._by_block[block][name] = self._part(name)

    def _find_weights(self, outline: PreTrainedModel) -> None:
        """Those of plain linear layers of blocks that the checkpoint has as they are, and experts on its own grid."""
        for name, place in self._places.items():
            if not place.direct or self.block(name) is None:
                continue
            owner, _, kind = place.name.rpartition(".")
            module = outline.get_submodule(owner)
            own = self._scheme == FILE
            if type(module) is nn.Linear and kind == "weight":
                fits = self._tensors.on_grid(name) if own else can_quantize(module.in_features)
            else:
                fits = own and is_of_experts(module, kind) and self._tensors.experts(name) is not None
                if fits:
                    shape = Shape.of(module, self._tensors.shape(name))
                    self._experts[name] = Stored(self._tensors, name, shape)
            if fits:
                self.weights[name] = place.name

    def _part(self, name: str) -> Part:
        tensors, experts = self._tensors, self._experts.get(name)
        if experts is None and not (name in self.weights or tensors.on_grid(name)):
            return Part(tensors.shape(name), False, tensors.nbytes(name))
        tall = tensors.shape(name) if experts is None else experts.shape.tall
        ours = int(PER_NUMBER * prod(tall))
        stored = 0 if name not in self._places else PER_STORED * tensors.grid_nbytes(name)
        by_us = name in self.weights and self._scheme in BITS
        return Part(tuple(tall), True, ours if by_us else stored, 1 if experts is None else experts.shape.count)

    def block(self, name: str) -> int | None:
        """The block that a tensor, or a weight, belongs to."""
        there = self._places.get(name)
        return block_of(name if there is None else there.name, self._prefix)

    def of(self, block: int) -> Mapping[str, Part]:
        """All that a block has, by name."""
        return self._by_block[block]

    def experts(self, name: str) -> Experts | None:
        """Of a weight that has those of all experts."""
        return self._experts.get(name)

    def most(self, block: int) -> int:
        """Bytes that the file of a block can have."""
        parts = self.of(block)
        return header_bound(parts) + sum(part.most for part in parts.values())

    def stored(self, block: int) -> dict[str, int]:
        """Bytes that all that a block has takes in the checkpoint, by name."""
        return {name: self.nbytes(name) for name in self.of(block)}

    def nbytes(self, name: str) -> int:
        """To be read of the checkpoint for a tensor or a weight."""
        experts = self._experts.get(name)
        return sum(map(self._tensors.nbytes, [name] if experts is None else experts.names))

    def grids(self, name: str) -> Iterable[Grid]:
        """A weight out of the checkpoint: experts one after the other, others some outputs after others."""
        if (experts := self._experts.get(name)) is not None:
            return experts.grids()
        if self._scheme != FILE:
            outputs, inputs = self._tensors.shape(name)
            return quantized(lambda rows: as_dense(self._tensors.read(name, rows)), (outputs, inputs), self._scheme)
        read = self._tensors.read(name)
        if not isinstance(read, Grid):
            raise BadCheckpoint(f"{name} is not on a grid")
        return [read]

    # ---- blocks from elsewhere ---------------------------------------------------------------------------------

    def compare(self, kept: KeptBlock, block: int) -> None:
        """Whether a block was made of this checkpoint, at places that nobody knows before: `LOOKED_AT` of its tensors
        and weights, of these what is small, some outputs of what is large, and of experts one. Raises Damaged, and what
        reading the checkpoint raises."""
        parts = self.of(block)
        for name in random.SystemRandom().sample(sorted(parts), min(LOOKED_AT, len(parts))):
            part = parts[name]
            right = self._sample_on_grid(kept, name, part) if part.on_grid else self._sample_plain(kept, name, part)
            if not right:
                raise Damaged(f"{name} is not the checkpoint's")

    def _sample_plain(self, kept: KeptBlock, name: str, part: Part) -> bool:
        for some in _drawn(part.shape[0], SAMPLED) if part.shape and part.most > SMALL else [None]:
            ours = self._tensors.read(name, some)
            theirs = kept.plain(name) if some is None else kept.plain_rows(name, some)
            if isinstance(ours, Grid) or ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
                return False
        return True

    def _sample_on_grid(self, kept: KeptBlock, name: str, part: Part) -> bool:
        experts = self._experts.get(name)
        for some in _drawn(part.experts, 1) if experts is not None else _drawn(part.shape[0], SAMPLED):
            if experts is not None:
                (ours,), many = experts.grids(range(some.start, some.stop)), experts.shape.outputs
                some = slice(some.start * many, some.stop * many)
            else:
                ours = self._row(name, some)
            # Of some rows a checkpoint's grid may be written down otherwise: without minima, with narrower scales.
            if not torch.equal(ours.dense(), kept.rows(name, some).dense()):
                return False
        return True

    def _row(self, name: str, some: slice) -> Grid:
        read = self._tensors.read(name, some)
        if name in self.weights and self._scheme in BITS:
            row = as_dense(read)
            (read,) = quantized(lambda _: row, (1, row.shape[1]), self._scheme)
        if not isinstance(read, Grid):
            raise BadCheckpoint(f"{name} is not on a grid")
        return read


def _drawn(count: int, most: int) -> Iterator[slice]:
    """Single places out of so many."""
    for at in random.SystemRandom().sample(range(count), min(most, count)):
        yield slice(at, at + 1)


def block_of(place: str, prefix: str) -> int | None:
    """The block that a tensor of the model belongs to."""
    if not place.startswith(prefix):
        return None
    return int(place.removeprefix(prefix).split(".", 1)[0])
