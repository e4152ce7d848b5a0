"""The embeddings and the head of a checkpoint, which need not be read into memory as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from swarm.config import DISK, FILE, MEMORY, REMOTE
from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.linear.elsewhere import RemoteHead, RemoteTable
from swarm.models.linear.grid import Grid, as_dense
from swarm.models.linear.head import QuantizedHead
from swarm.models.linear.packed import laid_out
from swarm.models.linear.schemes import CHUNK, ROWS, quantized
from swarm.models.linear.unread import UnreadWeight, unread
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.ends_plan import EndsFiles, EndsPlan, Matrix
from swarm.models.loading.on_disk import OnDisk


class StoredEnds:
    """Of a model with that outline; `places`: tensors that are parameters as they are, by the parameters' names;
    `read`: all tensors that are; `plan` says where the ends are to be. Raises what that raises.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        outline: PreTrainedModel,
        places: Mapping[str, str],
        read: Iterable[str],
        dtype: torch.dtype,
        plan: Callable[[EndsFiles], EndsPlan],
    ) -> None:
        self._checkpoint, self._tensors, self._dtype = checkpoint, checkpoint.tensors, dtype
        table: Any = outline.get_input_embeddings()
        head: Any = outline.get_output_embeddings()  # type: ignore[no-untyped-call]
        owners = {id(module): f"{name}.weight" for name, module in outline.named_modules()}
        is_plain = isinstance(table, nn.Embedding), type(head) is nn.Linear
        ends, keys = [owners.get(id(each), "") for each in (table, head)], outline.all_tied_weights_keys
        tied = all(is_plain) and (keys.get(ends[1]) == ends[0] or keys.get(ends[0]) == ends[1])
        found = [places.get(place) if plain else None for place, plain in zip(ends, is_plain, strict=True)]
        if tied:
            found = [found[0] or found[1], found[1] or found[0]]
        self._table, self._head = (
            name if name is not None and self._tensors.shape(name) == tuple(owner.weight.shape) else None
            for name, owner in zip(found, (table, head), strict=True)
        )
        others = sum(prod(self._tensors.shape(name)) for name in read if name not in (self._table, self._head))
        self.plan = plan(EndsFiles(checkpoint.name, self._matrix(self._table), self._matrix(self._head), tied, others))

    def _matrix(self, name: str | None) -> Matrix | None:
        if name is None:
            return None
        rows, columns = self._tensors.shape(name)
        return Matrix(rows, columns, self._tensors.nbytes(name), self._tensors.on_grid(name))

    @property
    def elsewhere(self) -> frozenset[str]:
        """Tensors that nothing is read of here."""
        return frozenset(name for name, place in self._places().items() if place == REMOTE)

    def _places(self) -> dict[str, str]:
        """Where each tensor is to be; one that is both, where the embeddings are."""
        places = {self._head: self.plan.head, self._table: self.plan.embeddings}
        return {name: place for name, place in places.items() if name is not None}

    def fingerprint(self) -> bytes:
        """sha256 of the numbers of head and embeddings. Raises UnsupportedModel where one of them is no plain matrix,
        and what reading raises."""
        if self._head is None or self._table is None:
            raise UnsupportedModel(f"the ends of {self._checkpoint.name} are no plain matrices")
        found = hashlib.sha256()
        for name in dict.fromkeys((self._head, self._table)):
            shape = rows, columns = self._tensors.shape(name)
            many = max(1, CHUNK // columns // ROWS) * ROWS
            digest = hashlib.sha256()
            for first in range(0, rows, many):
                part = as_dense(self._tensors.read(name, slice(first, min(first + many, rows))))
                digest.update(f"{part.dtype} ".encode() if first == 0 else b"")
                digest.update(part.contiguous().view(torch.uint8).numpy().data)
            found.update(f"{list(shape)} ".encode() + digest.digest())
        return found.digest()

    def stand_ins(self) -> dict[str, torch.Tensor]:
        """For each tensor that is not read into memory as it is, one of its shape that takes none. No two are alike:
        the library would take them for one."""
        names = [name for name, place in self._places().items() if place != MEMORY]
        return {
            name: torch.full((1, 1), float(number), dtype=self._dtype).expand(self._tensors.shape(name))
            for number, name in enumerate(names)
        }

    def put(self, model: Any) -> None:
        """In a model that has the stand-ins: the ends in their places."""
        table = model.get_input_embeddings()
        if self.plan.head == REMOTE and self._head is not None:
            rows, columns = self._tensors.shape(self._head)
            model.set_output_embeddings(RemoteHead(columns, rows, self._dtype))
        if self.plan.embeddings == DISK and self._table is not None:
            self._put_on_disk(model, table, self._table)
        elif self.plan.embeddings == REMOTE and self._table is not None:
            rows, columns = self._tensors.shape(self._table)
            _put_unread(model, table.weight, unread(RemoteTable((rows, columns), self._dtype)))
        if self.plan.head == REMOTE:
            return
        if self.plan.head == MEMORY or self._head is None:
            return
        head = model.get_output_embeddings()
        if self.plan.head != DISK:
            weight = laid_out(self._grids(self._head), self._tensors.shape(self._head)[0])
            model.set_output_embeddings(QuantizedHead(weight, head.bias, self._dtype).checked())
        elif not isinstance(head.weight, UnreadWeight):
            self._put_on_disk(model, head, self._head)

    def _put_on_disk(self, model: nn.Module, owner: Any, name: str) -> None:
        """In place of a parameter, wherever the model has it."""
        new = unread(OnDisk(self._tensors, name, self._dtype, self._checkpoint.watch(name)))
        _put_unread(model, owner.weight, new)

    def _grids(self, name: str) -> Iterator[Grid]:
        """A weight on the head's grid, some outputs after others."""
        outputs, inputs = self._tensors.shape(name)
        if self.plan.head != FILE:
            yield from quantized(
                lambda rows: as_dense(self._tensors.read(name, rows)), (outputs, inputs), self.plan.head
            )
            return
        many = max(1, CHUNK // inputs // ROWS) * ROWS
        for first in range(0, outputs, many):
            read = self._tensors.read(name, slice(first, min(first + many, outputs)))
            if not isinstance(read, Grid):
                raise BadCheckpoint(f"{name} is not on a grid")
            yield read


def _put_unread(model: nn.Module, old: Any, new: nn.Parameter) -> None:
    """In place of a parameter, wherever the model has it."""
    vars(new).update(vars(old))
    for module in model.modules():
        for kind, held in list(module.named_parameters(recurse=False)):
            if held is old:
                setattr(module, kind, new)
