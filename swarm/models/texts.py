"""Between text and tokens: prompts in, answers out as they grow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from swarm.errors import BadCheckpoint, InvalidInput
from swarm.models.chat import ChatTemplate
from swarm.wire import swarm_pb2 as pb

CONTEXT = 4
"""Tokens of the prompt that are decoded with the first of an answer: some write their space only after others."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a character decodes to as long as some of its tokens are missing."""
MOST_UNFINISHED = 8
"""Tokens that one character has at most; what is not whole by then never will be."""
MOST_STOPS = 16
LONGEST_STOP = 256


def load_tokenizer(model: str, token: str | None = None, revision: str | None = None) -> Any:
    """The model's tokenizer. Raises BadCheckpoint."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, token=token, revision=revision)
    except Exception as error:  # the library says in many ways that a file is not what it expects
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise BadCheckpoint(f"the tokenizer of {model} cannot be loaded: {words}") from error


class Texts:
    """A model's tokenizer, for many texts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.converses = bool(getattr(tokenizer, "chat_template", None))
        """Whether there is a chat template."""

    def prompt(self, query: pb.Query, vocabulary: int) -> list[int]:
        """The query's prompt as token ids. Raises InvalidInput."""
        kind = query.WhichOneof("prompt")
        if kind == "messages":
            ids = self.conversation(_list_of(query.messages, "messages"), _list_of(query.tools, "tools"))
        elif kind == "tokens":
            ids = list(query.tokens.ids)
        elif kind == "text":
            ids = list(self.tokenizer(query.text)["input_ids"])
        else:
            raise InvalidInput("a query needs a prompt: text, messages or tokens")
        if not ids:
            raise InvalidInput("prompt: at least one token is needed", field="prompt")
        if max(ids) >= vocabulary:
            words = f"prompt: {max(ids)} is no token of this model, which has {vocabulary}: 0 to {vocabulary - 1}"
            raise InvalidInput(words, field="prompt")
        return ids

    def conversation(self, messages: Sequence[Any], tools: Sequence[Any] = ()) -> list[int]:
        """Chat messages through the model's template. Raises InvalidInput."""
        if not self.converses:
            words = "this model has no chat template: ask it to complete a text instead"
            raise InvalidInput(words, field="messages")
        return ChatTemplate(self.tokenizer).ids(messages, tools)

    def decode(self, ids: Sequence[int]) -> str:
        """Text as it is shown."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def piece(self, token: int) -> bytes:
        """One token's own text in UTF-8, special ones included."""
        return str(self.tokenizer.decode([token])).encode()


def _list_of(text: str, name: str) -> list[Any]:
    try:
        value = json.loads(text) if text else []
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} are no JSON", field=name) from error
    if not isinstance(value, list):
        raise InvalidInput(f"{name} are no list", field=name)
    return value


class Detokenizer:
    """The text of tokens as they come: `add` gives what is new of it, once its characters are whole.

    The same tokens give the same pieces, whoever adds them. `before`: the last tokens of the prompt.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(before[-CONTEXT:])
        self._shown = len(self._ids)

    def add(self, token: int) -> str:
        """One token more."""
        self._ids.append(token)
        return self._new(whole=len(self._ids) - self._shown < MOST_UNFINISHED)

    def end(self) -> str:
        """What is left, whole or not."""
        return self._new(whole=False)

    def _new(self, *, whole: bool) -> str:
        before, text = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        if len(text) <= len(before) or (whole and text.endswith(UNFINISHED)):
            return ""
        self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
        return text[len(before) :]


class StopStrings:
    """Ends a text before the first of some texts. Raises InvalidInput for too many of them, or empty ones."""

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MOST_STOPS or not all(0 < len(stop) <= LONGEST_STOP for stop in stops):
            raise InvalidInput(f"at most {MOST_STOPS} stop texts, each of 1 to {LONGEST_STOP} characters")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """What may be shown now: a piece that a stop text could begin with is held back."""
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def end(self) -> str:
        """What was held back, when no stop text came."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` are the first of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


class Answer:
    """The text of one answer as its tokens come, with its stop texts. `sent`: bytes of UTF-8 that were shown."""

    def __init__(self, texts: Texts, prompt: Sequence[int], stops: Sequence[str], sent: int = 0) -> None:
        self._texts = texts
        self._detokenizer = Detokenizer(texts.decode, prompt)
        self._stops = StopStrings(stops)
        self._skip = sent
        self.sent = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop text came."""
        return self._stops.stopped

    def add(self, token: int) -> str:
        """One token more; returns the text to show, less what the asker has already."""
        return self._show(self._stops.add(self._detokenizer.add(token)))

    def piece(self, token: int) -> bytes:
        """One token's own text in UTF-8."""
        return self._texts.piece(token)

    def end(self) -> str:
        """What is left to show."""
        rest = "" if self.stopped else self._stops.add(self._detokenizer.end())
        return self._show(rest if self.stopped else rest + self._stops.end())

    def _show(self, text: str) -> str:
        raw = text.encode()
        new = raw[max(self._skip - self.sent, 0) :]
        self.sent += len(raw)
        return new.decode(errors="ignore")
