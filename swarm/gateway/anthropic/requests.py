"""What is asked of /v1/messages, and the query that it means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from swarm.errors import InvalidInput
from swarm.gateway.anthropic.contents import choice_of, messages_of, tools_of
from swarm.gateway.anthropic.telling import MessageTelling
from swarm.gateway.http.asked import Asked
from swarm.gateway.http.errors import ApiError, api_error, refuse_unavailable
from swarm.gateway.http.fields import MOST_TOKENS, Fields, Stop, Unavailable, YesNo, whole
from swarm.gateway.http.sampling import SamplingFields, query_of, sampling_of
from swarm.gateway.openai.constraints import constraint_of_schema
from swarm.models.chat import plain_messages, plain_tools
from swarm.wire import swarm_pb2 as pb

UNAVAILABLE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "container": ((), "nothing is run here"),
    "mcp_servers": (([],), "nothing is run here"),
    "service_tier": (("auto", "standard_only"), "all are served alike"),
    "speed": (("standard",), "all are served alike"),
}
"""Fields that are refused: values that change nothing, and so may be there, and why others may not."""

Hint = Annotated[Any, Field(description="Not looked at.")]


class Message(Fields):
    """One turn."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Annotated[Any, Field(description="A text, or a list of blocks.")] = None


class Format(Fields):
    """JSON by a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Fields):
    """Of the answer."""

    effort: Hint = None
    format: Format | None = None


class CountRequest(Fields):
    """POST /v1/messages/count_tokens"""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    system: Annotated[Any, Field(description="A text, or a list of blocks of type text.")] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    cache_control: Hint = None
    context_management: Hint = None
    thinking: Hint = None
    mcp_servers: Unavailable = None
    speed: Unavailable = None

    @property
    def usable_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        none = self.tool_choice is not None and self.tool_choice.get("type") == "none"
        return [] if none else self.tools or []


class MessageRequest(CountRequest, SamplingFields):
    """POST /v1/messages"""

    max_tokens: whole(1, MOST_TOKENS)  # type: ignore[valid-type]
    stop_sequences: Stop | None = None
    stream: YesNo | None = None
    diagnostics: Hint = None
    inference_geo: Hint = None
    metadata: Hint = None
    user_profile_id: Hint = None
    workspace_id: Hint = None
    container: Unavailable = None
    service_tier: Unavailable = None


def asked_of(request: MessageRequest) -> Asked:
    """What is asked. Raises ApiError."""
    query, single = _checked(request, lambda constraint: _sampling(request, constraint))
    return Asked(
        request.model,
        [query],
        bool(request.stream),
        lambda model: MessageTelling(request.model),
        calls=1 if single else None,
    )


def counted_of(request: CountRequest) -> pb.Query:
    """The query whose prompt is to be counted. Raises ApiError."""
    return _checked(request, lambda constraint: pb.Sampling())[0]


def _sampling(request: MessageRequest, constraint: pb.Constraint | None) -> pb.Sampling:
    stops = [request.stop_sequences] if isinstance(request.stop_sequences, str) else request.stop_sequences or []
    return sampling_of(request, request.max_tokens, stops, constraint)


def _checked(request: CountRequest, sampling: Any) -> tuple[pb.Query, bool]:
    """The query, and whether it may call one tool at most."""
    refuse_unavailable(request, UNAVAILABLE)
    wanted = None if request.output_config is None else request.output_config.format
    try:
        constraint = None if wanted is None else constraint_of_schema(wanted.schema_)
        tools = plain_tools(tools_of(request.usable_tools))
        choice, single = choice_of(request.tool_choice)
        if choice is not None and not tools:
            raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
        turns = [message.model_dump() for message in request.messages]
        messages = plain_messages(messages_of(request.system, turns))
    except InvalidInput as error:
        raise api_error(error) from error
    told: dict[str, Any] = {
        "messages": json.dumps(messages),
        "tools": json.dumps(tools) if tools else "",
        "tool_choice": choice,
    }
    return query_of(sampling(constraint), **told), single
