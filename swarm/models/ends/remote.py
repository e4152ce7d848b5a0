"""Blocks that are computed elsewhere, inside an otherwise ordinary transformers model.

`RemoteSpan` stands in a model's list of layers in place of any number of consecutive blocks: a virtual remote device.
What it must remember between calls is a layer of the model's own cache (`remote_cache.py`). So `generate` and
everything it can do is the library's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from swarm.errors import InvalidInput
from swarm.models.blocks import find_blocks, per_block, recount, text_config
from swarm.models.cache_layers import state_in
from swarm.models.ends.adapters import Beside, beside
from swarm.models.ends.calls import ELSEWHERE, Call, current, follow, watch
from swarm.models.ends.columns import Habits, check_wanted, habits
from swarm.models.ends.hollow import Layers
from swarm.models.ends.load import interface
from swarm.models.ends.mixed import MixedSession
from swarm.models.ends.packing import Texts, texts_in
from swarm.models.ends.remote_cache import NoSession, RemoteLayer, RemoteSession
from swarm.models.ends.training import RemoteTraining, files_of, through
from swarm.models.lora import Pair, Place
from swarm.models.row_shape import TOKENS, RowShape

NOTHING = Beside([{}])
TRAINED = "this cache is of a forward with gradients, which leaves nothing behind: wrap the call in torch.no_grad()"


class RemoteSpan(nn.Module):
    """Consecutive blocks that are computed by servers, in place of which it stands among a model's layers.

    `open_session` begins a session; where there is an adapter it is given its files, by span. `index`: its place in the
    list of layers; `layers`: how long that list is; `returns_tuple`: how long a tuple blocks return, 0: none; `dtype`:
    what servers compute in, where the model may be in another; `habits`: how the blocks look at columns;
    `training_through`: what gives gradients.
    """

    habits = Habits()
    knows_encoders = False
    """Whether the model's own code keeps caches beside which there is one of an encoder's."""
    layer_type = block_type = "full_attention"
    """What some models ask a block, to choose its mask."""
    shape: RowShape | None = None
    """Of what travels; None: the hidden states as they are."""
    listed: nn.ModuleList | None = None
    """The model's list of layers, where adapters may be."""

    def __init__(
        self,
        open_session: Callable[..., RemoteSession],
        *,
        index: int = 0,
        layers: int = 1,
        returns_tuple: int = 0,
        attention_type: str = "full_attention",
        dtype: torch.dtype | None = None,
        training_through: RemoteTraining | None = None,
    ) -> None:
        super().__init__()
        self.training_through = training_through
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
        """`[batch, T, hidden_size]`, or what else the model gives its blocks → the same, with gradients if wanted.
        Raises what the session raises."""
        if self.shape is None:
            return self._returned(self._compute(hidden_states, args, kwargs))
        rows = self.shape.rows(hidden_states, self._ids(kwargs))
        return self._returned(self.shape.hidden(self._compute(rows, args, kwargs)))

    def _returned(self, output: torch.Tensor) -> Any:
        return (output, *[None] * (self.returns_tuple - 1)) if self.returns_tuple else output

    def _ids(self, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
        """Token ids `[batch, T]`, where blocks look at these. Raises InvalidInput where there are none."""
        if self.shape is None or not self.shape.tokens:
            return None
        ids = kwargs.get(TOKENS)
        if ids is None:
            raise InvalidInput("inputs_embeds: this model's blocks look at the tokens themselves; pass input_ids")
        return torch.as_tensor(ids)

    def _compute(self, hidden_states: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Rows `[batch, T, size]` → the same."""
        call = current.call
        # Architectures name the cache differently when they hand it to their blocks; some do not hand it on at all.
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, Cache)), call.cache)
        if self.knows_encoders:
            cache = getattr(cache, "self_attention_cache", cache)
        keep = call.logits_to_keep if self.index == self.layers - 1 and not current.all_rows else 0
        added = beside(self.listed)
        texts = self._texts(cache, call, (*kwargs.values(), *args), hidden_states)
        if texts is not None and added.lanes is not None:
            raise InvalidInput("adapter_names: several texts stand in a row; give each a row of its own")
        if torch.is_grad_enabled() and (hidden_states.requires_grad or added.learns):
            output = self._train(cache, hidden_states, call, texts, added)
        elif cache is None:
            layer = self._new_layer(added)
            try:
                if texts is None:
                    output = self._step(layer, hidden_states, call, keep)
                else:
                    output = self._step_apart(layer, hidden_states, call, texts)
            finally:
                layer.close()
        else:
            output = self._step(self._layer(cache, added), hidden_states, call, keep)
        return output

    @staticmethod
    def _texts(cache: Any, call: Call, values: Sequence[Any], hidden: torch.Tensor) -> Texts | None:
        """Where several texts stand in a row; None: they do not."""
        if cache is not None or call.mask is not None:
            return None
        return texts_in(call.positions, _square_mask(values, hidden))

    def _train(self, cache: Any, hidden: torch.Tensor, call: Call, texts: Texts | None, added: Beside) -> torch.Tensor:
        """With gradients: whole sequences, of which no cache is left."""
        if texts is not None:
            spread = self._train(None, texts.apart(hidden), _apart(call, hidden, texts), None, added)
            return texts.together(spread, hidden)
        if self.shape is not None:
            raise InvalidInput("gradients: they flow through hidden states alone, and these blocks are given more")
        if self.training_through is None:
            raise InvalidInput("there are no gradients here; wrap the call in torch.no_grad()")
        if cache is not None:
            if cache.get_seq_length(self.index):
                raise InvalidInput(
                    "past_key_values: no gradients flow through what is cached: pass the whole text without it, or "
                    "wrap the call in torch.no_grad()"
                )
            self._layer(cache, NOTHING, NoSession(TRAINED))
        layer = RemoteLayer(NoSession(TRAINED))
        try:
            real = self._real(layer, hidden, call)
            if layer.is_placed:
                raise InvalidInput("position_ids: gradients flow where they go on one by one from token to token only")
            if added.lanes is None:
                return through(self.training_through, hidden, real, self.dtype, added.groups[0])
            rows = [added.rows(group, hidden.shape[0]) for group in range(len(added.groups))]
            parts = [
                self._train_rows(hidden[own], real[own], pairs) for own, pairs in zip(rows, added.groups, strict=True)
            ]
            order = torch.tensor([row for own in rows for row in own]).argsort().to(hidden.device)
            return torch.cat(parts)[order]
        except BaseException:
            current.end()
            raise

    def _train_rows(self, hidden: torch.Tensor, real: torch.Tensor, pairs: Mapping[Place, Pair]) -> torch.Tensor:
        """Some rows of a batch, with gradients if any are wanted of these."""
        added = Beside([pairs])
        if self.training_through is not None and (hidden.requires_grad or added.learns):
            return through(self.training_through, hidden, real, self.dtype, pairs)
        layer = self._new_layer(added)
        try:
            return layer.step(hidden, real, 0, self.dtype)
        finally:
            layer.close()

    def _step(self, layer: RemoteLayer, hidden: torch.Tensor, call: Call, keep: int) -> torch.Tensor:
        try:
            return layer.step(hidden, self._real(layer, hidden, call), keep, self.dtype)
        except BaseException:
            current.end()  # hooks are not called after an interrupt
            raise

    def _step_apart(self, layer: RemoteLayer, hidden: torch.Tensor, call: Call, texts: Texts) -> torch.Tensor:
        """Several texts in a row, each by itself."""
        spread = self._step(layer, texts.apart(hidden), _apart(call, hidden, texts), 0)
        return texts.together(spread, hidden)

    def _real(self, layer: RemoteLayer, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        """Which columns are tokens. Raises InvalidInput for what cannot be had."""
        if hidden.ndim != 3 or not hidden.numel():
            raise InvalidInput(f"input_ids [batch, positions] must hold something; these gave {tuple(hidden.shape)}")
        real = layer.admit(call, hidden.shape[0], hidden.shape[1], self.habits)
        check_wanted(real, call.logits_to_keep, call.labels, current.generating)
        return real

    def _new_layer(self, added: Beside) -> RemoteLayer:
        """Of a session with what adapters add now, or of several."""
        if any(pair.dropout for pairs in added.groups for pair in pairs.values()):
            raise InvalidInput("lora_dropout: sessions drop nothing; call model.eval() first")
        sessions = [self.open_session(files_of(pairs)) if pairs else self.open_session() for pairs in added.groups]
        if added.lanes is None:
            layer = RemoteLayer(sessions[0])
        else:
            mixed = MixedSession(sessions, added.lanes)
            layer = RemoteLayer(mixed)
            layer.on_step = mixed.batch
        layer.adapted = added.marks
        return layer

    def _layer(self, cache: Any, added: Beside, session: RemoteSession | None = None) -> RemoteLayer:
        """This span's part of the cache; an empty cache is laid out for this model first."""
        if not isinstance(getattr(cache, "layers", None), list):
            raise InvalidInput(
                f"past_key_values: no {type(cache).__name__}, please: {ELSEWHERE}, and so are their caches"
            )
        held = cache.layers[self.index] if self.index < len(cache.layers) else None
        if isinstance(held, RemoteLayer):
            if session is None and held.adapted != added.marks:
                raise InvalidInput("past_key_values: adapters have changed since it was begun; begin without it")
            return held
        # A static cache has its tensors before anything is in them.
        if any(bool(tensor.any()) for layer in cache.layers[self.index :] for tensor in state_in(layer)):
            raise InvalidInput("past_key_values was not made by this model: begin without it, or pass what it returned")
        before = cache.layers[: self.index]
        remote = self._new_layer(added) if session is None else RemoteLayer(session)
        cache.layers[:] = [*before, remote, *(_fresh_layer() for _ in range(self.layers - self.index - 1))]
        return remote


def _apart(call: Call, hidden: torch.Tensor, texts: Texts) -> Call:
    """The call of a batch that has each text in a row of its own."""
    planes = call.positions if call.positions.ndim == 3 else call.positions.unsqueeze(0)
    wide = planes.expand(-1, hidden.shape[0], -1)
    return Call(texts.mask, torch.stack([texts.apart(plane) for plane in wide]))


def _square_mask(values: Sequence[Any], hidden: torch.Tensor) -> torch.Tensor | None:
    """The mask `[batch, 1, T, T]` among what a block is called with."""
    shape = (hidden.shape[1], hidden.shape[1])
    tensors = (value for value in values if isinstance(value, torch.Tensor) and value.ndim == 4)
    return next((mask for mask in tensors if mask.shape[2:] == shape), None)


def _fresh_layer() -> DynamicLayer:
    return DynamicLayer()  # type: ignore[no-untyped-call]


def rearrange(
    model: nn.Module,
    layers: Sequence[nn.Module],
    originals: Sequence[int],
    hollow: Mapping[int, nn.Module] | None = None,
) -> None:
    """Make `layers` the model's list of layers, where layer i behaves as the original block `originals[i]` did.

    `hollow`: what stands for the blocks that are elsewhere, by their numbers, so that adapters can be put beside them.
    """
    blocks, given = find_blocks(model), interface(model)
    for index, layer in enumerate(layers):
        if isinstance(layer, RemoteSpan):
            layer.index, layer.layers = index, len(layers)
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    setattr(blocks.owner, blocks.attribute, _listed(layers, originals, hollow))
    # What runs the blocks gets a configuration of its own; the model's, which users see, stays what it is.
    seen: Any = blocks.base.config
    config = follow(blocks.base, seen)
    vars(blocks.owner)["config"] = config
    lists = per_block(config, blocks.total)
    recount(config, len(layers), {n: [v[i] for i in originals] for n, v in lists.items()})
    kinds = lists.get(type(config).attribute_map.get("layer_types", "layer_types"))
    attention = _attention_kind(kinds or ())
    if kinds is not None and attention is not None:
        remote = [isinstance(layer, RemoteSpan) for layer in layers]
        config.layer_types = [attention if r else kinds[i] for r, i in zip(remote, originals, strict=True)]
    vars(blocks.base)["swarm_layers"] = lambda: getattr(blocks.owner, blocks.attribute)
    watch(model, blocks.base)
    how = habits(model, blocks.base, text_config(seen))
    _, shape = given
    for layer in layers:
        if isinstance(layer, RemoteSpan):
            layer.habits = how
            layer.shape = None if shape.is_plain else shape
            layer.knows_encoders = hasattr(sys.modules[type(blocks.base).__module__], EncoderDecoderCache.__name__)


def _listed(
    layers: Sequence[nn.Module], originals: Sequence[int], hollow: Mapping[int, nn.Module] | None
) -> nn.ModuleList:
    if not hollow:
        return nn.ModuleList(layers)
    local = {i: layer for i, layer in zip(originals, layers, strict=True) if not isinstance(layer, RemoteSpan)}
    listed = Layers(layers, local, hollow)
    for layer in layers:
        if isinstance(layer, RemoteSpan):
            vars(layer)["listed"] = listed  # past nn.Module, which would take it for a part of the layer
    return listed


def _attention_kind(kinds: Sequence[str]) -> str | None:
    """A kind of block with keys and values: the library asks the first of these how many positions there are."""
    return next((kind for kind in kinds if "attention" in kind and "linear" not in kind), None)
