"""A conversation with a model: what was said, as token ids, and answers from the cache of what has been computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swarm.cli.screen import Screen, Streamer
from swarm.errors import ContextTooLong, InvalidInput
from swarm.models.texts import Texts

LONGEST = 1024
"""Tokens of an answer, where neither the user nor the model's authors say how many."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How to answer; None leaves it to the model's own generation settings."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    system: str | None = None

    def sampling(self) -> dict[str, Any]:
        """The options of `generate` that choose among tokens."""
        if self.temperature is None:
            return {}
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature}


class Conversation:
    """From what was said to token ids: a conversation where there is a template for one, else text that goes on.

    Raises InvalidInput for a system prompt that has no place.
    """

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.texts = Texts(tokenizer)
        self.templated = self.texts.converses
        self.messages: list[dict[str, str]] = []
        if system is not None and not self.templated:
            raise InvalidInput("this model has no chat template, and so no place for --system")
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def ids(self, text: str) -> list[int]:
        """The prompt that ends with `text`. Raises InvalidInput when the template refuses it."""
        if not self.templated:
            return list(self.tokenizer(text)["input_ids"])
        return self.texts.conversation([*self.messages, {"role": "user", "content": text}])

    def keep(self, text: str, answer: str) -> None:
        """Both belong to the conversation from now on."""
        if self.templated:
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def unchanged(known: Sequence[int], ids: Sequence[int]) -> int:
    """How many of the first `known` tokens the prompt `ids` begins with; at least its last has to be computed."""
    most = min(len(known), len(ids) - 1)
    return next((i for i in range(most) if known[i] != ids[i]), most)


class Responder:
    """A conversation with a model, and the cache of what has been computed of it."""

    def __init__(self, model: Any, conversation: Conversation, options: ChatOptions, screen: Screen) -> None:
        self.model = model
        self.conversation = conversation
        self.options = options
        self.screen = screen
        self.cache: Any = None
        self.known: list[int] = []
        if options.seed is not None:
            import torch

            torch.manual_seed(options.seed)

    def answer(self, text: str) -> None:
        """Answer on the screen. A failure, or Ctrl-C, frees what servers hold; what was said till then is kept.

        Raises SwarmError, after which it is as if `text` had not been said; KeyboardInterrupt.
        """
        ids = self.conversation.ids(text)
        streamer = Streamer(self.conversation.texts.decode, self.screen.write)
        try:
            self._generate(ids, streamer)
        except KeyboardInterrupt:
            self.forget()
            self.conversation.keep(text, streamer.text)
            raise
        except BaseException:
            self.forget()
            raise
        self.conversation.keep(text, streamer.text)
        self.screen.end_line()
        self.screen.note(streamer.speed())

    def _generate(self, ids: list[int], streamer: Streamer) -> None:
        import torch

        new = self._new_tokens(len(ids))
        prompt = torch.tensor([ids])
        result = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            past_key_values=self._reuse(ids),
            return_dict_in_generate=True,
            streamer=streamer,
            **self.options.sampling(),
        )
        if not self.conversation.templated:
            self.forget()
            return
        self.cache = result.past_key_values
        self.known = result.sequences[0, : self.cache.get_seq_length()].tolist()

    def _new_tokens(self, prompt: int) -> int:
        """As many as were asked for, as far as the model's context has room. Raises ContextTooLong."""
        wanted = self.options.max_new_tokens or self.model.generation_config.max_new_tokens or LONGEST
        limit = self.model.context_length
        if limit is None or prompt <= limit:
            return wanted if limit is None else min(wanted, limit - prompt + 1)
        raise ContextTooLong(f"{prompt} tokens have been said, more than the model's {limit}: begin a new conversation")

    def _reuse(self, ids: list[int]) -> Any:
        """The cache of the last turn, cut to what the prompt begins with; None where it is of no use."""
        same = unchanged(self.known, ids)
        if self.cache is None or same == 0 or (same < len(self.known) and self.model._is_stateful):
            self.forget()
        elif same < len(self.known):
            self.cache.crop(same - len(self.known))
        return self.cache

    def forget(self) -> None:
        """Free the cache, here and at the servers."""
        self.cache, self.known = None, []
