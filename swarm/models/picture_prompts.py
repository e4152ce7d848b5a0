"""Conversations with pictures in them, as the model's own processor makes them into what the model takes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm.models.chat import ChatTemplate, Message, after, plain_messages, refused, short_ids, text_arguments
from swarm.models.picture_parts import KIND, open_pictures


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens, those among them for which pictures stand, and what else the model takes: none, where it is text."""

    tokens: Sequence[int]
    pictures: Mapping[str, Any] = field(default_factory=dict)


class PicturePrompts:
    """The processor of a model that sees (`processor_of`). From any thread, one conversation after the other: what is
    unpacked is many times what came."""

    def __init__(self, processor: Any) -> None:
        self._template = ChatTemplate(processor)
        self._looking = threading.Lock()

    def prompt(self, messages: Sequence[Any], tools: Sequence[Any] = ()) -> Prompt:
        """The prompt for an answer to a conversation in OpenAI's shape. Raises InvalidInput."""
        with self._looking:
            return self._prompt(messages, tools)

    def _prompt(self, messages: Sequence[Any], tools: Sequence[Any]) -> Prompt:
        images = open_pictures(plain_messages(messages))

        def processed(shaped: Sequence[Message], defined: Sequence[Message]) -> Prompt:
            left = iter(images)
            filled = [{**each, "content": [_filled(part, left) for part in each["content"]]} for each in shaped]
            how = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return _prompt(self._template.apply(filled, defined, **how))

        return self._template.whole(messages, tools, processed, SHAPES)


def _filled(part: Message, left: Any) -> Message:
    return {**part, "image": next(left)} if part["type"] == "image" else part


def _prompt(made: Any) -> Prompt:
    rest = dict(made)
    (ids,) = rest.pop("input_ids").tolist()
    mask = rest.pop("attention_mask", None)
    if mask is not None and not bool(mask.all()):
        raise refused("messages: the model's processor pads this conversation")
    return Prompt(ids, rest)


def _parts(message: Message) -> Message:
    """Processors look through lists of parts."""
    content = message.get("content") or []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": [{"type": "image"} if part["type"] == KIND else part for part in parts]}


SHAPES = (_parts, after(_parts, text_arguments), after(_parts, short_ids))
"""Ways to put it that templates may want."""
