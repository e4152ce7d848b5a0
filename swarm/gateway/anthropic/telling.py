"""What is answered by /v1/messages: one message, or the events by which it grows."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from swarm.gateway.http.choice import Choice
from swarm.gateway.http.errors import ApiError
from swarm.gateway.http.streams import event_of, waiting
from swarm.models.tool_calls import ToolCall
from swarm.wire import swarm_pb2 as pb

REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageTelling:
    """A `Telling`. There is one block of text, begun with its first piece; calls follow once the answer has ended."""

    def __init__(self, model: str) -> None:
        head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._head: dict[str, Any] = head
        self._begun = False

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The message."""
        (choice,) = choices
        text = [{"type": "text", "text": choice.text}] if choice.text or not choice.calls else []
        content = text + [_use(call) for call in choice.calls]
        return {**self._head, "content": content, **_ended(choice), "usage": _usage(choice), "seed": choice.seed}

    def events(self, choice: Choice, reply: pb.QueryReply) -> list[bytes]:
        """Of the message, of its text, and at last of its calls."""
        kind = reply.WhichOneof("kind")
        text = choice.take(reply)
        if kind == "accepted":
            empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(choice)}
            return [_event("message_start", message={**self._head, **empty, "seed": choice.seed})]
        if kind == "waiting":
            return [waiting(reply)]
        made = self._delta(text) if text else []
        if kind == "finished":
            made += self._calls(choice.calls)
            made.append(_event("message_delta", delta=_ended(choice), usage=_usage(choice)))
            made.append(_event("message_stop"))
        return made

    def end(self, choices: Sequence[Choice]) -> list[bytes]:
        """Nothing: how it ended is told with the last of it."""
        return []

    def failed(self, error: ApiError) -> list[bytes]:
        """The error."""
        return [event_of(error.anthropic, "error")]

    def _delta(self, text: str) -> list[bytes]:
        made = []
        if not self._begun:
            self._begun = True
            made.append(_event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
        return [*made, _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})]

    def _calls(self, calls: Sequence[ToolCall]) -> list[bytes]:
        made = [_event("content_block_stop", index=0)] if self._begun else []
        for index, call in enumerate(calls, 1 if self._begun else 0):
            use = _use(call)
            arguments = {"type": "input_json_delta", "partial_json": json.dumps(use["input"])}
            made.append(_event("content_block_start", index=index, content_block={**use, "input": {}}))
            made.append(_event("content_block_delta", index=index, delta=arguments))
            made.append(_event("content_block_stop", index=index))
        return made


def _event(kind: str, **told: Any) -> bytes:
    return event_of({"type": kind, **told}, kind)


def _use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name, "input": _input(call)}


def _input(call: ToolCall) -> dict[str, Any]:
    """The arguments as an object, which they are but where the model wrote a text of its own."""
    try:
        value = json.loads(call.arguments)
    except (ValueError, RecursionError):
        value = call.arguments
    return value if isinstance(value, dict) else {"arguments": value}


def _ended(choice: Choice) -> dict[str, Any]:
    reason = "stop_sequence" if choice.stop and not choice.calls else REASONS[choice.reason or "stop"]
    return {"stop_reason": reason, "stop_sequence": choice.stop or None}


def _usage(choice: Choice) -> dict[str, Any]:
    kept = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": choice.prompt_tokens, "output_tokens": choice.completion_tokens, **kept}
