"""Drafts of the next tokens by a smaller model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from swarm.errors import InvalidInput
from swarm.speculation.drafts import Draft


class ModelDrafter:
    """A smaller model of the same vocabulary, here on this machine, that goes on greedily.

    Raises InvalidInput when its vocabulary is another.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int) -> None:
        own = int(model.config.get_text_config(decoder=True).vocab_size)
        if own != vocabulary:
            raise InvalidInput(
                f"the draft model knows {own} tokens, the model {vocabulary}: they must share a vocabulary"
            )
        self._model: Any = model
        model.eval()  # type: ignore[no-untyped-call]
        self._text: list[int] = []
        self._cache = DynamicCache()

    def learn(self, text: Sequence[int]) -> None:
        """Nothing is to be learned from what is certain."""

    def kind(self, text: Sequence[int]) -> int | None:
        """Its drafts are all of one kind."""
        return 0

    @torch.inference_mode()
    def draft(self, text: Sequence[int], count: int) -> Draft:
        """Its own `count` most likely next tokens, one after the other."""
        self._back_to(text)
        waiting, drafted = list(text[len(self._text) :]), list[int]()
        for _ in range(count):
            logits = self._forward(waiting)
            waiting = [int(logits.argmax())]
            drafted += waiting
        return Draft(tuple(drafted))

    def _back_to(self, text: Sequence[int]) -> None:
        """Forget what is not a prefix of the text, and at least its last token, which has to be computed."""
        same = 0
        while same < min(len(self._text), len(text) - 1) and self._text[same] == text[same]:
            same += 1
        if same < len(self._text):
            self._cache.crop(same - len(self._text))
            del self._text[same:]

    def _forward(self, tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self._model.device)
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, return_dict=True)
        self._text += tokens
        logits: torch.Tensor = output.logits[0, -1]
        return logits
