"""A span of a model: its own decoder blocks, driven by its own code, with everything before and after them taken out.

No architecture has code of its own here. The library's base model is run with `inputs_embeds` over a slice of its
layers; whatever it does to its inputs before the first layer, or to the outputs after the last, belongs to the
client and is neutralised. Checks at load, on the real configuration, say whether that worked (else `UnsupportedModel`)
and whether several sequences may share one forward pass (else each runs by itself, with the library's own mask and
cache).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from swarm.errors import InvalidInput, UnsupportedModel
from swarm.models.blocks import context_length
from swarm.models.linear.int8 import INT8, NONE
from swarm.models.loading.refused import refuse
from swarm.models.span.attention import ragged
from swarm.models.span.base_model import Trunk
from swarm.models.span.kv.growing import SequenceCache
from swarm.models.span.kv.library import AloneCache
from swarm.types import Segment, SequenceKey, Span

log = logging.getLogger(__name__)

Buffer = bytes | memoryview
Cache = SequenceCache | AloneCache

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference, relative to the largest value, that two orders of the same computation may show."""
SMALLEST_ROW = 4
"""Rows of fewer positions are filled up on a CPU."""
INT8_ERROR = 0.25
"""How far from the plain blocks, as a share of their output's norm, those with 8-bit layers may be on random inputs."""
MOST = 0.6
"""Below float32 a tie between experts may turn out otherwise in another order: so many positions must agree."""
STRANGERS = (7, 6)
"""Positions of the two sequences of the checks at load."""
STEPS = 2
"""Positions of each step after the first: a mask of the wrong size goes unseen where a step has one position only."""


