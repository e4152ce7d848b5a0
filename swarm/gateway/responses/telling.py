"""What is answered by /v1/responses: one object, or the events by which it grows."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from swarm.gateway.http.choice import Choice
from swarm.gateway.http.errors import ApiError
from swarm.gateway.http.streams import event_of, waiting
from swarm.gateway.openai.replies import token_of
from swarm.models.tool_calls import ToolCall
from swarm.wire import swarm_pb2 as pb


def new_id(prefix: str) -> str:
    """An id that nobody else has."""
    return f"{prefix}_{secrets.token_hex(12)}"


class ResponseTelling:
    """A `Telling`. `echoed`: what a response repeats of its request; `logprobs`: whether it tells them.

    Of the text there is one item, begun with its first piece; calls follow once the answer has ended.
    """

    def __init__(self, echoed: Mapping[str, Any], logprobs: bool) -> None:
        self._head = {"id": new_id("resp"), "object": "response", "created_at": int(time.time()), **echoed}
        self._logprobs = logprobs
        self._message = new_id("msg")
        self._begun = False
        self._sequence = 0

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The response."""
        (choice,) = choices
        return self._response(choice, self._output(choice))

    def events(self, choice: Choice, reply: pb.QueryReply) -> list[bytes]:
        """Of the response, of its text, and at last of its calls."""
        kind, before = reply.WhichOneof("kind"), len(choice.logprobs)
        text = choice.take(reply)
        if kind == "accepted":
            response = self._told("in_progress")
            return [self._event("created", response=response), self._event("in_progress", response=response)]
        if kind == "waiting":
            return [waiting(reply)]
        made = self._delta(text, choice.logprobs[before:]) if text or len(choice.logprobs) > before else []
        return made + self._ended(choice) if kind == "finished" else made

    def end(self, choices: Sequence[Choice]) -> list[bytes]:
        """Nothing: how it ended is told with the last of it."""
        return []

    def failed(self, error: ApiError) -> list[bytes]:
        """The response, with the error."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        told = {"code": code if error.status >= 429 else "invalid_prompt", "message": error.message}
        return [self._event("failed", response={**self._told("failed"), "error": told})]

    # ---- the object -----------------------------------------------------------------------------------------------

    def _told(self, status: str, output: Sequence[Any] = (), **told: Any) -> dict[str, Any]:
        empty: dict[str, Any] = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": list(output), **empty, **told}

    def _response(self, choice: Choice, output: Sequence[Any]) -> dict[str, Any]:
        complete = choice.reason != "length"
        details = None if complete else {"reason": "max_output_tokens"}
        return self._told(
            "completed" if complete else "incomplete",
            output,
            incomplete_details=details,
            usage=_usage(choice),
            seed=choice.seed,
        )

    def _output(self, choice: Choice) -> list[dict[str, Any]]:
        calls = [_call(call) for call in choice.calls]
        return calls if calls and not choice.text else [self._item(choice), *calls]

    def _item(self, choice: Choice) -> dict[str, Any]:
        status = "incomplete" if choice.reason == "length" else "completed"
        return self._text_item(status, [self._part(choice.text, choice.logprobs)])

    def _text_item(self, status: str, content: Sequence[Any]) -> dict[str, Any]:
        return {
            "id": self._message,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": list(content),
        }

    def _part(self, text: str, logprobs: Sequence[pb.Logprob]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._tokens(logprobs)}

    def _tokens(self, logprobs: Sequence[pb.Logprob]) -> list[dict[str, Any]]:
        if not self._logprobs:
            return []
        return [{**token_of(told), "top_logprobs": [token_of(each) for each in told.top]} for told in logprobs]

    # ---- events ---------------------------------------------------------------------------------------------------

    def _event(self, what: str, /, **told: Any) -> bytes:
        kind, sequence = f"response.{what}", self._sequence
        self._sequence += 1
        return event_of({"type": kind, "sequence_number": sequence, **told}, kind)

    def _begin(self) -> list[bytes]:
        self._begun = True
        return [
            self._event("output_item.added", output_index=0, item=self._text_item("in_progress", [])),
            self._event("content_part.added", **self._at(), part=self._part("", [])),
        ]

    def _at(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": 0, "content_index": 0}

    def _delta(self, text: str, logprobs: Sequence[pb.Logprob]) -> list[bytes]:
        made = [] if self._begun else self._begin()
        return [*made, self._event("output_text.delta", **self._at(), delta=text, logprobs=self._tokens(logprobs))]

    def _ended(self, choice: Choice) -> list[bytes]:
        made = [] if self._begun or choice.calls else self._begin()
        output: list[dict[str, Any]] = []
        if self._begun:
            item = self._item(choice)
            output.append(item)
            (part,) = item["content"]
            told = {"text": part["text"], "logprobs": part["logprobs"]}
            made.append(self._event("output_text.done", **self._at(), **told))
            made.append(self._event("content_part.done", **self._at(), part=part))
            made.append(self._event("output_item.done", output_index=0, item=item))
        for call in choice.calls:
            output.append(_call(call))
            made += self._called(output[-1], len(output) - 1)
        response = self._response(choice, output)
        return [*made, self._event(response["status"], response=response)]

    def _called(self, item: Mapping[str, Any], index: int) -> list[bytes]:
        at = {"item_id": item["id"], "output_index": index}
        begun = {**item, "status": "in_progress", "arguments": ""}
        arguments = item["arguments"]
        return [
            self._event("output_item.added", output_index=index, item=begun),
            self._event("function_call_arguments.delta", **at, delta=arguments),
            self._event("function_call_arguments.done", **at, name=item["name"], arguments=arguments),
            self._event("output_item.done", output_index=index, item=item),
        ]


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "call_id": new_id("call"),
        "name": call.name,
        "arguments": call.arguments,
    }


def _usage(choice: Choice) -> dict[str, Any]:
    return {
        "input_tokens": choice.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": choice.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": choice.prompt_tokens + choice.completion_tokens,
    }
