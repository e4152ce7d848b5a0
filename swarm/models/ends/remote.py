"""Blocks that are computed elsewhere, inside an otherwise ordinary transformers model.

`RemoteSpan` stands in a model's list of layers in place of any number of consecutive blocks: a virtual remote device.
What it must remember between calls is a layer of the model's own cache, `RemoteLayer`: it counts positions and turns
what transformers does to a cache (crop, reorder, repeat, select) into operations on sequences that travel with the
next step. So `generate` and everything it can do is the library's own.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from swarm.errors import InvalidInput, StepVoid, UnsupportedModel
from swarm.models.blocks import find_blocks, recount
from swarm.models.cache_layers import state_in
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


@dataclass(frozen=True, slots=True)
class Call:
    """How the model is being called: its 2-D attention mask `[batch, past + T]`, its cache, and of how many of the
    last positions logits are asked for (0: all)."""

    mask: torch.Tensor | None = None
    logits_to_keep: int = 0
    cache: Cache | None = None


class _Current(threading.local):
    """The call that is under way in this thread.

    Not a context variable: the tasks of a session begin in the context of its caller, and would keep the cache alive
    whose end is to end them.
    """

    call = Call()
    on_begun: Callable[[], None] | None = None


_current = _Current()


@contextmanager
def when_begun(told: Callable[[], None]) -> Iterator[None]:
    """Call `told` when a forward of this thread has issued its remote step, and waits for the outputs.

    From then on another thread may begin the next forward on the same cache.
    """
    _current.on_begun = told
    try:
        yield
    finally:
        _current.on_begun = None


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

    def step(self, hidden: torch.Tensor, real: torch.Tensor, keep: int) -> torch.Tensor:
        """Compute `hidden` `[batch, T, hidden_size]` remotely; `real` `[batch, T]` says what is no padding.

        Returns the same shape, with zeros for padding and, if `keep` > 0, for all but the last `keep` columns.
        Raises what the session raises; the remote caches are freed then, since nobody knows what they hold.
        """
        self._begin(hidden.shape[0])
        wanted = real.clone()
        if 0 < keep < real.shape[1]:
            wanted[:, :-keep] = False
        plain = hidden.detach().contiguous().cpu()
        filled = [i for i in range(len(self.sequences)) if bool(real[i].any())]
        rows = [Rows(self.sequences[i], _bytes(plain[i, real[i]]), int(wanted[i].sum())) for i in filled]
        outputs = self._compute(rows, real)
        result = torch.zeros_like(plain)
        for index, output in zip(filled, outputs, strict=True):
            if output:
                values = torch.frombuffer(bytearray(output), dtype=plain.dtype).view(-1, plain.shape[2])
                result[index, wanted[index]] = values
        return result.to(hidden.device)

    def _compute(self, rows: Sequence[Rows], real: torch.Tensor) -> list[bytes]:
        operations, self.operations = self.operations, []
        self.real = torch.cat([self.real, real], dim=1)
        try:
            outputs = self.session.begin(rows, operations)
            if _current.on_begun is not None:
                _current.on_begun()
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
    `returns_tuple`: whether this architecture's blocks do.
    """

    def __init__(
        self,
        open_session: Callable[[], RemoteSession],
        *,
        index: int = 0,
        layers: int = 1,
        returns_tuple: bool = False,
        attention_type: str = "full_attention",
    ) -> None:
        super().__init__()
        self.open_session = open_session
        self.index = index
        self.layers = layers
        self.returns_tuple = returns_tuple
        self.attention_type = attention_type

    def extra_repr(self) -> str:
        return f"at layer {self.index} of {self.layers}"

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """`[batch, T, hidden_size]` → the same. Raises what the session raises, and InvalidInput for gradients."""
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise InvalidInput("remote blocks cannot be trained through yet; wrap the call in torch.no_grad()")
        call = _current.call
        # Architectures name the cache differently when they hand it to their blocks; some do not hand it on at all.
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), call.cache)
        keep = call.logits_to_keep if self.index == self.layers - 1 else 0
        if cache is None:
            layer = RemoteLayer(self.open_session())
            try:
                output = layer.step(hidden_states, _real(call, hidden_states, 0), keep)
            finally:
                layer.close()
        else:
            layer = self._layer(cache)
            output = layer.step(hidden_states, _real(call, hidden_states, layer.get_seq_length()), keep)
        return (output,) if self.returns_tuple else output

    def _layer(self, cache: Any) -> RemoteLayer:
        """This span's part of the cache; an empty cache is laid out for this model first."""
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
    config: Any = copy.deepcopy(blocks.owner.config)
    lists = {n: v for n, v in vars(config).items() if isinstance(v, list) and len(v) == blocks.total}
    recount(config, len(layers), {n: [v[i] for i in originals] for n, v in lists.items()})
    kinds, attention = lists.get("layer_types"), _attention_kind(lists.get("layer_types", ()))
    if kinds is not None and attention is not None:
        remote = [isinstance(layer, RemoteSpan) for layer in layers]
        config.layer_types = [attention if r else kinds[i] for r, i in zip(remote, originals, strict=True)]
    setattr(blocks.owner, "config", config)  # noqa: B010 - nn.Module's annotations know only tensors and modules
    model.register_forward_pre_hook(_note_call, with_kwargs=True)
    model.register_forward_hook(_forget_call, always_call=True)


def _attention_kind(kinds: Sequence[str]) -> str | None:
    """A kind of block with keys and values: the library asks the first of these how many positions there are."""
    return next((kind for kind in kinds if "attention" in kind and "linear" not in kind), None)


def _note_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before each forward: what the remote span must know of it. Raises InvalidInput for what cannot be had."""
    for unavailable in ("output_attentions", "output_hidden_states"):
        if kwargs.get(unavailable):
            raise InvalidInput(f"{unavailable} is not available: the blocks are computed elsewhere")
    mask = kwargs.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        raise InvalidInput("attention_mask must be 2-D [batch, positions]: remote blocks build their own masks")
    keep = kwargs.get("logits_to_keep", 0)
    _current.call = Call(mask, keep if isinstance(keep, int) else 0, kwargs.get("past_key_values"))


def _forget_call(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """After each forward, also one that failed: what is remembered would keep the cache, and the servers', alive."""
    _current.call = Call()


def _real(call: Call, hidden: torch.Tensor, past: int) -> torch.Tensor:
    """Which of the new columns are no padding, `[batch, T]`."""
    batch, count = hidden.shape[:2]
    if call.mask is None:
        return torch.ones(batch, count, dtype=torch.bool)
    if call.mask.shape != (batch, past + count):
        raise InvalidInput(f"attention_mask is {tuple(call.mask.shape)}, expected {(batch, past + count)}")
    return call.mask[:, past:].bool().cpu()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
