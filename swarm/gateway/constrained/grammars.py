"""What an answer must look like, as a grammar of llguidance: out of a schema, a pattern, a grammar or tools. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from swarm.errors import InvalidInput
from swarm.models.tool_calls import ToolStyle
from swarm.wire import swarm_pb2 as pb

LARGEST = 256 * 1024
"""Characters of what an answer must look like, tools included."""
LARGEST_PATTERN = 32 * 1024
"""Characters of a pattern or grammar."""
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written, unless the schema's own `x-guidance` says otherwise: as Python's, the most common one.
Where white space is free a small model can go on with it for ever, and nothing could be foreseen."""
ANYTHING = {"type": "object"}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
FIELDS = {"json_schema": "response_format", "regex": "structured_outputs", "grammar": "structured_outputs"}
"""In which field of a request each kind of constraint comes."""


def grammar_of(
    constraint: pb.Constraint | None, tools: Sequence[Mapping[str, Any]], choice: pb.ToolChoice | None, style: ToolStyle
) -> tuple[str, str] | None:
    """The grammar of an answer that keeps to `constraint`, or calls `tools` as `choice` says, and the field of a
    request that says so; None: anything may come.

    Where there are both and calls are the model's own choice, the answer is of the one form or the other. Raises
    InvalidInput, naming the field.
    """
    kind = None if constraint is None else constraint.WhichOneof("kind")
    if choice is not None:
        return _bounded(_calls(tools, choice, style), "tool_choice")
    if constraint is None or kind is None:
        return None
    text: str = getattr(constraint, kind)
    if kind == "json_schema":
        answer = f"answer: %json {_schema(_read(text), 'response_format')}\n"
        if not tools:
            return _bounded(f"start: answer\n{answer}", "response_format")
        calls = _calls(tools, pb.ToolChoice(), style).replace("start:", "calls:", 1)
        return _bounded(f"start: answer | calls\n{answer}{calls}", "response_format")
    if tools:
        words = "structured_outputs beside tools: an answer can be a call, or keep to a pattern or grammar, not both"
        raise InvalidInput(words, field="structured_outputs")
    _bounded(text, FIELDS[kind], LARGEST_PATTERN)
    # llama.cpp's notation would be turned into Lark's by Python, in a time that grows with the square of its lines.
    return (_pattern(text) if kind == "regex" else text), FIELDS[kind]


def choice_grammar(texts: Sequence[str]) -> str:
    """The grammar of an answer that is one of some texts."""
    return "start: " + " | ".join(json.dumps(text) for text in texts)


def _bounded(grammar: str, field: str, most: int = LARGEST) -> tuple[str, str]:
    if len(grammar) > most:
        words = f"{field}: what an answer must look like has {len(grammar)} characters, of at most {most}"
        raise InvalidInput(words, field=field)
    return grammar, field


def _read(text: str) -> Any:
    _bounded(text, "response_format")
    try:
        return json.loads(text) if text else ANYTHING
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"response_format: the schema is no JSON: {error}", field="response_format") from error


def _schema(schema: Any, field: str, **options: Any) -> str:
    """A schema as it stands in a grammar. Raises InvalidInput for what is none."""
    if not isinstance(schema, bool | dict):
        raise InvalidInput(f"{field}: a schema is an object", field=field)
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    own = schema.get("x-guidance", {})
    if not isinstance(own, dict):
        raise InvalidInput(f"{field}: x-guidance is an object", field=field)
    return json.dumps({**schema, "x-guidance": {**WRITTEN, **options, **own}})


def _pattern(regex: str) -> str:
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_regex(regex))


# ---- calls --------------------------------------------------------------------------------------------------------


def _calls(tools: Sequence[Mapping[str, Any]], choice: pb.ToolChoice, style: ToolStyle) -> str:
    """One call or several, as the model writes them: of any tool, or of those that are named."""
    functions = [tool["function"] for tool in tools]
    known = {function["name"] for function in functions}
    if not known:
        raise InvalidInput("tool_choice: there are no tools to choose from", field="tool_choice")
    if unknown := sorted(set(choice.names) - known):
        words = f"tool_choice: there is no tool {unknown[0][:80]!r}, but {', '.join(sorted(known))[:200]}"
        raise InvalidInput(words, field="tool_choice")
    used = [function for function in functions if not choice.names or function["name"] in choice.names]
    more = "" if choice.single or style.between is None else f" ({json.dumps(style.between)} call)*"
    lines = [f"start: call{more}", f"call: {_text(style.before)} body {_text(style.after)}"]
    lines.append("body: " + " | ".join(f"body_{place}" for place in range(len(used))))
    for place, function in enumerate(used):
        beginning = f'{{"name": {json.dumps(function["name"])}, "{style.arguments}": '
        lines.append(f'body_{place}: {json.dumps(beginning)} arguments_{place} "}}"')
        lines.append(f"arguments_{place}: %json {_arguments(function)}")
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    return json.dumps(text) if text else ""


def _arguments(function: Mapping[str, Any]) -> str:
    """The schema of a tool's arguments. What llguidance cannot promise of it is left to the model, unless the tool is
    strict."""
    schema = function.get("parameters", NO_ARGUMENTS)
    if not isinstance(schema, dict):
        raise InvalidInput(f"tools: the parameters of {function['name'][:80]} are a schema, an object", field="tools")
    return _schema({"type": "object", **schema}, "tools", lenient=not function.get("strict"))
