"""Blocks that are computed elsewhere, inside an otherwise ordinary transformers model.

`RemoteSpan` stands in a model's list of layers in place of any number of consecutive blocks: a virtual remote device.
What it must remember between calls is a layer of the model's own cache (`remote_cache.py`). So `generate` and
everything it can do is the library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from swarm.errors import InvalidInput
from swarm.models.blocks import find_blocks, recount, text_config
from swarm.models.cache_layers import state_in
from swarm.models.ends.calls import ELSEWHERE, Call, current, follow, watch
from swarm.models.ends.columns import Habits, check_wanted, habits
from swarm.models.ends.packing import Texts, texts_in
from swarm.models.ends.remote_cache import RemoteLayer, RemoteSession


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

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """`[batch, T, hidden_size]` → the same. Raises what the session raises, and InvalidInput for gradients."""
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise InvalidInput("remote blocks cannot be trained through yet; wrap the call in torch.no_grad()")
        call = current.call
        # Architectures name the cache differently when they hand it to their blocks; some do not hand it on at all.
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), call.cache)
        keep = call.logits_to_keep if self.index == self.layers - 1 else 0
        if cache is None:
            layer, texts = RemoteLayer(self.open_session()), None
            if call.mask is None:
                texts = texts_in(call.positions, _square_mask((*kwargs.values(), *args), hidden_states))
            try:
                if texts is None:
                    output = self._step(layer, hidden_states, call, keep)
                else:
                    output = self._step_apart(layer, hidden_states, call, texts)
            finally:
                layer.close()
        else:
            output = self._step(self._layer(cache), hidden_states, call, keep)
        return (output,) if self.returns_tuple else output

    def _step(self, layer: RemoteLayer, hidden: torch.Tensor, call: Call, keep: int) -> torch.Tensor:
        if hidden.ndim != 3 or not hidden.numel():
            raise InvalidInput(f"input_ids [batch, positions] must hold something; these gave {tuple(hidden.shape)}")
        try:
            return self._admitted(layer, hidden, call, keep)
        except BaseException:
            current.end()  # hooks are not called after an interrupt
            raise

    def _step_apart(self, layer: RemoteLayer, hidden: torch.Tensor, call: Call, texts: Texts) -> torch.Tensor:
        """Several texts in a row, each by itself."""
        planes = call.positions if call.positions.ndim == 3 else call.positions.unsqueeze(0)
        wide = planes.expand(-1, hidden.shape[0], -1)
        apart = torch.stack([texts.apart(plane) for plane in wide])
        spread = self._step(layer, texts.apart(hidden), Call(texts.mask, apart), 0)
        return texts.together(spread, hidden)

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
        # A static cache has its tensors before anything is in them.
        if any(bool(tensor.any()) for layer in cache.layers[self.index :] for tensor in state_in(layer)):
            raise InvalidInput("past_key_values was not made by this model: begin without it, or pass what it returned")
        before = cache.layers[: self.index]
        remote = RemoteLayer(self.open_session())
        cache.layers[:] = [*before, remote, *(_fresh_layer() for _ in range(self.layers - self.index - 1))]
        return remote


def _square_mask(values: Sequence[Any], hidden: torch.Tensor) -> torch.Tensor | None:
    """The mask `[batch, 1, T, T]` among what a block is called with."""
    shape = (hidden.shape[1], hidden.shape[1])
    tensors = (value for value in values if isinstance(value, torch.Tensor) and value.ndim == 4)
    return next((mask for mask in tensors if mask.shape[2:] == shape), None)


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
