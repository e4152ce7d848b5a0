"""What is asked of /v1/responses, and the query that it means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from swarm.errors import InvalidInput
from swarm.gateway.http.asked import Asked
from swarm.gateway.http.errors import ApiError, api_error, refuse_unavailable, unavailable
from swarm.gateway.http.fields import MOST_TOKENS, Fields, Items, Stop, ToolChoice, Unavailable, YesNo, whole
from swarm.gateway.http.sampling import SamplingFields, query_of, sampling_of
from swarm.gateway.openai.constraints import constraint_of_schema, tool_choice_of
from swarm.gateway.openai.requests import stops_of
from swarm.gateway.responses.items import choice_of, messages_of, tools_of
from swarm.gateway.responses.telling import ResponseTelling
from swarm.models.chat import plain_messages, plain_tools
from swarm.wire import swarm_pb2 as pb

LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")
"""What may be asked to be included; nothing is reasoned out of sight, and so there is nothing of that."""

UNAVAILABLE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "access_programs": ((), "there are no programs here"),
    "background": ((False,), "answers are given while somebody listens"),
    "background_options": ((), "answers are given while somebody listens"),
    "context_management": (([],), "what is sent is what the model sees"),
    "conversation": ((), "nothing is kept: send all of it"),
    "image": ((), "text alone is answered"),
    "max_tool_calls": ((), "tools are run by who asks"),
    "moderation": ((), "nothing is moderated here"),
    "previous_response_id": ((), "nothing is kept: send all of the conversation"),
    "prompt": ((), "nothing is kept here"),
    "prompt_cache_options": ((), "what is kept of prompts is for the servers to say"),
    "prompt_cache_retention": (("in_memory", "in-memory"), "nothing is kept for longer than in memory"),
    "service_tier": (("auto", "default"), "all are served alike"),
    "store": ((False,), "answers are not kept"),
    "truncation": (("disabled",), "what does not fit is refused"),
}
"""As for chat completions."""


class TextFormat(Fields):
    """What the text must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: Annotated[str | None, Field(description="Not looked at.")] = None
    strict: Annotated[YesNo | None, Field(description="Not looked at: a schema is always kept to.")] = None


class TextOptions(Fields):
    """Of the text."""

    format: TextFormat | None = None
    verbosity: Annotated[str | None, Field(description="Not looked at.")] = None


class StreamOptions(Fields):
    """Of a stream."""

    include_obfuscation: Unavailable = None


class ResponseRequest(SamplingFields):
    """POST /v1/responses"""

    model: str
    input: Items
    instructions: str | None = None
    max_output_tokens: whole(1, MOST_TOKENS) | None = None  # type: ignore[valid-type]
    stop: Stop | None = None
    stream: YesNo | None = None
    stream_options: StreamOptions | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: YesNo | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: whole(0, 20) | None = None  # type: ignore[valid-type]
    reasoning: Annotated[dict[str, Any] | None, Field(description="Not looked at.")] = None
    metadata: Annotated[dict[str, Any] | None, Field(description="Not looked at.")] = None
    prompt_cache_key: Annotated[str | None, Field(description="Not looked at.")] = None
    safety_identifier: Annotated[str | None, Field(description="Not looked at.")] = None
    user: Annotated[str | None, Field(description="Not looked at.")] = None
    access_programs: Unavailable = None
    background: Unavailable = None
    background_options: Unavailable = None
    context_management: Unavailable = None
    conversation: Unavailable = None
    image: Unavailable = None
    max_tool_calls: Unavailable = None
    moderation: Unavailable = None
    previous_response_id: Unavailable = None
    prompt: Unavailable = None
    prompt_cache_options: Unavailable = None
    prompt_cache_retention: Unavailable = None
    service_tier: Unavailable = None
    store: Unavailable = None
    truncation: Unavailable = None

    @property
    def usable_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools or []


def asked_of(request: ResponseRequest) -> Asked:
    """What is asked. Raises ApiError."""
    refuse_unavailable(request, UNAVAILABLE)
    options = request.stream_options
    if options is not None and options.include_obfuscation not in (None, False):
        raise unavailable("stream_options.include_obfuscation", "chunks are as long as they are")
    try:
        query = _query(request)
    except InvalidInput as error:
        raise api_error(error) from error
    single = request.parallel_tool_calls is False
    return Asked(
        request.model,
        [query],
        bool(request.stream),
        lambda model: ResponseTelling(_echoed(request), query.sampling.logprobs),
        calls=1 if single else None,
    )


def _query(request: ResponseRequest) -> pb.Query:
    constraint = _constraint(request.text.format if request.text is not None else None)
    sampling = sampling_of(request, request.max_output_tokens, stops_of(request.stop), constraint)
    sampling.logprobs = request.top_logprobs is not None or LOGPROBS in (request.include or ())
    sampling.top_logprobs = request.top_logprobs or 0
    tools = plain_tools(tools_of(request.usable_tools))
    choice = tool_choice_of(choice_of(request.tool_choice), single=request.parallel_tool_calls is False)
    if choice is not None and not tools:
        raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
    messages = _messages(request)
    return query_of(
        sampling, messages=json.dumps(messages), tools=json.dumps(tools) if tools else "", tool_choice=choice
    )


def _messages(request: ResponseRequest) -> list[dict[str, Any]]:
    try:
        return plain_messages(messages_of(request.instructions, request.input))
    except InvalidInput as error:
        words = str(error).replace("messages", "input", 1)
        raise InvalidInput(words, field="input") from error


def _constraint(format: TextFormat | None) -> pb.Constraint | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_schema" and format.schema_ is None:
        raise InvalidInput("text: a format of type json_schema needs its schema", field="text")
    return constraint_of_schema(format.schema_ if format.type == "json_schema" else None)


def _echoed(request: ResponseRequest) -> dict[str, Any]:
    """What a response repeats of its request."""
    given = request.model_dump(by_alias=True, exclude_none=True)
    return {
        "model": request.model,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": request.temperature,
        "text": {"format": given.get("text", {}).get("format", {"type": "text"})},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }
