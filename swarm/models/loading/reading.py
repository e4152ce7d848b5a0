"""Which tensors of a checkpoint go where in a model, and reading them: onto grids one by one, or for the library."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from swarm.config import FILE, SCHEMES
from swarm.contract import UNQUANTIZED
from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.blocks import find_blocks
from swarm.models.linear.experts import expert_weights, is_of_experts, put_experts, put_experts_on_grids
from swarm.models.linear.grid import Grid, GridDigest, as_dense
from swarm.models.linear.packed import Packed, laid_out
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.linear.schemes import BITS, can_quantize, quantized
from swarm.models.loading import fingerprint
from swarm.models.loading.block_cache import BlockCache, BlockWriter, Damaged, KeptBlock, drop, header_bound
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.ends_plan import EndsFiles, EndsPlan
from swarm.models.loading.form import Form, decoder_config, model_class
from swarm.models.loading.partial import Absent, assemble, partial_class
from swarm.models.loading.source import BlockSource, Wanted, fingerprint_of, opened
from swarm.models.loading.stored_ends import StoredEnds
from swarm.models.loading.tensors import Tensors

T = TypeVar("T")

SAMPLED = 2
"""Outputs of each weight of a block from elsewhere that are compared with the checkpoint."""
PER_NUMBER = 1.25
"""Bytes that a number on a grid of ours takes at most, with its share of scales and minima."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the checkpoint goes: its (first) name in the model, and whether it goes there as it is."""

    name: str
    direct: bool


def _wanted(names: Iterable[str], outline: PreTrainedModel) -> dict[str, _Place]:
    """For each tensor of the checkpoint that the outline has a place for: where."""
    places: dict[str, Any] = dict(outline.state_dict())
    transforms = get_model_conversion_mapping(outline)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    prefix = outline.base_model_prefix
    wanted = {}
    for name in names:
        place, converter = rename_source_key(name, renamings, converters, prefix, places)
        if place not in places and name in places:
            place, converter = name, None
        if place in places:
            wanted[name] = _Place(place, converter is None)
    return wanted


def _on_grids(
    outline: PreTrainedModel, wanted: Mapping[str, _Place], prefix: str, tensors: Tensors, quantization: str
) -> dict[str, str]:
    """The weights that are put on a grid as they are read, by their names in the checkpoint: their names in the model.

    Those of plain linear layers of blocks that the checkpoint has as they are.
    """
    found = {}
    for name, place in wanted.items():
        if not place.direct or _block_of(place.name, prefix) is None:
            continue
        owner, _, kind = place.name.rpartition(".")
        module = outline.get_submodule(owner)
        if type(module) is nn.Linear and kind == "weight":
            fits = tensors.on_grid(name) if quantization == FILE else can_quantize(module.in_features)
        else:
            fits = quantization == FILE and is_of_experts(module, kind) and tensors.experts(name) is not None
        if fits:
            found[name] = place.name
    return found


