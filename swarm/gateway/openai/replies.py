"""What is answered over HTTP: OpenAI's objects out of a query node's replies."""

from __future__ import annotations

import abc
import codecs
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import CompletionUsage

from swarm.models.tool_calls import ToolCall, ToolCallParser
from swarm.wire import swarm_pb2 as pb

REASONS = {pb.Finished.STOP: "stop", pb.Finished.LENGTH: "length", pb.Finished.TOOL_CALLS: "tool_calls"}

UTF8 = codecs.getincrementaldecoder("utf-8")


@dataclass(slots=True)
class Choice:
    """One answer as far as it has come. `parser`: where tools may be called."""

    index: int
    parser: ToolCallParser | None = None
    text: str = ""
    logprobs: list[pb.Logprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Where in the text the token of each of `logprobs` begins, in characters; one that goes on with a character: where
    that begins."""
    calls: list[ToolCall] = field(default_factory=list)
    reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seed: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _length: int = 0

    def take(self, reply: pb.QueryReply) -> str:
        """Take in one reply; returns the text that may be shown now."""
        match reply.WhichOneof("kind"):
            case "accepted":
                self.prompt_tokens, self.seed = reply.accepted.prompt_tokens, reply.accepted.seed
            case "delta":
                self._locate(reply.delta.logprobs)
                self.completion_tokens += len(reply.delta.tokens)
                return self._show(reply.delta.text if self.parser is None else self.parser.add(reply.delta.text))
            case "finished":
                return self._end(reply.finished)
        return ""

    def _locate(self, logprobs: Iterable[pb.Logprob]) -> None:
        for told in logprobs:
            self.logprobs.append(told)
            self.offsets.append(self._length)
            self._length += len(self._decoder.decode(told.text))

    def _end(self, finished: pb.Finished) -> str:
        self.completion_tokens = finished.completion_tokens
        self.reason = REASONS[finished.reason]
        if self.parser is None:
            return ""
        rest, self.calls = self.parser.end()
        if self.calls:
            self.reason = "tool_calls"
        return self._show(rest)

    def _show(self, text: str) -> str:
        self.text += text
        return text


def usage_of(choices: Iterable[Choice], per_prompt: int) -> CompletionUsage:
    """Of all answers together; a prompt with several answers counts once."""
    choices = list(choices)
    prompt = sum(choice.prompt_tokens for choice in choices if choice.index % per_prompt == 0)
    completion = sum(choice.completion_tokens for choice in choices)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Shape(abc.ABC):
    """What is the same in all objects of one answer."""

    object = ""
    chunk = ""
    prefix = ""

    def __init__(self, model: str, fingerprint: str) -> None:
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, choices: Sequence[Choice], per_prompt: int) -> dict[str, Any]:
        """The answer to a request that is not a stream."""
        usage = usage_of(choices, per_prompt).model_dump(exclude_none=True)
        made = [self.choice(choice) for choice in choices]
        return {**self.head, "object": self.object, "choices": made, "usage": usage, "seed": choices[0].seed}

    def event(self, choices: Sequence[dict[str, Any]], **told: Any) -> dict[str, Any]:
        """One chunk of a stream. `told`: what it says of the whole."""
        return {**self.head, "object": self.chunk, "choices": list(choices), **told}

    @abc.abstractmethod
    def choice(self, choice: Choice) -> dict[str, Any]:
        """A whole answer."""

    @abc.abstractmethod
    def first(self, choice: Choice) -> dict[str, Any] | None:
        """What a stream begins with, if with anything."""

    @abc.abstractmethod
    def delta(self, choice: Choice, text: str, logprobs: Sequence[pb.Logprob]) -> dict[str, Any]:
        """A piece more."""

    @abc.abstractmethod
    def last(self, choice: Choice) -> dict[str, Any]:
        """How it ended."""


class ChatShape(Shape):
    """/v1/chat/completions"""

    object, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text or (None if choice.calls else "")}
        message["refusal"] = None
        if choice.calls:
            message["tool_calls"] = [_tool_call(call) for call in choice.calls]
        logprobs = _chat_logprobs(choice.logprobs)
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}

    def first(self, choice: Choice) -> dict[str, Any] | None:
        return self._piece(choice, {"role": "assistant", "content": ""})

    def delta(self, choice: Choice, text: str, logprobs: Sequence[pb.Logprob]) -> dict[str, Any]:
        return self._piece(choice, {"content": text}, logprobs)

    def last(self, choice: Choice) -> dict[str, Any]:
        calls = [{"index": index, **_tool_call(call)} for index, call in enumerate(choice.calls)]
        return {**self._piece(choice, {"tool_calls": calls} if calls else {}), "finish_reason": choice.reason}

    def _piece(self, choice: Choice, delta: dict[str, Any], logprobs: Sequence[pb.Logprob] = ()) -> dict[str, Any]:
        told = _chat_logprobs(logprobs)
        return {"index": choice.index, "delta": delta, "logprobs": told, "finish_reason": None}


class CompletionShape(Shape):
    """/v1/completions"""

    object, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, choice: Choice) -> dict[str, Any]:
        logprobs = _text_logprobs(choice.logprobs, choice.offsets)
        return {"index": choice.index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.reason}

    def first(self, choice: Choice) -> dict[str, Any] | None:
        return None

    def delta(self, choice: Choice, text: str, logprobs: Sequence[pb.Logprob]) -> dict[str, Any]:
        told = _text_logprobs(logprobs, choice.offsets[len(choice.offsets) - len(logprobs) :])
        return {"index": choice.index, "text": text, "logprobs": told, "finish_reason": None}

    def last(self, choice: Choice) -> dict[str, Any]:
        return {"index": choice.index, "text": "", "logprobs": None, "finish_reason": choice.reason}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _text(told: pb.Logprob) -> str:
    """A token as text; one with a part of a character as its bytes, so that no two tokens look alike."""
    try:
        return told.text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in told.text)


def _chat_logprobs(logprobs: Sequence[pb.Logprob]) -> dict[str, Any] | None:
    if not logprobs:
        return None
    return {"content": [{**_token(told), "top_logprobs": [_token(each) for each in told.top]} for told in logprobs]}


def _token(told: pb.Logprob) -> dict[str, Any]:
    return {"token": _text(told), "logprob": told.logprob, "bytes": list(told.text)}


def _text_logprobs(logprobs: Sequence[pb.Logprob], offsets: Sequence[int]) -> dict[str, Any] | None:
    if not logprobs:
        return None
    return {
        "tokens": [_text(told) for told in logprobs],
        "token_logprobs": [told.logprob for told in logprobs],
        "top_logprobs": [{_text(each): each.logprob for each in told.top} for told in logprobs],
        "text_offset": list(offsets),
    }
