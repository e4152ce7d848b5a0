"""Calls of tools inside a model's text, in the ways in which most models write them.

Hermes, Qwen and others: `<tool_call>{"name": …, "arguments": …}</tool_call>`, several of them, beside text. Llama 3.1:
the whole answer is `{"name": …, "parameters": …}`, perhaps behind `<|python_tag|>`. Mistral: it is a list of such, with
`arguments`. Qwen's coders: `<function=NAME><parameter=NAME>VALUE</parameter></function>` in the tags, values bare.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPENING, CLOSING = "<tool_call>", "</tool_call>"
BETWEEN_TAGS = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
FUNCTION = re.compile(r"<function=([^>\n]{1,200})>(.*?)(?:</function>|$)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]{1,200})>((?:(?!<parameter=).)*?)</parameter>", re.DOTALL)
"""A value ends where the next one begins at the latest, so that the time grows with the text alone."""
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
    """Lets text through as it comes, and holds back what may be a call until the end. `most`: calls that count;
    `tools`: as they are told to the template, for the types of what is called with."""

    def __init__(self, most: int | None = None, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._most = most
        self._tools = tools
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
        calls = calls_in(self._text, self._tools)[: self._most]
        return ("" if calls else self._text[self._shown :]), calls


def held_from(text: str) -> int:
    """Where what may be a call begins; the end of the text if nothing may."""
    bare = text.lstrip()
    if not bare or bare.startswith(("{", "[")) or PYTHON_TAG.startswith(bare[: len(PYTHON_TAG)]):
        return 0
    at = text.find("<")
    while at >= 0:
        if OPENING.startswith(text[at : at + len(OPENING)]):
            return at
        at = text.find("<", at + 1)
    return len(text)


def calls_in(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> list[ToolCall]:
    """The calls in a whole answer; none where anything in them is not as it should be."""
    if OPENING in text:
        calls = [_call(match) or _function(match, tools) for match in BETWEEN_TAGS.findall(text)]
    else:
        bare = text.strip().removeprefix(PYTHON_TAG).strip()
        calls = _listed(bare) if bare.startswith("[") else [_call(bare)]
    return [call for call in calls if call is not None] if all(calls) else []


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(text: str) -> ToolCall | None:
    return _of(_read(text))


def _listed(text: str) -> list[ToolCall | None]:
    value = _read(text)
    return [_of(each) for each in value] if isinstance(value, list) else []


def _function(text: str, tools: Sequence[Mapping[str, Any]]) -> ToolCall | None:
    found = FUNCTION.fullmatch(text)
    if found is None or PARAMETER.sub("", found[2]).strip():
        return None
    name = found[1].strip()
    known: Any = next((tool["function"] for tool in tools if tool["function"]["name"] == name), {})
    parameters = known.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    kinds: Any = properties if isinstance(properties, Mapping) else {}
    values = {
        key.strip(): _typed(value.removeprefix("\n").removesuffix("\n"), kinds.get(key.strip()))
        for key, value in PARAMETER.findall(found[2])
    }
    return ToolCall(name, json.dumps(values))


def _typed(text: str, schema: Any) -> Any:
    """What a text stands for: itself, unless its schema has another type and it is of one."""
    if not isinstance(schema, Mapping) or schema.get("type", "string") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _of(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return ToolCall(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))
