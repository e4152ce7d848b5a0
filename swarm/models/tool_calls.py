"""Calls of tools inside a model's text, in the two ways in which most models write them.

Hermes, Qwen and others: `<tool_call>{"name": …, "arguments": …}</tool_call>`, several of them, beside text. Llama 3.1:
the whole answer is `{"name": …, "parameters": …}`, perhaps behind `<|python_tag|>`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

OPENING, CLOSING = "<tool_call>", "</tool_call>"
BETWEEN_TAGS = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments`: JSON, as OpenAI's API has it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """How a model writes calls: what stands before, between (None: one call is all there may be) and behind them, and
    what the arguments are called."""

    before: str
    between: str | None
    after: str
    arguments: str


TAGGED = ToolStyle(f"{OPENING}\n", "\n", f"\n{CLOSING}", "arguments")
BARE = ToolStyle("", None, "", "parameters")


def style_of(template: Any) -> ToolStyle:
    """The style of a chat template, or of several under their names: what it shows of calls, the model has learned."""
    return TAGGED if OPENING in str(template) else BARE


class ToolCallParser:
    """Lets text through as it comes, and holds back what may be a call until the end. `most`: calls that count."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._text = ""
        self._shown = 0

    def add(self, text: str) -> str:
        """What may be shown now."""
        self._text += text
        end = held_from(self._text)
        shown = self._text[self._shown : end]
        self._shown = max(end, self._shown)
        return shown

    def end(self) -> tuple[str, list[ToolCall]]:
        """What is left to show, and the calls."""
        calls = calls_in(self._text)[: self._most]
        return ("" if calls else self._text[self._shown :]), calls


def held_from(text: str) -> int:
    """Where what may be a call begins; the end of the text if nothing may."""
    bare = text.lstrip()
    if not bare or bare.startswith("{") or PYTHON_TAG.startswith(bare[: len(PYTHON_TAG)]):
        return 0
    at = text.find("<")
    while at >= 0:
        if OPENING.startswith(text[at : at + len(OPENING)]):
            return at
        at = text.find("<", at + 1)
    return len(text)


def calls_in(text: str) -> list[ToolCall]:
    """The calls in a whole answer; none where anything in them is not as it should be."""
    if OPENING in text:
        calls = [_call(match) for match in BETWEEN_TAGS.findall(text)]
    else:
        calls = [_call(text.strip().removeprefix(PYTHON_TAG).strip())]
    return [call for call in calls if call is not None] if all(calls) else []


def _call(text: str) -> ToolCall | None:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return ToolCall(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))
