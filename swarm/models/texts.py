"""Between text and tokens: prompts in, answers out as they grow."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from swarm.errors import BadCheckpoint, InvalidInput
from swarm.models.chat import ChatTemplate, plain_tools
from swarm.models.token_bytes import TokenBytes
from swarm.models.tool_calls import ToolStyle, style_of
from swarm.wire import swarm_pb2 as pb

if TYPE_CHECKING:
    from swarm.models.loading.checkpoint import Checkpoint

CONTEXT = 4
"""Tokens of the prompt that are decoded with the first of an answer: some write their space only after others."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a character decodes to as long as some of its tokens are missing."""
MOST_BEGUN = 3
"""Tokens that can have begun a character of four bytes without making it whole."""
MOST_STOPS = 16
LONGEST_STOP = 256


def load_tokenizer(model: str, token: str | bool | None = None, revision: str | None = None) -> Any:
    """The tokenizer of a model, or of one in a GGUF file. Raises BadCheckpoint, ModelNotFound."""
    if model.endswith(".gguf"):
        from swarm.models.loading.checkpoint import open_checkpoint

        return tokenizer_of(open_checkpoint(model, token, revision))
    from transformers import AutoTokenizer

    return _loaded(lambda: AutoTokenizer.from_pretrained(model, token=token, revision=revision), model)


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The tokenizer of an opened model. Raises BadCheckpoint, ModelNotFound."""
    gguf, reading = checkpoint.gguf, checkpoint.reading
    if gguf is None:
        return load_tokenizer(checkpoint.name, reading.token, reading.revision)
    from swarm.models.loading.gguf.tokenizer import read_tokenizer

    return _loaded(lambda: read_tokenizer(gguf.path), checkpoint.name)


def _loaded(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except Exception as error:  # the library says in many ways that a file is not what it expects
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise BadCheckpoint(f"the tokenizer of {name} cannot be loaded: {words}") from error


class Texts:
    """A model's tokenizer, for many texts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.converses = bool(getattr(tokenizer, "chat_template", None))
        """Whether there is a chat template."""
        self._bytes = TokenBytes(tokenizer)

    def prompt(self, query: pb.Query, vocabulary: int) -> list[int]:
        """The query's prompt as token ids. Raises InvalidInput."""
        kind = query.WhichOneof("prompt")
        if kind == "messages":
            ids = self.conversation(list_of(query.messages, "messages"), list_of(query.tools, "tools"))
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

    def tools(self, query: pb.Query) -> list[dict[str, Any]]:
        """The tools that a query tells of. Raises InvalidInput."""
        return plain_tools(list_of(query.tools, "tools")) if query.tools else []

    @property
    def tool_style(self) -> ToolStyle:
        """How the model writes calls."""
        return style_of(getattr(self.tokenizer, "chat_template", None))

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
        """One token's own bytes of the text in UTF-8, special tokens included."""
        return self._bytes.of(token)


def list_of(text: str, name: str) -> list[Any]:
    """A list that is in a query as JSON, empty: none. Raises InvalidInput."""
    try:
        value = json.loads(text) if text else []
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} are no JSON", field=name) from error
    if not isinstance(value, list):
        raise InvalidInput(f"{name} are no list", field=name)
    return value


class Detokenizer:
    """The text of tokens as they come: `add` gives what is new of it, once its characters are whole.

    The same tokens give the same pieces, whoever adds them. `before`: the tokens of the prompt, or the last of them; a
    character that it begins is the answer's.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int]) -> None:
        self._decode = decode
        context, begun = _split(decode, before)
        self._ids = [*context, *begun]
        self._shown = len(context)
        """Tokens whose text has been told; the others are told as far as `_told` says."""
        self._told = 0
        self._begun = decode(begun)
        self._added = False

    def add(self, token: int) -> str:
        """One token more."""
        self._added = True
        self._ids.append(token)
        return self._new(whole=True)

    def end(self) -> str:
        """What is left, whole or not."""
        return self._new(whole=False) if self._added else ""

    def _new(self, *, whole: bool) -> str:
        text = self._behind()
        ready = text.rstrip(UNFINISHED) if whole else text
        told, self._told = self._told, max(self._told, len(ready))
        if ready and told == 0 and self._begun:
            # Where the answer does not finish it, it stays the prompt's.
            told = len(self._begun) if ready.startswith(self._begun) else 0
        if text and not text.endswith(UNFINISHED):
            self._ids, self._shown = self._ids[self._shown :], len(self._ids) - self._shown
            self._told, self._begun = 0, ""
        return ready[told:]

    def _behind(self) -> str:
        """The text of the tokens behind those that were told."""
        before, text = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        # Where bytes stand for characters, those of one that is not whole make others look broken that were.
        return text[len(before) :] if text.startswith(before) else self._decode(self._ids[self._shown :])


def _split(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The last tokens whose text is whole, and those behind them of a character that is not."""
    for begun in range(MOST_BEGUN + 1):
        whole = tokens[: len(tokens) - begun]
        for size in range(CONTEXT, CONTEXT + MOST_BEGUN + 1):
            # One that is cut in the middle of a character can make all of it look broken.
            if not decode(whole[-size:]).endswith(UNFINISHED):
                return whole[-size:], tokens[len(whole) :]
    return tokens[-CONTEXT:], ()


class StopStrings:
    """Ends a text before the first of some texts. Raises InvalidInput for too many of them, or empty ones."""

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MOST_STOPS or not all(0 < len(stop) <= LONGEST_STOP for stop in stops):
            raise InvalidInput(f"at most {MOST_STOPS} stop texts, each of 1 to {LONGEST_STOP} characters")
        self._stops = tuple(stops)
        self._held = ""
        self.found = ""
        """The one that ended the text."""

    @property
    def stopped(self) -> bool:
        """Whether one came."""
        return bool(self.found)

    def add(self, text: str) -> str:
        """What may be shown now: a piece that a stop text could begin with is held back."""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.found = min(found)
            shown, self._held = self._held[:at], ""
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

    @property
    def stop(self) -> str:
        """Which one; empty: none."""
        return self._stops.found

    def add(self, token: int) -> str:
        """One token more; returns the text to show, less what the asker has already."""
        return self._show(self._stops.add(self._detokenizer.add(token)))

    def piece(self, token: int) -> bytes:
        """One token's own bytes."""
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
