"""Blocks that are computed elsewhere, inside an otherwise ordinary transformers model.

`RemoteSpan` stands in a model's list of layers in place of any number of consecutive blocks: a virtual remote device.
What it must remember between calls is a layer of the model's own cache, `RemoteLayer`: it counts positions and turns
what transformers does to a cache (crop, reorder, repeat, select) into operations on sequences that travel with the
next step. So `generate` and everything it can do is the library's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from swarm.errors import InvalidInput, StepVoid, UnsupportedModel
from swarm.models.blocks import find_blocks, recount, text_config
from swarm.models.cache_layers import state_in
from swarm.models.ends.calls import ELSEWHERE, Call, current, follow, watch
from swarm.models.ends.columns import Habits, check_wanted, habits, offsets, tokens
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
        self.operations: list[pb.Operation] = []
        self._next_id = 0
        self._finalizer = weakref.finalize(self, session.close)

    @classmethod
    def computed_elsewhere(cls, count: int) -> RemoteLayer:
        """Stands for `count` positions of one sequence that others have computed: nothing can be computed behind it."""
        layer = cls(_NoSession())
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
        self.offsets = offsets(call.positions, self.real, real, self.offsets, how)
        return real

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
        rows = [Rows(self.sequences[i], _bytes(plain[i, real[i]]), int(wanted[i].sum())) for i in filled]
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


class _NoSession:
    """The session of a cache that stands for positions computed elsewhere."""

    can_rollback = True

    def begin(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> Callable[[], list[bytes]]:
        raise InvalidInput("nothing is computed here")

    def close(self) -> None:
        """Nothing is held."""


class RemoteSpan(nn.Module):
    """Consecutive blocks that are computed by servers, in place of which it stands among a model's layers.

    `open_session` begins a session. `index`: its place in the list of layers; `layers`: how long that list is;
    `returns_tuple`: whether this architecture's blocks do; `dtype`: what servers compute in, where the model may be
    in another; `habits`: how the blocks look at columns.
    """

    habits = Habits()

    def __init__(
        self,
        open_session: Callable[[], RemoteSession],
        *,
        index: int = 0,
        layers: int = 1,
        returns_tuple: bool = False,
        attention_type: str = "full_attention",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.open_session = open_session
        self.index = index
        self.layers = layers
        self.returns_tuple = returns_tuple
        self.attention_type = attention_type
        self.dtype = dtype

    def extra_repr(self) -> str:
        return f"at layer {self.index} of {self.layers}"

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """`[batch, T, hidden_size]` → the same. Raises what the session raises, and InvalidInput for gradients."""
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise InvalidInput("remote blocks cannot be trained through yet; wrap the call in torch.no_grad()")
        call = current.call
        # Architectures name the cache differently when they hand it to their blocks; some do not hand it on at all.
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), call.cache)
        keep = call.logits_to_keep if self.index == self.layers - 1 else 0
        if cache is None:
            layer = RemoteLayer(self.open_session())
            try:
                output = self._step(layer, hidden_states, call, keep)
            finally:
                layer.close()
        else:
            output = self._step(self._layer(cache), hidden_states, call, keep)
        return (output,) if self.returns_tuple else output

    # What torch.compiler.disable sets; its import is slow.
    forward._torchdynamo_disable = True  # type: ignore[attr-defined]

    def _step(self, layer: RemoteLayer, hidden: torch.Tensor, call: Call, keep: int) -> torch.Tensor:
        if hidden.ndim != 3 or not hidden.numel():
            raise InvalidInput(f"input_ids [batch, positions] must hold something; these gave {tuple(hidden.shape)}")
        try:
            return self._admitted(layer, hidden, call, keep)
        except BaseException:
            current.end()  # hooks are not called after an interrupt
            raise

    def _admitted(self, layer: RemoteLayer, hidden: torch.Tensor, call: Call, keep: int) -> torch.Tensor:
        real = layer.admit(call, hidden.shape[0], hidden.shape[1], self.habits)
        check_wanted(real, call.logits_to_keep, call.labels, current.generating)
        return layer.step(hidden, real, keep, self.dtype)

    def _layer(self, cache: Any) -> RemoteLayer:
        """This span's part of the cache; an empty cache is laid out for this model first."""
        if not isinstance(getattr(cache, "layers", None), list):
            raise InvalidInput(
                f"past_key_values: no {type(cache).__name__}, please: {ELSEWHERE}, and so are their caches"
            )
        held = cache.layers[self.index] if self.index < len(cache.layers) else None
        if isinstance(held, RemoteLayer):
            return held
        if any(state_in(layer) for layer in cache.layers[self.index :]):
            raise InvalidInput("past_key_values was not made by this model: begin without it, or pass what it returned")
        before = cache.layers[: self.index]
        remote = RemoteLayer(self.open_session())
        cache.layers[:] = [*before, remote, *(_fresh_layer() for _ in range(self.layers - self.index - 1))]
        return remote


def _fresh_layer() -> DynamicLayer:
    return DynamicLayer()  # type: ignore[no-untyped-call]


def rearrange(model: nn.Module, layers: Sequence[nn.Module], originals: Sequence[int]) -> None:
    """Make `layers` the model's list of layers, where layer i behaves as the original block `originals[i]` did."""
    blocks = find_blocks(model)
    for index, layer in enumerate(layers):
        if isinstance(layer, RemoteSpan):
            layer.index, layer.layers = index, len(layers)
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    setattr(blocks.owner, blocks.attribute, nn.ModuleList(layers))
    # The owner of the blocks gets a configuration of its own; the model's, which users see, stays what it is.
    seen: Any = blocks.owner.config
    config = follow(blocks.owner, seen)
    lists = {n: v for n, v in vars(config).items() if isinstance(v, list) and len(v) == blocks.total}
    recount(config, len(layers), {n: [v[i] for i in originals] for n, v in lists.items()})
    kinds, attention = lists.get("layer_types"), _attention_kind(lists.get("layer_types", ()))
    if kinds is not None and attention is not None:
        remote = [isinstance(layer, RemoteSpan) for layer in layers]
        config.layer_types = [attention if r else kinds[i] for r, i in zip(remote, originals, strict=True)]
    watch(model, blocks.owner)
    how = habits(model, blocks.owner, text_config(seen))
    for layer in layers:
        if isinstance(layer, RemoteSpan):
            layer.habits = how


def _attention_kind(kinds: Sequence[str]) -> str | None:
    """A kind of block with keys and values: the library asks the first of these how many positions there are."""
    return next((kind for kind in kinds if "attention" in kind and "linear" not in kind), None)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
