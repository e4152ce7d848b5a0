"""The part of a cache that is held by servers, between the calls of a model whose blocks are computed elsewhere.

`RemoteLayer` is a layer of the model's own cache: it counts positions and turns what transformers does to a cache
(crop, reorder, repeat, select) into operations on sequences that travel with the next step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import CacheLayerMixin

from swarm.errors import InvalidInput, StepVoid, UnsupportedModel
from swarm.models.ends.calls import Call, current
from swarm.models.ends.columns import Habits, places, tokens
from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb


class RemoteSession(Protocol):
    """A session somewhere: computes rows of sequences through the remote blocks."""

    @property
    def can_rollback(self) -> bool:
        """Whether single positions can be forgotten."""

    def begin(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> Callable[[], list[bytes]]:
        """Issue a step: apply the operations, then compute. Steps are computed in the order in which they began.

        Returns what waits for the outputs wanted of each of `rows`. It raises StepVoid when a later step's operations
        ended a sequence of this one before its outputs came.
        """

    def close(self) -> None:
        """Free everything; may be called twice, and from any thread."""


class RemoteLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The part of a cache that lives on servers: which sequence each row of the batch is, and which columns are real.

    `width`: columns seen, padding included, as the library counts them; `real` `[batch, width]`: which are no padding.
    """

    is_compileable = False
    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, session: RemoteSession) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.session = session
        self.sequences: list[int] = []
        self.real = torch.zeros(0, 0, dtype=torch.bool)
        self.offsets: list[int | None] = []
        self._places: list[torch.Tensor | None] = []
        self.operations: list[pb.Operation] = []
        self.adapted: tuple[object, ...] = ()
        """Marks of the adapters that are applied."""
        self.on_step: Callable[[Sequence[int]], None] | None = None
        """Hears which sequences the rows of a step are, before it."""
        self._next_id = 0
        self._finalizer = weakref.finalize(self, session.close)

    @classmethod
    def computed_elsewhere(cls, count: int) -> RemoteLayer:
        """Stands for `count` positions of one sequence that others have computed: nothing can be computed behind it."""
        layer = cls(NoSession("nothing is computed here"))
        layer._begin(1)
        layer.real = torch.ones(1, count, dtype=torch.bool)
        return layer

    def close(self) -> None:
        """Free the remote caches at once; otherwise garbage collection does."""
        self._finalizer()

    # ---- what a step does -------------------------------------------------------------------------------------

    def admit(self, call: Call, batch: int, count: int, how: Habits) -> torch.Tensor:
        """Which of `count` new columns are tokens, `[batch, count]`. Raises InvalidInput for what cannot be had."""
        self._begin(batch)
        real = tokens(call.mask, self.real, batch, count, how)
        self.offsets, self._places = places(call.positions, self.real, real, self.offsets, how)
        return real

    @property
    def is_placed(self) -> bool:
        """Whether columns that were admitted last have positions of their own."""
        return any(places is not None for places in self._places)

    def step(
        self, hidden: torch.Tensor, real: torch.Tensor, keep: int, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Compute `hidden` `[batch, T, hidden_size]` remotely; `real` `[batch, T]` says what is no padding.

        `dtype`: what servers compute in, where that is another. Returns the same shape, with zeros for padding and, if
        `keep` > 0, for all but the last `keep` columns. Raises what the session raises; the remote caches are freed
        then, since nobody knows what they hold.
        """
        self._begin(hidden.shape[0])
        wanted = real.clone()
        if 0 < keep < real.shape[1]:
            wanted[:, :-keep] = False
        plain = hidden.detach().to("cpu", dtype or hidden.dtype).contiguous()
        filled = [i for i in range(len(self.sequences)) if bool(real[i].any())]
        placed, self._places = self._places or [None] * len(self.sequences), []
        rows = [
            Rows(self.sequences[i], _bytes(plain[i, real[i]]), int(wanted[i].sum()), place_bytes(placed[i]))
            for i in filled
        ]
        outputs = self._compute(rows, real)
        result = torch.zeros_like(plain)
        for index, output in zip(filled, outputs, strict=True):
            if output:
                values = torch.frombuffer(bytearray(output), dtype=plain.dtype).view(-1, plain.shape[2])
                result[index, wanted[index]] = values
        return result.to(hidden.device, hidden.dtype)

    def _compute(self, rows: Sequence[Rows], real: torch.Tensor) -> list[bytes]:
        operations, self.operations = self.operations, []
        self.real = torch.cat([self.real, real], dim=1)
        try:
            if self.on_step is not None:
                self.on_step(self.sequences)
            outputs = self.session.begin(rows, operations)
            if current.on_begun is not None:
                current.on_begun()
            return outputs()
        except StepVoid:
            raise
        except BaseException:
            self.close()
            raise

    def _begin(self, batch: int) -> None:
        if not self.sequences:
            self.sequences = [self._fresh() for _ in range(batch)]
            self.real = torch.zeros(batch, 0, dtype=torch.bool)
            self.offsets = [None] * batch
            self.is_initialized = True
        if len(self.sequences) != batch:
            raise InvalidInput(f"this cache holds a batch of {len(self.sequences)}, the input is one of {batch}")

    def _fresh(self) -> int:
        self._next_id += 1
        return self._next_id

    def __deepcopy__(self, memo: Any) -> RemoteLayer:
        raise InvalidInput("a cache that servers hold cannot be copied: compute the prefix again, or pass a batch")

    # ---- what the library does to a cache ---------------------------------------------------------------------

    def get_seq_length(self) -> int:
        return int(self.real.shape[1])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return len(self.sequences)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` columns (the library passes a number ≤ 0)."""
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        keep = max(self.get_seq_length() - abs(tokens_to_remove), 0)
        if keep and not self.session.can_rollback:
            raise UnsupportedModel("blocks with a running state cannot forget single positions: no speculation here")
        self._become(list(range(len(self.sequences))), self.real[:, :keep])

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes a copy of row `beam_idx[i]`."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        if self.is_initialized:
            picked = indices.tolist()
            self._become(picked, self.real[picked])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        if self.is_initialized:
            picked = [row for row in range(len(self.sequences)) for _ in range(repeats)]
            self._become(picked, self.real[picked])

    def reset(self) -> None:
        """Forget everything."""
        if self.is_initialized:
            self._become([], self.real[:0, :0])
            self.is_initialized = False

    def _become(self, sources: list[int], real: torch.Tensor) -> None:
        """Row i of the new batch is old row `sources[i]` cut to `real[i]`; what is used no more is moved or freed."""
        old, held = self.sequences, self.real.sum(dim=1).tolist()
        lengths = real.sum(dim=1).tolist()
        left = {row: sources.count(row) for row in range(len(old))}
        self.sequences = []
        self.offsets = [self.offsets[row] if length else None for row, length in zip(sources, lengths, strict=True)]
        for row, length in zip(sources, lengths, strict=True):
            left[row] -= 1
            self.sequences.append(self._inherit(old[row], held[row], length, last=left[row] == 0))
        unused = [old[row] for row in range(len(old)) if row not in sources and held[row]]
        self.operations += [pb.Operation(kind=pb.Operation.FREE, source=sequence) for sequence in unused]
        self.real = real

    def _inherit(self, source: int, held: int, length: int, *, last: bool) -> int:
        if last and held == length:
            return source
        target = self._fresh()
        if length:
            kind = pb.Operation.MOVE if last else pb.Operation.FORK
            self.operations.append(pb.Operation(kind=kind, source=source, target=target, length=length))
        elif last and held:
            self.operations.append(pb.Operation(kind=pb.Operation.FREE, source=source))
        return target

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is kept here."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        raise InvalidInput("a local block wrote into the cache layer of remote ones")


class NoSession:
    """The session of a cache behind which nothing can be computed, and why."""

    can_rollback = True

    def __init__(self, why: str) -> None:
        self._why = why

    def begin(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> Callable[[], list[bytes]]:
        raise InvalidInput(self._why)

    def close(self) -> None:
        """Nothing is held."""


def place_bytes(places: torch.Tensor | None) -> bytes:
    """`[planes, tokens]` as they travel."""
    return b"" if places is None else _bytes(places.T.flatten().to(torch.int32))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
