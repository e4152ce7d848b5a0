"""Drafts by the model's own block for multi-token prediction (MTP).

For each position it joins the hidden state that the model ended with and the embedding of the token behind it, and
says what follows that token. What it made stands in for hidden states that are not there yet, so that it drafts as far
as is asked for; of several layers each predicts one token further than the one before it.

F. Gloeckle and others, "Better & Faster Large Language Models via Multi-token Prediction", 2024; as in DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, MtpCache
from transformers.modeling_layers import MtpModel

from swarm.errors import UnsupportedModel
from swarm.speculation.drafts import Draft


class MtpDrafter:
    """One text's drafts by `head`. Slot j of layer i is for the hidden state of position j and token j + 1 + i.

    Raises UnsupportedModel where a layer keeps what cannot be taken back.
    """

    def __init__(self, head: MtpModel) -> None:
        self._head: Any = head
        self._layers = len(head.layers)
        self._cache: Any = MtpCache(config=head.config)
        self._cache.layers = [_plain(layer) for layer in self._cache.layers[: self._layers]]
        nothing = torch.empty(1, 0, head.config.hidden_size)
        self._waiting = [nothing for _ in range(self._layers)]
        """What each layer has still to see: of the model, of the layer before."""
        self._tip = nothing
        """What the first layer made of its last slot, `[1, 1, hidden_size]`."""
        self._first: int | None = None
        """The position of slot 0."""

    def see(self, states: torch.Tensor, position: int) -> None:
        """What the model ended with at certain positions, `[count, hidden_size]`, from `position` on: those that come
        after what was seen before."""
        if self._first is None:
            self._first = position
        rows = states.detach().unsqueeze(0)
        self._waiting[0] = torch.cat([self._waiting[0].to(rows), rows], dim=1)

    def learn(self, text: Sequence[int]) -> None:
        """Nothing is to be learned from tokens alone."""

    def kind(self, text: Sequence[int]) -> int | None:
        """Its drafts are all of one kind."""
        return None if self._first is None else 0

    @torch.inference_mode()
    def draft(self, text: Sequence[int], count: int) -> Draft:
        """What it says follows, `count` tokens. Behind the token after the last hidden state `text` may have drafts
        that are on their way: these it takes for granted."""
        if self._first is None:
            return Draft()
        known = list(text[self._first :])
        certain = self._length(0) + self._waiting[0].shape[1] + 1
        self._catch_up(known[:certain])
        if not self._tip.shape[1]:
            return Draft()
        lengths, waiting = [self._length(layer) for layer in range(self._layers)], list(self._waiting)
        drafted = self._chain(known[:certain], known[certain:], count)
        self._waiting = waiting
        for layer, length in enumerate(lengths):
            if (more := self._length(layer) - length) > 0:
                self._cache.layers[layer].crop(-more)
        return Draft(tuple(drafted))

    def _length(self, layer: int) -> int:
        """Slots of a layer that are filled."""
        return int(self._cache.layers[layer].get_seq_length())

    def _catch_up(self, text: list[int]) -> None:
        """Fill the slots of which the tokens are certain."""
        for layer in range(self._layers):
            slots = min(self._waiting[layer].shape[1], len(text) - 1 - layer - self._length(layer))
            if slots > 0:
                made = self._fill(layer, text, slots)
                if layer == 0:
                    self._tip = made[:, -1:]

    def _chain(self, text: list[int], given: list[int], count: int) -> list[int]:
        """`count` tokens behind those that are given behind the certain text."""
        drafted: list[int] = []
        made = self._tip
        for depth in range(1, len(given) + count + 1):
            token = given[depth - 1] if depth <= len(given) else self._best(made)
            if depth > len(given):
                drafted.append(token)
            text.append(token)
            if len(drafted) == count:
                break
            if depth >= self._layers:  # the last layer goes on with what it made itself
                self._waiting[-1] = made
            layer = min(depth, self._layers - 1)
            made = self._fill(layer, text, self._waiting[layer].shape[1])[:, -1:]
        return drafted

    def _best(self, made: torch.Tensor) -> int:
        return int(self._head._project_to_logits(made)[0, -1].argmax())

    def _fill(self, layer: int, text: list[int], slots: int) -> torch.Tensor:
        """The next slots of a layer, `[1, slots, hidden_size]`, which the next one has then to see."""
        begin = self._length(layer) + 1 + layer
        ids = torch.tensor([text[begin : begin + slots]])
        states, self._waiting[layer] = self._waiting[layer][:, :slots], self._waiting[layer][:, slots:]
        first = (self._first or 0) + begin
        places = torch.arange(first, first + slots).unsqueeze(0)
        made: torch.Tensor = self._head.forward_layer(layer, states, places, self._cache, input_ids=ids)
        if layer + 1 < self._layers:
            self._waiting[layer + 1] = torch.cat([self._waiting[layer + 1].to(made), made], dim=1)
        return made


def _plain(layer: Any) -> Any:
    """A layer that goes back; of a window the mask takes care."""
    if type(layer) is DynamicSlidingWindowLayer:
        return DynamicLayer()  # type: ignore[no-untyped-call]
    if type(layer) is not DynamicLayer:
        raise UnsupportedModel(f"what predicts further tokens keeps a {type(layer).__name__}, which cannot go back")
    return layer