class Reading:
    """A checkpoint being read, with a progress bar; and what of it each block was made of.

    `with_experts`: the blocks that have weights of experts to be put on a grid. `keep`: a folder of other blocks that a
    scheme has put on its grid, which are read there, and kept there; `source`: where those may come from that are not
    there. `plan`: where embeddings and head are to be, by
    what there is of them; by default in memory. Raises UnsupportedModel where nothing of the blocks can be
    quantized, and what `plan` raises.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        outline: PreTrainedModel,
        dtype: torch.dtype,
        quantization: str,
        progress: bool,
        keep: Path | None = None,
        plan: Callable[[EndsFiles], EndsPlan] | None = None,
        source: BlockSource | None = None,
    ) -> None:
        self._checkpoint, self._dtype, self._quantization = checkpoint, dtype, quantization
        self._tensors, blocks = checkpoint.tensors, find_blocks(outline)
        self._prefix = blocks.prefix
        self.wanted = _wanted(self._tensors.names(), outline)
        places = {place.name: name for name, place in self.wanted.items() if place.direct}
        self._ends = None if plan is None else StoredEnds(checkpoint, outline, places, self.wanted, dtype, plan)
        quantized = quantization != UNQUANTIZED
        self._layers = _on_grids(outline, self.wanted, blocks.prefix, self._tensors, quantization) if quantized else {}
        present = {index: layer for index, layer in enumerate(blocks.layers) if not isinstance(layer, Absent)}
        by_scheme = quantization in BITS
        self.with_experts = [index for index, layer in present.items() if by_scheme and expert_weights(layer)]
        if by_scheme and present and not self._layers and not self.with_experts:
            raise UnsupportedModel(f"its blocks have no plain linear layers that {quantization} could be used for")
        cached = sorted(present.keys() - set(self.with_experts)) if by_scheme and keep is not None else []
        cache = BlockCache(keep, checkpoint.key, SCHEMES[quantization]) if keep is not None and cached else None
        self._kept = self._opened(cache, cached)
        if source is not None:
            rest = sorted(present.keys() - set(cached))
            wanted = [self._wish(cache, block) for block in cached if cache and block not in self._kept]
            source.fetch(wanted, rest)
            self._kept |= self._opened(cache, [each.block for each in wanted])
        self._fetch(progress)
        self._writers = {
            block: writer
            for block in cached
            if cache and block not in self._kept
            if (writer := cache.begin(block, {name: self._tensors.nbytes(name) for name in self._of(block)}))
        }
        self.begun: frozenset[str] = frozenset()
        """The names of a new head's parameters, which the checkpoint has not."""
        self._prints: dict[int, list[bytes]] = defaultdict(list)
        total = sum(self._bytes(name) for name in self.wanted)
        title = f"{checkpoint.name}: tensors"
        self._bar: tqdm[Any] = tqdm(
            total=total, desc=title, unit="B", unit_scale=True, disable=not progress, leave=False
        )

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._bar.close()
        for writer in self._writers.values():
            if kind is None:
                writer.finish()
            else:
                writer.abandon()

    def assemble(self, blocks: frozenset[int], ends: bool) -> PreTrainedModel:
        """A model that has these blocks and, with `ends`, what is no block."""
        names = [
            name for name in self.wanted if (self._block(name) in blocks if self._block(name) is not None else ends)
        ]
        layers = {name: self._layers[name] for name in names if name in self._layers}
        config, form = self._checkpoint.config, self._checkpoint.form
        partial = partial_class(model_class(config, form), blocks, ends, layers.values())
        stand_ins = self._ends.stand_ins() if ends and self._ends else {}
        plain = {name: self.dense(name) for name in names if name not in layers and name not in stand_ins}
        how: dict[str, Any] = {"dtype": self._dtype, "name": self._checkpoint.name}
        how["new_head"] = ends and form is Form.CLASSES
        model, begun = assemble(partial, decoder_config(config, form), plain | stand_ins, **how)
        self.begun |= begun
        del plain
        if self._ends is not None and stand_ins:
            self._ends.put(model)
            self._bar.update(sum(map(self._bytes, stand_ins)))
        for name, place in layers.items():
            self._put(model, name, place)
        for block in blocks.intersection(self.with_experts):
            put_experts_on_grids(find_blocks(model).layers[block], self._quantization)
        return model

    def _of(self, block: int) -> dict[str, bool]:
        """The tensors of a block, and whether each is put on a grid."""
        return {name: name in self._layers for name in self.wanted if self._block(name) == block}

    def _opened(self, cache: BlockCache | None, blocks: Sequence[int]) -> dict[int, KeptBlock]:
        """Those of the blocks that are kept."""
        return {block: found for block in blocks if cache and (found := cache.open(block, self._of(block)))}

    def _wish(self, cache: BlockCache, block: int) -> Wanted:
        """What somebody must know who may have a block."""
        names, made_of = self._of(block), cache.made_of(block)
        shapes = {name: (self._tensors.shape(name), on_grid) for name, on_grid in names.items()}
        sizes = (
            PER_NUMBER * prod(shape) if on_grid else self._tensors.nbytes(name)
            for name, (shape, on_grid) in shapes.items()
        )
        return Wanted(
            block,
            cache.path(block),
            header_bound(names) + int(sum(sizes)),
            lambda path: fingerprint_of(opened(path, made_of), block, shapes),
            lambda path: self._compare(opened(path, made_of), names),
        )

    def _compare(self, kept: KeptBlock, names: Mapping[str, bool]) -> None:
        """Whether a block was made of this checkpoint, at places that nobody knows before: all that is on no grid, and
        some outputs of what is. Raises Damaged, and what reading the checkpoint raises."""
        for name, on_grid in names.items():
            if not on_grid:
                ours, theirs = self._tensors.read(name), kept.plain(name)
                if isinstance(ours, Grid) or ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
                    raise Damaged(f"{name} is not the checkpoint's")
                continue
            outputs, inputs = self._tensors.shape(name)
            for at in random.SystemRandom().sample(range(outputs), min(SAMPLED, outputs)):
                row = as_dense(self._tensors.read(name, slice(at, at + 1)))
                (ours,) = quantized(lambda _, row=row: row, (1, inputs), self._quantization)  # type: ignore[misc]
                if ours.digest() != kept.rows(name, slice(at, at + 1)).digest():
                    raise Damaged(f"{name} was not made of the checkpoint's")

    def _bytes(self, name: str) -> int:
        """To be read of a tensor; those of a block that is kept count as nothing."""
        return 0 if self._block(name) in self._kept else self._tensors.nbytes(name)

    def _fetch(self, progress: bool) -> None:
        """Have on this machine what is to be read, block by block."""
        parts: dict[str, list[str]] = defaultdict(list)
        elsewhere = self._ends.elsewhere if self._ends is not None else frozenset()
        for name in self.wanted:
            block = self._block(name)
            if block in self._kept or name in elsewhere:
                continue
            parts["ends" if block is None else f"block {block}"].append(name)
        self._checkpoint.fetch(parts, progress)

    def _block(self, name: str) -> int | None:
        return _block_of(self.wanted[name].name, self._prefix)

    def dense(self, name: str) -> torch.Tensor:
        """A tensor as it is, or off its grid."""
        read = self._kept_or(name, lambda kept: kept.plain(name), lambda: self._tensors.read(name))
        if (writer := self._writer(name)) is not None:
            if isinstance(read, Grid):
                writer.abandon()
            else:
                writer.plain(name, read)
        self._note(name, lambda block: fingerprint.of_tensor(name, block, read))
        return read.dense(self._dtype) if isinstance(read, Grid) else read

    def _put(self, model: PreTrainedModel, name: str, place: str) -> None:
        """Read a weight onto its grid, and the layer into the model."""
        parent, _, child = place.removesuffix(".weight").rpartition(".")
        owner, experts = model.get_submodule(parent), self._tensors.experts(name)
        if experts is not None and is_of_experts(owner, child):
            digest = GridDigest()
            put_experts(owner, child, (QuantizedLinear(grid, dtype=self._dtype) for grid in _seen(experts, digest)))
            found = digest.digest()
        else:
            weight, found = self._kept_or(name, lambda kept: _lay_out_kept(kept, name), lambda: self._lay_out(name))
            setattr(owner, child, QuantizedLinear(weight, getattr(owner, child).bias, self._dtype).checked())
        self._note(name, lambda block: fingerprint.of_grid(name, block, found))

    def _lay_out(self, name: str) -> tuple[Packed | Grid, bytes]:
        """A weight out of the checkpoint, and its digest."""
        outputs, digest, writer = self._tensors.shape(name)[0], GridDigest(), self._writer(name)

        def kept(parts: Iterable[Grid]) -> Iterator[Grid]:
            for part in parts:
                if writer is not None:
                    writer.part(name, part, outputs)
                yield part

        weight = laid_out(kept(_seen(self._parts(name), digest)), outputs)
        if writer is not None:
            writer.whole(name, digest.digest())
        return weight, digest.digest()

    def _writer(self, name: str) -> BlockWriter | None:
        block = self._block(name)
        return None if block is None else self._writers.get(block)

    def _kept_or(self, name: str, kept: Callable[[KeptBlock], T], read: Callable[[], T]) -> T:
        """Out of the block that is kept, or out of the checkpoint; from where it is damaged on out of that."""
        block = self._block(name)
        found = None if block is None else self._kept.get(block)
        if block is not None and found is not None:
            try:
                return kept(found)
            except Damaged as error:
                drop(found.path, error)
                del self._kept[block]
        return read()

    def _parts(self, name: str) -> Iterable[Grid]:
        """A weight on its grid, some outputs after others."""
        if self._quantization != FILE:
            outputs, inputs = self._tensors.shape(name)
            return quantized(
                lambda rows: as_dense(self._tensors.read(name, rows)), (outputs, inputs), self._quantization
            )
        read = self._tensors.read(name)
        if not isinstance(read, Grid):
            raise BadCheckpoint(f"{name} is not on a grid")
        return [read]

    def _note(self, name: str, digest: Callable[[int], bytes]) -> None:
        self._bar.update(self._bytes(name))
        block = self._block(name)
        if block is not None:
            self._prints[block].append(digest(block))

    @property
    def ends(self) -> StoredEnds | None:
        """Embeddings and head."""
        return self._ends

    def fingerprints(self) -> dict[int, bytes]:
        """sha256 of the tensors of each block."""
        return {block: fingerprint.of_block(parts) for block, parts in self._prints.items()}


def _seen(parts: Iterable[Grid], digest: GridDigest) -> Iterator[Grid]:
    for part in parts:
        digest.add(part)
        yield part


def _lay_out_kept(kept: KeptBlock, name: str) -> tuple[Packed | Grid, bytes]:
    digest = GridDigest()
    weight = laid_out(_seen(kept.parts(name), digest), kept.outputs(name))
    kept.check(name, digest.digest())
    return weight, digest.digest()


def _block_of(place: str, prefix: str) -> int | None:
    """The block that a tensor of the model belongs to."""
    if not place.startswith(prefix):
        return None
    return int(place.removeprefix(prefix).split(".", 1)[0])
