"""Reading a checkpoint into a model: weights onto grids one by one, the rest for the library; or out of kept blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from swarm.config import SCHEMES
from swarm.models.blocks import find_blocks
from swarm.models.linear.experts import put_experts, put_experts_on_grids
from swarm.models.linear.grid import Grid, GridDigest
from swarm.models.linear.packed import laid_out
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.loading import fingerprint
from swarm.models.loading.block_cache import BlockCache, BlockWriter, Damaged, KeptBlock, drop
from swarm.models.loading.block_parts import BlockParts
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.ends_plan import EndsFiles, EndsPlan
from swarm.models.loading.form import Form, decoder_config, model_class
from swarm.models.loading.partial import assemble, partial_class
from swarm.models.loading.places import Places
from swarm.models.loading.source import BlockSource, Wanted, fingerprint_of, opened
from swarm.models.loading.stored_ends import StoredEnds

T = TypeVar("T")


class Reading:
    """A checkpoint being read, with a progress bar; and what of it each block was made of.

    `with_experts`: the blocks that are whole in memory before a scheme puts their experts on its grid. `keep`: a folder
    of other blocks, which are read there, and kept there; `source`: where those may come from that are not
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
        self._tensors, places = checkpoint.tensors, Places(checkpoint.tensors.names(), outline)
        self.wanted = places.by_name
        direct = {place.name: name for name, place in self.wanted.items() if place.direct}
        self._ends = None if plan is None else StoredEnds(checkpoint, outline, direct, self.wanted, dtype, plan)
        buffers = {name for name, _ in outline.named_buffers()}
        self._around = {name for name, place in self.wanted.items() if place.name in buffers}
        """What the way to the blocks keeps beside parameters, as some rotary embeddings do: a span has it, too."""
        self._parts = BlockParts(self._tensors, outline, places, quantization)
        inside = self._parts.inside
        # In an order that is everybody's: so files of blocks are the same, too.
        self._order = sorted({*(name for name in self.wanted if name not in inside), *inside.values()})
        self.with_experts = self._parts.whole
        cached = sorted(set(self._parts.present) - set(self.with_experts)) if keep is not None else []
        cache = BlockCache(keep, checkpoint.key, SCHEMES[quantization]) if keep is not None and cached else None
        self._kept = self._opened(cache, cached)
        if source is not None:
            rest = sorted(set(self._parts.present) - set(cached))
            wanted = [self._wish(cache, block) for block in cached if cache and block not in self._kept]
            source.fetch(wanted, rest)
            self._kept |= self._opened(cache, [each.block for each in wanted])
        self._fetch(progress)
        self._writers = {
            block: writer
            for block in cached
            if cache and block not in self._kept
            if (writer := cache.begin(block, self._parts.stored(block)))
        }
        self.begun: frozenset[str] = frozenset()
        """The names of a new head's parameters, which the checkpoint has not."""
        self._prints: dict[int, list[bytes]] = defaultdict(list)
        total = sum(map(self._bytes, self._order))
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
        around = self._order if ends else [name for name in self._order if name in self._around]
        chosen = {name for name in around if self._block(name) is None}
        names = [name for name in self._order if name in chosen or self._block(name) in blocks]
        weights = {name: self._parts.weights[name] for name in names if name in self._parts.weights}
        config, form = self._checkpoint.config, self._checkpoint.form
        partial = partial_class(model_class(config, form), blocks, ends, weights.values())
        stand_ins = self._ends.stand_ins() if ends and self._ends else {}
        plain = {name: self.dense(name) for name in names if name not in weights and name not in stand_ins}
        how: dict[str, Any] = {"dtype": self._dtype, "name": self._checkpoint.name}
        how["new_head"] = ends and form is Form.CLASSES
        model, begun = assemble(partial, decoder_config(config, form), plain | stand_ins, **how)
        self.begun |= begun
        del plain
        if self._ends is not None and stand_ins:
            self._ends.put(model)
            self._bar.update(sum(map(self._bytes, stand_ins)))
        for name, place in weights.items():
            self._put(model, name, place)
        for block in blocks.intersection(self.with_experts):
            put_experts_on_grids(find_blocks(model).layers[block], self._quantization)
        return model

    def _opened(self, cache: BlockCache | None, blocks: Sequence[int]) -> dict[int, KeptBlock]:
        """Those of the blocks that are kept."""
        kinds = {block: {name: part.on_grid for name, part in self._parts.of(block).items()} for block in blocks}
        return {block: found for block in blocks if cache and (found := cache.open(block, kinds[block]))}

    def _wish(self, cache: BlockCache, block: int) -> Wanted:
        """What somebody must know who may have a block."""
        parts, made_of = self._parts, cache.made_of(block)
        return Wanted(
            block,
            cache.path(block),
            parts.most(block),
            lambda path: fingerprint_of(opened(path, made_of), block, parts.of(block)),
            lambda path: parts.compare(opened(path, made_of), block),
        )

    def _bytes(self, name: str) -> int:
        """To be read of a tensor or a weight; those of a block that is kept count as nothing."""
        return 0 if self._block(name) in self._kept else self._parts.nbytes(name)

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
        return self._parts.block(name)

    def dense(self, name: str) -> torch.Tensor:
        """A tensor as it is, or off its grid."""
        read = self._kept_or(name, lambda kept: _unchanged(kept, name), lambda: self._tensors.read(name))
        if (writer := self._writer(name)) is not None:
            if isinstance(read, Grid):
                writer.part(name, read, read.out_features)
                writer.whole(name, read.digest())
            else:
                writer.plain(name, read)
        self._note(name, lambda block: fingerprint.of_tensor(name, block, read))
        return read.dense(self._dtype) if isinstance(read, Grid) else read

    def _put(self, model: PreTrainedModel, name: str, place: str) -> None:
        """Read a weight onto its grid, and the layer into the model, or the experts."""
        parent, _, child = place.removesuffix(".weight").rpartition(".")
        owner, experts = model.get_submodule(parent), self._parts.experts(name)
        if experts is not None:
            layers, found = self._weight(name, self._layers, experts.shape.count)
            put_experts(owner, child, layers)
        else:
            outputs = self._parts.of(self._block_in(name))[name].shape[0]
            weight, found = self._weight(name, lambda grids: laid_out(grids, outputs))
            setattr(owner, child, QuantizedLinear(weight, getattr(owner, child).bias, self._dtype).checked())
        self._note(name, lambda block: fingerprint.of_grid(name, block, found))

    def _layers(self, grids: Iterable[Grid]) -> list[QuantizedLinear]:
        return [QuantizedLinear(grid, dtype=self._dtype) for grid in grids]

    def _weight(self, name: str, make: Callable[[Iterable[Grid]], T], experts: int = 1) -> tuple[T, bytes]:
        """What is made of a weight as it comes, out of the kept block or the checkpoint, and its digest."""

        def kept(block: KeptBlock) -> tuple[T, bytes]:
            digest = GridDigest()
            made = make(_seen(block.parts(name, experts), digest))
            block.check(name, digest.digest())
            return made, digest.digest()

        def read() -> tuple[T, bytes]:
            digest, writer = GridDigest(), self._writer(name)
            made = make(self._written(name, _seen(self._parts.grids(name), digest)))
            if writer is not None:
                writer.whole(name, digest.digest())
            return made, digest.digest()

        return self._kept_or(name, kept, read)

    def _written(self, name: str, grids: Iterable[Grid]) -> Iterator[Grid]:
        """The same, kept on the way where the block is."""
        writer, outputs = self._writer(name), self._parts.of(self._block_in(name))[name].shape[0]
        for grid in grids:
            if writer is not None:
                writer.part(name, grid, outputs)
            yield grid

    def _block_in(self, name: str) -> int:
        block = self._block(name)
        assert block is not None
        return block

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


def _unchanged(kept: KeptBlock, name: str) -> torch.Tensor | Grid:
    """A tensor that is on no grid in the model; it may be on one where it is kept. Raises Damaged."""
    if not kept.names()[name]:
        return kept.plain(name)
    grid = kept.rows(name, slice(None))
    kept.check(name, grid.digest())
    return grid
