"""A span of a model: its own decoder blocks, driven by its own code, with everything before and after them taken out.

No architecture has code of its own here. The library's base model is run with `inputs_embeds` over a slice of its
layers; whatever it does to its inputs before the first layer, or to the outputs after the last, belongs to the
client and is neutralised. Checks at load (`proof.py`) say whether that worked (else `UnsupportedModel`) and whether
several sequences may share one forward pass (else each runs by itself, with the library's own mask and cache).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from swarm.contract import together
from swarm.errors import Gap, InvalidInput, UnsupportedModel
from swarm.jobs import Afresh, Backward, Forward
from swarm.models.blocks import context_length, rotary_threshold
from swarm.models.loading.refused import refuse
from swarm.models.lora import Pair, Place, encode
from swarm.models.span.adapters import Adapters
from swarm.models.span.attention.base import Lane
from swarm.models.span.attention.ragged import RaggedAttention
from swarm.models.span.backward import BlockActivations, Sequences, gradients
from swarm.models.span.base_model import BaseModel
from swarm.models.span.kv.base import SequenceCache
from swarm.models.span.kv.cost import Cost
from swarm.models.span.kv.snapshots import APART, ROWS
from swarm.models.span.linear_layers import lay_out
from swarm.models.span.passes import Batched, Passes, Unbatched
from swarm.models.span.proof import prove
from swarm.models.span.stacked import Stacked
from swarm.span import parted
from swarm.types import Segment, SequenceKey, Span

Buffer = bytes | memoryview
PLACE_BYTES = 8
"""Of a number that says where a position stands, as it is computed with."""


class SpanModel:
    """The blocks of a span, and the KV caches of all sequences on them. One thread only.

    `model`: a causal LM with at least the blocks of `span`; it is taken apart. `joined`: runs of its blocks that must
    stay together. `dtype`: of compute and of hidden states as bytes; `proven`: what the checks at load found.
    Raises UnsupportedModel.
    """

    def __init__(
        self, model: PreTrainedModel, span: Span, fingerprints: Sequence[bytes] = (), joined: Sequence[Span] = ()
    ) -> None:
        refuse(model.config)
        self.span = span
        self.fingerprints = tuple(fingerprints)
        self.on_block: Callable[[], None] | None = None
        self._model = BaseModel(model, span)
        self.dtype = self._model.dtype
        self.device = self._model.device
        self.max_positions = context_length(self._model.config)
        self._caches: dict[SequenceKey, SequenceCache] = {}
        self._costs: dict[Span, Cost] = {}
        attention = RaggedAttention()
        self.proven = prove(self._model, attention, joined)
        self.hidden_size = self._model.hidden_size
        self.row_bytes = self.hidden_size * self.dtype.itemsize
        self._passes = self._choose_passes(attention)
        lay_out(self._model, self._passes)
        self._model.after_each_block(self._beat)
        self._adapters = Adapters(self._model.blocks, span.first)
        weights = [each for block in self._model.blocks for each in (*block.parameters(), *block.buffers())]
        self._weights = frozenset(each.untyped_storage().data_ptr() for each in weights if not each.is_mkldnn)

    def _choose_passes(self, attention: RaggedAttention) -> Passes[Any]:
        if self.proven.batched:
            return Batched(self._model, attention)
        return Stacked(self._model, attention) if self.proven.stacked else Unbatched(self._model)

    @property
    def can_rollback(self) -> bool:
        """Whether any positions can be forgotten, of any sequence."""
        return self.proven.can_rollback

    @property
    def rollback(self) -> int:
        """How many positions can be forgotten, where that is not so, of a sequence that is said to go back."""
        return APART if self.proven.stacked else 0

    # ---- computing --------------------------------------------------------------------------------------------

    def put(self, rows: Buffer, count: int) -> torch.Tensor:
        """`count` rows of `hidden_size` numbers of `dtype`, as bytes → `[count, hidden_size]` on the device.

        Raises InvalidInput where these are not the bytes of so many rows.
        """
        if len(rows) != count * self.row_bytes:
            raise InvalidInput(f"{len(rows)} bytes are not the hidden states of {count} positions")
        numbers = torch.frombuffer(bytearray(rows), dtype=self.dtype) if count else torch.empty(0, dtype=self.dtype)
        return numbers.view(count, self.hidden_size).to(self.device)

    def get(self, rows: torch.Tensor) -> memoryview:
        """`[T, hidden_size]` → the bytes of T rows."""
        return rows.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().data

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows one behind the other."""
        return torch.cat(list(parts))

    def run(self, job: Forward[torch.Tensor] | Afresh[torch.Tensor] | Backward[torch.Tensor]) -> Any:
        """T rows of hidden states (or of gradients) `[T, hidden_size]` through the blocks of a part of the hosted span,
        to as many; of the gradients of an adapter the file, too.

        Raises InvalidInput when a segment does not begin where its sequence ends, leaves the model's context, or does
        not have its rows; UnsupportedModel for gradients of blocks that have none.
        """
        self._check_span(job.span)
        if isinstance(job, Forward):
            return self._forward(job)
        slices = self.slices(job)
        while True:
            try:
                next(slices)
            except StopIteration as over:
                return over.value

    def slices(self, job: Afresh[torch.Tensor] | Backward[torch.Tensor]) -> Generator[None, None, Any]:
        """As `run`, block by block: between two blocks anything else may be run."""
        self._check_span(job.span)
        self._check_afresh(job)
        if isinstance(job, Afresh):
            return (yield from self._afresh(job, self._sequences(job)))
        self._check_rows(job.positions, job.gradients)
        if not bool(torch.isfinite(job.gradients).all()):
            raise InvalidInput("gradients that are not finite")
        found, pairs = yield from self._backward(job, self._sequences(job))
        return found if job.adapter is None else (found, encode(pairs))

    def _check_span(self, span: Span) -> None:
        if not self.span.covers(span):
            raise InvalidInput(f"blocks {span} are not all among {self.span}")
        if (run := parted(span, self.proven.joined)) is not None:
            raise InvalidInput(together(run))

    def _sequences(self, job: Afresh[torch.Tensor] | Backward[torch.Tensor]) -> Sequences:
        adapter = self._adapters.get(job.adapter)
        return Sequences(self._passes, self._model.narrow, job.counts, adapter, job.seed, self._weights)

    @staticmethod
    def _afresh(job: Afresh[torch.Tensor], sequences: Sequences) -> Generator[None, None, Any]:
        activations = BlockActivations(sequences, job.span, job.inputs, job.inputs_wanted or job.adapter is None)
        if job.room <= activations.nbytes_at_least:
            hidden = job.inputs
            for block in job.span:
                hidden = sequences.forward(block, hidden)
                yield
            return (hidden, None) if job.room else hidden
        yield from activations.build(job.room)
        return activations.outputs, activations if activations.useful else None

    @staticmethod
    def _backward(
        job: Backward[torch.Tensor], sequences: Sequences
    ) -> Generator[None, None, tuple[torch.Tensor, dict[Place, Pair]]]:
        wanted = job.inputs_wanted or job.adapter is None
        if isinstance(job.activations, BlockActivations) and job.activations.fit(sequences, job.span, wanted):
            return (yield from job.activations.consume(job.gradients, wanted))
        return (
            yield from gradients(sequences, job.span, job.inputs, job.gradients, inputs_wanted=wanted, room=job.room)
        )

    @torch.inference_mode()
    def _forward(self, job: Forward[torch.Tensor]) -> torch.Tensor:
        self._check_rows(job.positions, job.rows)
        self._check_segments(job.segments)
        self._model.narrow(job.span)
        lanes = [
            Lane(
                s.start,
                s.count,
                self._cache(s.sequence),
                self._places(s),
                self._adapters.get(s.adapter),
                rollback=s.rollback,
            )
            for s in job.segments
        ]
        return self._passes.run(lanes, job.rows.unsqueeze(0))[0]

    @property
    def trains(self) -> bool:
        """Whether gradients go through these blocks: in float16 they overflow."""
        return self.dtype != torch.float16 and not self.proven.tokens and not self.proven.joined

    def _check_afresh(self, job: Afresh[torch.Tensor] | Backward[torch.Tensor]) -> None:
        self._check_rows(job.positions, job.inputs)
        longest = max(job.counts, default=0)
        if self.max_positions is not None and longest > self.max_positions:
            raise InvalidInput(f"{longest} positions leave the model's context of {self.max_positions} positions")
        if (run := next((run for run in self.proven.joined if job.span.covers(run)), None)) is not None:
            raise UnsupportedModel(f"{together(run)}, and gradients flow through these alone")
        if self.proven.tokens:
            raise UnsupportedModel("blocks that look at tokens give no gradients")
        if self.dtype == torch.float16:
            raise UnsupportedModel(f"blocks in {self.dtype} give no gradients; host them in float32 or bfloat16")

    def check_adapter(self, data: bytes | memoryview) -> None:
        """Raises InvalidInput for the file of an adapter that does not fit these blocks. From any thread."""
        self._adapters.check(data)

    @staticmethod
    def _check_rows(positions: int, rows: torch.Tensor) -> None:
        if len(rows) != positions:
            raise InvalidInput(f"{len(rows)} rows are not the hidden states of {positions} positions")

    def _check_segments(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            held = self.length(segment.sequence)
            if held != segment.start:
                raise InvalidInput(f"{segment} does not continue a sequence of {held} positions")
            if self.max_positions is not None and segment.start + segment.count > self.max_positions:
                raise InvalidInput(f"{segment} leaves the model's context of {self.max_positions} positions")

    def _places(self, segment: Segment) -> torch.Tensor | None:
        """`[planes, count]`. Raises InvalidInput for places that these blocks do not take."""
        if not segment.places:
            return None
        numbers = torch.frombuffer(bytearray(segment.places), dtype=torch.int32)
        planes, rest = divmod(len(numbers), segment.count)
        if rest or planes > self.proven.places:
            raise InvalidInput(
                f"{segment.count} positions with {len(numbers)} places; {self.proven.places} each at most"
            )
        threshold = rotary_threshold(self._model.config)
        if threshold is not None and int(numbers.max()) >= threshold:
            raise InvalidInput(
                f"place {int(numbers.max())} is beyond {threshold}, where these rotary embeddings change"
            )
        return numbers.view(segment.count, planes).T.to(self.device, torch.long)

    def length(self, sequence: SequenceKey) -> int:
        """Positions held of a sequence; 0 if it is unknown."""
        cache = self._caches.get(sequence)
        return cache.length if cache is not None else 0

    def _cache(self, sequence: SequenceKey) -> SequenceCache:
        cache = self._caches.get(sequence)
        if cache is None:
            cache = self._caches[sequence] = self._passes.new_cache()
        return cache

    def _beat(self) -> None:
        if self.on_block is not None:
            self.on_block()

    # ---- sequences --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        """`target` begins as a copy of the first `length` positions of `source`.

        Raises InvalidInput for an unknown source, Gap where `truncate` would.
        """
        self._check_length(source, length)
        self._caches[target] = self._caches[source].fork(length)

    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        """`source` goes on as `target`, with its first `length` positions. Raises as `fork`."""
        self._check_length(source, length)
        self._caches[target] = self._caches.pop(source)
        self.truncate(target, length)

    @torch.inference_mode()
    def truncate(self, sequence: SequenceKey, length: int) -> None:
        """Forget positions from `length` on. Raises Gap where the sequence cannot go back so far."""
        if sequence not in self._caches:
            return
        self._check_length(sequence, length)
        if length <= 0:
            self.free(sequence)
        else:
            self._caches[sequence].truncate(length)

    def _check_length(self, sequence: SequenceKey, length: int) -> None:
        cache = self._caches.get(sequence)
        if cache is None:
            raise InvalidInput(f"there is no sequence {sequence[1]}")
        if 0 < length < min(cache.reach, cache.length):
            raise Gap(f"these blocks keep a running state: of {cache.length} positions {cache.reach} have to stay")

    def reach(self, sequence: SequenceKey) -> int:
        """The shortest length, beside 0, to which a sequence can go back now; 0 if it is unknown."""
        cache = self._caches.get(sequence)
        return 0 if cache is None else cache.reach

    def free(self, sequence: SequenceKey) -> None:
        """Forget a sequence; unknown ones are ignored."""
        self._caches.pop(sequence, None)

    def bytes_held(self) -> int:
        """Bytes of all KV caches, with the room that they have grown into."""
        return sum(cache.nbytes for cache in self._caches.values())

    def reserved_bytes(self, span: Span, length: int) -> int:
        """What a sequence of `length` positions in the blocks of `span` adds to `bytes_held`, at most."""
        cost = self._costs.get(span)
        if cost is None:
            first = self.span.first
            cost = self._costs[span] = Cost.together(self.proven.costs[span.first - first : span.last - first])
        return cost.of(length)

    def snapshot_bytes(self, span: Span) -> int:
        """What a sequence in the blocks of `span` adds at most beside, if it is said to go back."""
        first, widest = self.span.first, self.row_bytes + PLACE_BYTES * self.proven.places
        states = sum(self.proven.snapshots[span.first - first : span.last - first])
        return states + ROWS * widest if states else 0
