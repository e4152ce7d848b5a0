"""What an answer must look like, as requests say it, and as it is on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from swarm.errors import InvalidInput
from swarm.gateway.constrained.grammars import choice_grammar
from swarm.gateway.http.fields import Fields, Schema, YesNo
from swarm.wire import swarm_pb2 as pb

MOST_TEXTS = 10_000


class JsonSchema(Fields):
    """Of response_format: the schema, and what it is called."""

    name: str
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: Annotated[str | None, Field(description="Not looked at.")] = None
    strict: Annotated[YesNo | None, Field(description="Not looked at: a schema is always kept to.")] = None


class ResponseFormat(Fields):
    """JSON after a schema, any JSON object, or plain text."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Fields):
    """One of these, as vLLM has them."""

    json_: Annotated[Schema | None, Field(alias="json")] = None
    json_object: YesNo | None = None
    regex: str | None = None
    choice: Annotated[list[str] | None, Field(min_length=1, max_length=MOST_TEXTS)] = None
    grammar: Annotated[str | None, Field(description="In Lark's notation")] = None


def constraint_of(format: ResponseFormat | None, outputs: StructuredOutputs | None) -> pb.Constraint | None:
    """On the wire. Raises InvalidInput."""
    made = [each for each in (_of_format(format), _of_outputs(outputs)) if each is not None]
    if len(made) > 1:
        words = "structured_outputs beside response_format: an answer has one form"
        raise InvalidInput(words, field="structured_outputs")
    return made[0] if made else None


def _of_format(format: ResponseFormat | None) -> pb.Constraint | None:
    if format is None:
        return None
    if (format.json_schema is not None) != (format.type == "json_schema"):
        words = "response_format: json_schema is for the type json_schema, which needs it"
        raise InvalidInput(words, field="response_format")
    if format.json_schema is not None:
        return constraint_of_schema(format.json_schema.schema_)
    return constraint_of_schema(None) if format.type == "json_object" else None


def constraint_of_schema(schema: Mapping[str, Any] | None) -> pb.Constraint:
    """JSON by a schema; None: any object."""
    return pb.Constraint(json_schema="" if schema is None else json.dumps(schema))


def _of_outputs(outputs: StructuredOutputs | None) -> pb.Constraint | None:
    if outputs is None:
        return None
    given = outputs.model_dump(exclude_none=True, by_alias=True)
    if given.get("json_object") is False:
        del given["json_object"]
    if len(given) != 1:
        words = "structured_outputs: one of json, json_object, regex, choice and grammar is needed"
        raise InvalidInput(words, field="structured_outputs")
    match next(iter(given.items())):
        case "json", schema:
            return pb.Constraint(json_schema=schema if isinstance(schema, str) else json.dumps(schema))
        case "json_object", _:
            return pb.Constraint(json_schema="")
        case "regex", regex:
            return pb.Constraint(regex=regex)
        case "choice", texts:
            return pb.Constraint(grammar=choice_grammar(texts))
        case _, grammar:
            return pb.Constraint(grammar=grammar)


def tool_choice_of(choice: str | Mapping[str, Any] | None, single: bool) -> pb.ToolChoice | None:
    """On the wire; None: the model's own choice. `single`: no more than one call. Raises InvalidInput."""
    if choice in (None, "none", "auto"):
        return None
    if choice == "required":
        return pb.ToolChoice(single=single)
    assert isinstance(choice, Mapping)
    match choice:
        case {"type": "function", "function": {"name": str(name), **rest}, **others} if not rest and not others:
            return pb.ToolChoice(names=[name], single=True)
        case {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [*tools]}}:
            names = [tool["function"]["name"] for tool in tools if _names_function(tool)]
            if names and len(names) == len(tools):
                return pb.ToolChoice(names=names, single=single)
    words = 'none, auto, required, {"type": "function", "function": {"name": …}} or allowed_tools of mode required'
    raise InvalidInput(f"tool_choice is not right: {words} is needed", field="tool_choice")


def _names_function(tool: Any) -> bool:
    match tool:
        case {"type": "function", "function": {"name": str()}}:
            return True
    return False