class SpanModel:
    """The blocks of a span, and the KV caches of all sequences on them. One thread only.

    `model`: a causal LM with at least the blocks of `span`; it is taken apart. `dtype`: of compute and of hidden
    states as bytes; `quantization`: none, or int8 for 8-bit linear layers. `batched`: whether several sequences share
    a forward pass, else `why_unbatched`. Raises UnsupportedModel.
    """

    def __init__(
        self, model: PreTrainedModel, span: Span, fingerprints: Sequence[bytes] = (), quantization: str = NONE
    ) -> None:
        self.span = span
        self.quantization = quantization
        self.fingerprints = tuple(fingerprints)
        self.on_block: Callable[[], None] | None = None
        refuse(model.config)
        self._trunk = Trunk(model, span)
        self.hidden_size = self._trunk.hidden_size
        self.dtype = self._trunk.dtype
        self.row_bytes = self.hidden_size * self.dtype.itemsize
        self.device = self._trunk.device
        self.max_positions = context_length(self._trunk.config)
        self._caches: dict[SequenceKey, Cache] = {}
        self._kv_bytes: dict[int, int] = {}
        self.can_rollback = True
        self.batched = False
        self.why_unbatched = ""
        self._check()
        self._trunk.after_each_layer(self._beat)

    # ---- computing --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        """Compute T rows of hidden states through the blocks of `span`, a part of the hosted span.

        `hidden`: T = sum of the segments' counts rows of `hidden_size` numbers of `dtype`, as bytes; returns the
        same shape. Raises InvalidInput when a segment does not begin where its sequence ends, leaves the model's
        context, or does not have its bytes.
        """
        self._check_segments(span, segments, len(hidden))
        self._trunk.narrow(span)
        rows = torch.frombuffer(bytearray(hidden), dtype=self.dtype).view(1, -1, self.hidden_size).to(self.device)
        output = self._forward_batched(segments, rows) if self.batched else self._forward_alone(segments, rows)
        return output.reshape(-1).cpu().contiguous().view(torch.uint8).numpy().data

    def _check_segments(self, span: Span, segments: Sequence[Segment], size: int) -> None:
        if not self.span.covers(span):
            raise InvalidInput(f"blocks {span} are not all among {self.span}")
        if size != sum(s.count for s in segments) * self.hidden_size * self.dtype.itemsize:
            raise InvalidInput(f"{size} bytes are not the hidden states of {[s.count for s in segments]} positions")
        for segment in segments:
            held = self.length(segment.sequence)
            if held != segment.start:
                raise InvalidInput(f"{segment} does not continue a sequence of {held} positions")
            if self.max_positions is not None and segment.start + segment.count > self.max_positions:
                raise InvalidInput(f"{segment} leaves the model's context of {self.max_positions} positions")

    def length(self, sequence: SequenceKey) -> int:
        """Positions held of a sequence; 0 if it is unknown."""
        cache = self._caches.get(sequence)
        return cache.length if cache is not None else 0

    def _forward_batched(self, segments: Sequence[Segment], rows: torch.Tensor) -> torch.Tensor:
        lanes = [ragged.Lane(s.start, s.count, self._ragged_cache(s.sequence)) for s in segments]
        count = rows.shape[1]
        if self.device.type == "cpu" and count < SMALLEST_ROW:
            # Matrix products of one to three rows take longer than of four; the rest of the row belongs to nobody.
            rows = torch.nn.functional.pad(rows, (0, 0, 0, SMALLEST_ROW - count))
            lanes.append(ragged.Lane(0, SMALLEST_ROW - count, SequenceCache()))
        output, _ = self._run_row(lanes, rows)
        return output[:, :count]

    def _ragged_cache(self, sequence: SequenceKey) -> SequenceCache:
        cache = self._caches.setdefault(sequence, SequenceCache())
        assert isinstance(cache, SequenceCache)
        return cache

    def _run_row(self, lanes: list[ragged.Lane], rows: torch.Tensor) -> tuple[torch.Tensor, dict[int, int]]:
        """One forward pass over all lanes; also returns how often attention was called, by block."""
        row = ragged.Row(lanes, {})
        token = ragged.current_row.set(row)
        try:
            mask = torch.ones(1, rows.shape[1], dtype=torch.long, device=rows.device)
            output = self._trunk.run(rows, _positions(lanes, rows.device), attention_mask=mask, use_cache=False)
        finally:
            ragged.current_row.reset(token)
        for lane in lanes:
            lane.cache.length = lane.start + lane.count
        return output, row.calls

    def _forward_alone(self, segments: Sequence[Segment], rows: torch.Tensor) -> torch.Tensor:
        outputs, begin = [], 0
        for segment in segments:
            cache = self._caches.setdefault(segment.sequence, AloneCache(self._trunk.config))
            assert isinstance(cache, AloneCache)
            outputs.append(self._run_alone(cache, rows[:, begin : begin + segment.count]))
            begin += segment.count
        return torch.cat(outputs, dim=1)

    def _run_alone(self, cache: AloneCache, rows: torch.Tensor) -> torch.Tensor:
        count = rows.shape[1]
        positions = torch.arange(cache.length, cache.length + count, device=rows.device).unsqueeze(0)
        output = self._trunk.run(rows, positions, past_key_values=cache.cache, use_cache=True)
        cache.advance(count)
        return output

    def _beat(self) -> None:
        if self.on_block is not None:
            self.on_block()

    # ---- sequences --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        """`target` begins as a copy of the first `length` positions of `source`.

        Raises InvalidInput for an unknown source, UnsupportedModel where `truncate` would.
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
        """Forget positions from `length` on. Raises UnsupportedModel where the blocks cannot roll back."""
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
        if 0 < length < cache.length and not self.can_rollback:
            raise UnsupportedModel("blocks with a running state cannot forget single positions")

    def free(self, sequence: SequenceKey) -> None:
        """Forget a sequence; unknown ones are ignored."""
        self._caches.pop(sequence, None)

    def bytes_held(self) -> int:
        """Bytes of all KV caches, with the room that they have grown into."""
        return sum(cache.nbytes for cache in self._caches.values())

    def bytes_per_token(self, span: Span) -> int:
        """Bytes of KV cache that one position takes in the blocks of `span`, as measured at load."""
        return sum(self._kv_bytes[block] for block in span)

    # ---- checks at load ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _check(self) -> None:
        """Transparent around its blocks; causal; cut anywhere; then whether strangers can share a row."""
        self._trunk.check_identity()
        generator = torch.Generator().manual_seed(0)
        strangers = [
            torch.randn(1, count, self.hidden_size, generator=generator).to(self.device, self.dtype)
            for count in STRANGERS
        ]
        try:
            alone = [self._alone_in_two_steps(rows) for rows in strangers]
            whole = self._run_alone(AloneCache(self._trunk.config), strangers[0])
            halves = self._in_halves(strangers[0])
        except Exception as error:
            words = " ".join(str(error).split())[:200]
            raise UnsupportedModel(f"its blocks do not run from hidden states and a cache alone: {words}") from error
        if not self._close(alone[0], whole):
            raise UnsupportedModel("its blocks see later positions, or remember earlier ones outside the cache")
        if not self._close(halves, whole):
            raise UnsupportedModel("its blocks hand each other more than hidden states")
        if not AloneCache(self._trunk.config).is_plain:
            self.why_unbatched = "its blocks keep more than keys and values"
        else:
            self._try_batched(strangers, alone)
        if self.quantization == INT8:
            self._quantize(strangers[0], whole)
        else:
            self._try_packed(strangers[0], whole)

    def _alone_in_two_steps(self, rows: torch.Tensor) -> torch.Tensor:
        """A prefill of all but the last positions, then those, with the library's own mask and cache."""
        cache = AloneCache(self._trunk.config)
        head = self._run_alone(cache, rows[:, :-STEPS])
        tail = self._run_alone(cache, rows[:, -STEPS:])
        self.can_rollback = cache.can_rollback
        sizes = [size // rows.shape[1] if self.can_rollback else size for size in cache.block_bytes()]
        self._kv_bytes = dict(zip(self.span, sizes, strict=False))
        return torch.cat([head, tail], dim=1)

    def _in_halves(self, rows: torch.Tensor) -> torch.Tensor:
        """The span as two spans, one after the other, as if on two machines."""
        middle = self.span.first + len(self.span) // 2
        for first, last in ((self.span.first, middle), (middle, self.span.last)):
            if first < last:
                self._trunk.narrow(Span(first, last))
                rows = self._run_alone(AloneCache(self._trunk.config), rows)
        self._trunk.narrow(self.span)
        return rows

    def _try_batched(self, strangers: list[torch.Tensor], alone: list[torch.Tensor]) -> None:
        try:
            self._check_batched(strangers, alone)
            self.batched = True
        except Exception as error:
            known = isinstance(error, ragged.Unbatchable)
            self.why_unbatched = str(error) if known else "its attention does not go through the library's interface"
            log.debug("why not batched: %r", error)
            self._trunk.use_own_attention()
            log.info("every sequence runs by itself: %s", self.why_unbatched)

    def _check_batched(self, strangers: list[torch.Tensor], alone: list[torch.Tensor]) -> None:
        """Raises Unbatchable (or whatever the model raises) unless a shared row gives what each gets alone."""
        self._trunk.use_ragged_attention()
        caches = [SequenceCache() for _ in strangers]
        counts = [rows.shape[1] - STEPS for rows in strangers]
        lanes = [ragged.Lane(0, count, cache) for count, cache in zip(counts, caches, strict=True)]
        head, calls = self._run_row(lanes, torch.cat([rows[:, :-STEPS] for rows in strangers], dim=1))
        if calls != dict.fromkeys(range(len(self.span)), 1):
            raise ragged.Unbatchable("its blocks do not call the attention interface exactly once each")
        lanes = [ragged.Lane(count, STEPS, cache) for count, cache in zip(counts, caches, strict=True)]
        tail, _ = self._run_row(lanes, torch.cat([rows[:, -STEPS:] for rows in strangers], dim=1))
        for part, end, right in zip(torch.split(head, counts, 1), torch.split(tail, STEPS, 1), alone, strict=True):
            if not self._close(torch.cat([part, end], dim=1), right):
                raise ragged.Unbatchable("strangers in one row do not get what each gets alone")
        self._kv_bytes = {self.span.first + i: caches[0].block(i).position_bytes for i in range(len(self.span))}

    def _try_packed(self, rows: torch.Tensor, right: torch.Tensor) -> None:
        """Lay the weights out for this processor, unless the blocks look into them."""
        self._trunk.pack()
        try:
            same = self._close(self._one_row(rows), right)
        except Exception as error:
            log.debug("the weights stay as they are: %r", error)
            same = False
        if not same:
            self._trunk.unpack()

    def _quantize(self, rows: torch.Tensor, right: torch.Tensor) -> None:
        """Let the blocks compute with 8-bit integers. Raises UnsupportedModel where that is something else."""
        self._trunk.quantize()
        try:
            error = float((self._one_row(rows) - right).float().norm() / right.float().norm())
        except Exception as failed:
            raise UnsupportedModel(f"its blocks do not run with 8-bit layers: {failed}") from failed
        if not error <= INT8_ERROR:
            raise UnsupportedModel(f"8-bit integers change what its blocks compute by {error:.0%}")

    def _one_row(self, rows: torch.Tensor) -> torch.Tensor:
        """`[1, T, hidden_size]` through all blocks, in the way that sessions take."""
        if not self.batched:
            return self._run_alone(AloneCache(self._trunk.config), rows)
        return self._run_row([ragged.Lane(0, rows.shape[1], SequenceCache())], rows)[0]

    def _close(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two results `[1, T, hidden_size]` of the same computation agree."""
        if one.shape != other.shape:
            return False
        differences = (one.float() - other.float()).abs().amax(dim=(0, 2)) / other.float().abs().max()
        agree = differences <= TOLERANCE[self.dtype]
        return bool(agree.all()) if self.dtype == torch.float32 else float(agree.float().mean()) >= MOST


def _positions(lanes: Sequence[ragged.Lane], device: torch.device) -> torch.Tensor:
    """`[1, T]`: each lane's own absolute positions."""
    if len(lanes) == 1:
        return torch.arange(lanes[0].start, lanes[0].start + lanes[0].count, device=device).unsqueeze(0)
    positions = [position for lane in lanes for position in range(lane.start, lane.start + lane.count)]
    return torch.tensor([positions], device=device)
