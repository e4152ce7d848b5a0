"""What is answered over HTTP: OpenAI's objects out of a query node's replies."""

from __future__ import annotations

import abc
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from openai.types import CompletionUsage

from swarm.gateway.http.choice import Choice
from swarm.gateway.http.errors import ApiError
from swarm.gateway.http.streams import event_of, waiting
from swarm.models.tool_calls import ToolCall
from swarm.wire import swarm_pb2 as pb

DONE = b"data: [DONE]\n\n"


def usage_of(choices: Iterable[Choice], per_prompt: int) -> CompletionUsage:
    """Of all answers together; a prompt with several answers counts once."""
    choices = list(choices)
    prompt = sum(choice.prompt_tokens for choice in choices if choice.index % per_prompt == 0)
    completion = sum(choice.completion_tokens for choice in choices)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Shape(abc.ABC):
    """What is the same in all objects of one answer. A `Telling`.

    `per_prompt`: answers of each prompt; `usage`: whether a stream tells it.
    """

    object = ""
    chunk = ""
    prefix = ""

    def __init__(self, model: str, fingerprint: str, per_prompt: int = 1, *, usage: bool = False) -> None:
        self.per_prompt = per_prompt
        self.usage = usage
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The answer to a request that is not a stream."""
        usage = usage_of(choices, self.per_prompt).model_dump(exclude_none=True)
        made = [self.choice(choice) for choice in choices]
        return {**self.head, "object": self.object, "choices": made, "usage": usage, "seed": choices[0].seed}

    def events(self, choice: Choice, reply: pb.QueryReply) -> list[bytes]:
        """Chunks, and how the answer ended."""
        kind = reply.WhichOneof("kind")
        before = len(choice.logprobs)
        text = choice.take(reply)
        if kind == "accepted":
            first = self.first(choice)
            return [] if first is None else [self._chunk([first])]
        if kind == "waiting":
            return [waiting(reply)]
        made = []
        if text or len(choice.logprobs) > before:
            made.append(self._chunk([self.delta(choice, text, choice.logprobs[before:])]))
        if kind == "finished":
            made.append(self._chunk([self.last(choice)], seed=choice.seed))
        return made

    def end(self, choices: Sequence[Choice]) -> list[bytes]:
        """The usage if it is asked for, and [DONE]."""
        if not self.usage:
            return [DONE]
        return [self._chunk([], usage=usage_of(choices, self.per_prompt).model_dump(exclude_none=True)), DONE]

    def failed(self, error: ApiError) -> list[bytes]:
        """The error, and no [DONE]."""
        return [event_of(error.body)]

    def _chunk(self, choices: Sequence[dict[str, Any]], **told: Any) -> bytes:
        return event_of({**self.head, "object": self.chunk, "choices": list(choices), **told})

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
    return {"content": [{**token_of(told), "top_logprobs": [token_of(each) for each in told.top]} for told in logprobs]}


def token_of(told: pb.Logprob) -> dict[str, Any]:
    """A token and its log-probability."""
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
