"""A span of a model: its own decoder blocks, driven by its own code, with everything before and after them taken out.

No architecture has code of its own here. The library's base model is run with `inputs_embeds` over a slice of its
layers; whatever it does to its inputs before the first layer, or to the outputs after the last, belongs to the
client and is neutralised. Checks at load, on the real configuration, say whether that worked (else `UnsupportedModel`)
and whether several sequences may share one forward pass (else each runs by itself, with the library's own mask and
cache).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from swarm.errors import UnsupportedModel
from swarm.models import ragged
from swarm.models.kv import SequenceCache
from swarm.models.trunk import Trunk
from swarm.types import Segment, SequenceKey, Span

log = logging.getLogger(__name__)

Buffer = bytes | memoryview

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference, relative to the largest value, that two orders of the same computation may show."""

LINEAR_STATE = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "ssm", "moe_mamba")
REGIMES = ("longrope", "dynamic")
"""Rotary embeddings that change for the whole row once any position passes a threshold."""


class SpanModel:
    """The blocks of a span, and the KV caches of all sequences on them. One thread only.

    `model`: a causal LM whose layers are those of `span` and nothing else is used of; `dtype`: of compute and of
    hidden states as bytes. Raises UnsupportedModel.
    """

    def __init__(self, model: PreTrainedModel, span: Span, fingerprints: Sequence[bytes] = ()) -> None:
        self.span = span
        self.fingerprints = tuple(fingerprints)
        self.on_block: Callable[[], None] | None = None
        self._trunk = Trunk(model, span)
        self.hidden_size = self._trunk.hidden_size
        self.dtype = self._trunk.dtype
        self.row_bytes = self.hidden_size * self.dtype.itemsize
        self.device = self._trunk.device
        config = self._trunk.config
        self.can_rollback = not _has_linear_state(config)
        self.max_positions = _max_positions(config)
        self._caches: dict[SequenceKey, SequenceCache] = {}
        self._alone: dict[SequenceKey, DynamicCache] = {}
        self._kv_bytes: dict[int, int] = {}
        self.batched = False
        self.why_unbatched = ""
        self._check()
        self._trunk.after_each_layer(self._beat)

    # ---- computing --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        """Compute T rows of hidden states through the blocks of `span`, a part of the hosted span.

        `hidden`: T = sum of the segments' counts rows of `hidden_size` numbers of `dtype`, as bytes; returns the
        same shape. Each segment must begin where its sequence ends. Raises ValueError when it does not.
        """
        self._check_segments(segments)
        self._trunk.narrow(span)
        rows = torch.frombuffer(bytearray(hidden), dtype=self.dtype).view(1, -1, self.hidden_size).to(self.device)
        output = self._forward_batched(segments, rows) if self.batched else self._forward_alone(segments, rows)
        return output.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().data

    def _check_segments(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            held = self.length(segment.sequence)
            if held != segment.start:
                raise ValueError(f"{segment} does not continue a sequence of {held} positions")

    def length(self, sequence: SequenceKey) -> int:
        """Positions held of a sequence; 0 if it is unknown."""
        if self.batched:
            cache = self._caches.get(sequence)
            return cache.length if cache is not None else 0
        alone = self._alone.get(sequence)
        return int(alone.get_seq_length()) if alone is not None else 0

    def _forward_batched(self, segments: Sequence[Segment], rows: torch.Tensor) -> torch.Tensor:
        lanes = [ragged.Lane(s.start, s.count, self._caches.setdefault(s.sequence, SequenceCache())) for s in segments]
        output, _ = self._run_row(lanes, rows)
        return output

    def _run_row(self, lanes: list[ragged.Lane], rows: torch.Tensor) -> tuple[torch.Tensor, dict[int, int]]:
        """One forward pass over all lanes; also returns how often attention was called, by block."""
        row = ragged.Row(lanes, {})
        token = ragged.current_row.set(row)
        try:
            mask = torch.ones(1, rows.shape[1], dtype=torch.long, device=rows.device)
            output = self._trunk.run(rows, _positions(lanes, rows.device), attention_mask=mask, use_cache=False)
        finally:
            ragged.current_row.reset(token)
        return output, row.calls

    def _forward_alone(self, segments: Sequence[Segment], rows: torch.Tensor) -> torch.Tensor:
        outputs, begin = [], 0
        for segment in segments:
            cache = self._alone.get(segment.sequence)
            if cache is None:
                cache = self._alone[segment.sequence] = self._new_cache()
            outputs.append(self._run_alone(cache, segment.start, rows[:, begin : begin + segment.count]))
            begin += segment.count
        return torch.cat(outputs, dim=1)

    def _run_alone(self, cache: DynamicCache, start: int, rows: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(start, start + rows.shape[1], device=rows.device).unsqueeze(0)
        return self._trunk.run(rows, positions, past_key_values=cache, use_cache=True)

    def _new_cache(self) -> DynamicCache:
        # Without a configuration every layer keeps all positions, also those beyond a window: it can roll back.
        return DynamicCache() if self.can_rollback else DynamicCache(config=self._trunk.config)

    def _beat(self) -> None:
        if self.on_block is not None:
            self.on_block()

    # ---- sequences --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        """`target` begins as a copy of the first `length` positions of `source`."""
        if self.batched:
            self._caches[target] = self._caches[source].fork(length)
        else:
            self._alone[target] = copy.deepcopy(self._alone[source])
            self.truncate(target, length)

    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        """`source` goes on as `target`, with its first `length` positions."""
        caches: dict[SequenceKey, Any] = self._caches if self.batched else self._alone
        caches[target] = caches.pop(source)
        self.truncate(target, length)

    @torch.inference_mode()
    def truncate(self, sequence: SequenceKey, length: int) -> None:
        """Forget positions from `length` on. Raises UnsupportedModel where the blocks cannot roll back."""
        held = self.length(sequence)
        if length <= 0:
            self.free(sequence)
        elif self.batched and sequence in self._caches:
            self._caches[sequence].truncate(length)
        elif length < held:
            if not self.can_rollback:
                raise UnsupportedModel("blocks with a running state cannot forget single positions")
            self._alone[sequence].crop(length - held)

    def free(self, sequence: SequenceKey) -> None:
        """Forget a sequence; unknown ones are ignored."""
        self._caches.pop(sequence, None)
        self._alone.pop(sequence, None)

    def bytes_held(self) -> int:
        """Bytes of all KV caches, with the room that they have grown into."""
        return sum(c.nbytes for c in self._caches.values()) + sum(map(_cache_bytes, self._alone.values()))

    def bytes_per_token(self, span: Span) -> int:
        """Bytes of KV cache that one position takes in the blocks of `span`."""
        return sum(self._kv_bytes[block] for block in span)

    # ---- checks at load ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _check(self) -> None:
        """Identity without layers; then whether strangers can share a row. Raises UnsupportedModel."""
        self._trunk.check_identity()
        generator = torch.Generator().manual_seed(0)
        strangers = [
            torch.randn(1, count, self.hidden_size, generator=generator).to(self.device, self.dtype) for count in (5, 4)
        ]
        alone = [self._alone_in_two_steps(rows) for rows in strangers]
        if not self.can_rollback:
            self.why_unbatched = "its blocks carry a running state"
            return
        try:
            self._check_batched(strangers, alone)
            self.batched = True
        except Exception as error:
            self.why_unbatched = str(error) or type(error).__name__
            self._trunk.use_own_attention()
            log.info("every sequence runs by itself: %s", self.why_unbatched)

    def _alone_in_two_steps(self, rows: torch.Tensor) -> torch.Tensor:
        """A prefill of all but one position, then one decode step, with the library's own mask and cache."""
        cache = self._new_cache()
        head = self._run_alone(cache, 0, rows[:, :-1])
        tail = self._run_alone(cache, rows.shape[1] - 1, rows[:, -1:])
        self._kv_bytes = _kv_bytes(cache, self.span, rows.shape[1])
        return torch.cat([head, tail], dim=1)

    def _check_batched(self, strangers: list[torch.Tensor], alone: list[torch.Tensor]) -> None:
        """Raises Unbatchable (or whatever the model raises) unless a shared row gives what each gets alone."""
        self._trunk.use_ragged_attention()
        caches = [SequenceCache() for _ in strangers]
        counts = [rows.shape[1] - 1 for rows in strangers]
        lanes = [ragged.Lane(0, count, cache) for count, cache in zip(counts, caches, strict=True)]
        head, calls = self._run_row(lanes, torch.cat([rows[:, :-1] for rows in strangers], dim=1))
        if calls != dict.fromkeys(range(len(self.span)), 1):
            raise ragged.Unbatchable("its blocks do not call the attention interface exactly once each")
        lanes = [ragged.Lane(count, 1, cache) for count, cache in zip(counts, caches, strict=True)]
        tail, _ = self._run_row(lanes, torch.cat([rows[:, -1:] for rows in strangers], dim=1))
        for index, (part, right) in enumerate(zip(torch.split(head, counts, dim=1), alone, strict=True)):
            if not self._close(torch.cat([part, tail[:, index : index + 1]], dim=1), right):
                raise ragged.Unbatchable("strangers in one row do not get what each gets alone")

    def _close(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        difference = (one.float() - other.float()).abs().max()
        return bool(difference <= TOLERANCE.get(self.dtype, 1e-4) * other.float().abs().max())


def _positions(lanes: Sequence[ragged.Lane], device: torch.device) -> torch.Tensor:
    """`[1, T]`: each lane's own absolute positions."""
    if len(lanes) == 1:
        return torch.arange(lanes[0].start, lanes[0].start + lanes[0].count, device=device).unsqueeze(0)
    positions = [position for lane in lanes for position in range(lane.start, lane.start + lane.count)]
    return torch.tensor([positions], device=device)


def _has_linear_state(config: Any) -> bool:
    types = getattr(config, "layer_types", None) or ()
    return any(kind in LINEAR_STATE for kind in types)


def _max_positions(config: Any) -> int | None:
    """The context length; with rotary embeddings that change their regime, where the first regime ends.

    Beyond it the library computes the whole row anew with other frequencies, which chunks and caches cannot follow.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    length = getattr(config, "max_position_embeddings", None)
    for parameters in nested:
        if parameters.get("rope_type") in REGIMES:
            first = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            length = min(filter(None, (first, length)), default=None)
    return length


def _kv_bytes(cache: DynamicCache, span: Span, positions: int) -> dict[int, int]:
    """Bytes a position, by block, measured on a cache that holds `positions`."""
    sizes = [_layer_bytes(layer) // positions for layer in cache.layers]
    sizes += [0] * (len(span) - len(sizes))
    return dict(zip(span, sizes, strict=False))


def _cache_bytes(cache: DynamicCache) -> int:
    return sum(map(_layer_bytes, cache.layers))


def _layer_bytes(layer: Any) -> int:
    tensors: list[Any] = []
    for value in vars(layer).values():
        tensors += list(value) if isinstance(value, list | tuple) else [value]
    return sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))
