"""What is asked over HTTP, and the queries that it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from swarm.errors import InvalidInput
from swarm.gateway.http.asked import Asked
from swarm.gateway.http.errors import ApiError, api_error, refuse_unavailable, unavailable
from swarm.gateway.http.fields import (
    MOST_CHOICES,
    MOST_TOKENS,
    Fields,
    Prompt,
    Stop,
    ToolChoice,
    Unavailable,
    YesNo,
    whole,
)
from swarm.gateway.http.sampling import SamplingFields, query_of, sampling_of
from swarm.gateway.openai.constraints import ResponseFormat, StructuredOutputs, constraint_of, tool_choice_of
from swarm.gateway.openai.replies import ChatShape, CompletionShape
from swarm.models.chat import plain_messages, plain_tools
from swarm.wire import swarm_pb2 as pb

UNAVAILABLE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "text is only gone on with"),
    "echo": ((False,), "the prompt is known to who sent it"),
    "audio": ((), "text alone is answered"),
    "modalities": ((["text"],), "text alone is answered"),
    "functions": (([],), "they have become tools"),
    "function_call": (("none", "auto"), "it has become tool_choice"),
    "moderation": ((), "nothing is moderated here"),
    "prediction": ((), "speculation does this, without a text of yours"),
    "prompt_cache_options": ((), "what is kept of prompts is for the servers to say"),
    "prompt_cache_retention": (("in_memory", "in-memory"), "nothing is kept for longer than in memory"),
    "reasoning_effort": ((), "how a model thinks is its template's affair"),
    "service_tier": (("auto", "default"), "all are served alike"),
    "store": ((False,), "answers are not kept"),
    "verbosity": (("medium",), "say it in the prompt"),
    "web_search_options": ((), "nothing is searched for"),
}
"""Fields of OpenAI's that are refused: values that change nothing, and so may be there, and why others may not."""


class StreamOptions(Fields):
    """Of a stream: whether its last chunk tells the usage."""

    include_usage: YesNo | None = None
    include_obfuscation: Unavailable = None


class Request(SamplingFields):
    """What both kinds of completion have in common."""

    model: str
    stream: YesNo | None = None
    stream_options: StreamOptions | None = None
    n: whole(1, MOST_CHOICES) | None = None  # type: ignore[valid-type]
    max_tokens: whole(1, MOST_TOKENS) | None = None  # type: ignore[valid-type]
    stop: Stop | None = None
    structured_outputs: StructuredOutputs | None = None
    user: Annotated[str | None, Field(description="Not looked at.")] = None


class CompletionRequest(Request):
    """POST /v1/completions"""

    prompt: Prompt
    logprobs: whole(0, 20) | None = None  # type: ignore[valid-type]
    echo: YesNo | None = None
    suffix: str | None = None
    best_of: whole(1, MOST_CHOICES) | None = None  # type: ignore[valid-type]


class Message(Fields):
    """One turn of a conversation; what else is in it is for the model's template."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Annotated[Any, Field(description="A text, or a list of parts of type text, or image_url.")] = None


class ChatRequest(Request):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: whole(1, MOST_TOKENS) | None = None  # type: ignore[valid-type]
    logprobs: YesNo | None = None
    top_logprobs: whole(0, 20) | None = None  # type: ignore[valid-type]
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: YesNo | None = None
    metadata: Annotated[dict[str, Any] | None, Field(description="Not looked at.")] = None
    safety_identifier: Annotated[str | None, Field(description="Not looked at.")] = None
    prompt_cache_key: Annotated[str | None, Field(description="Not looked at.")] = None
    audio: Unavailable = None
    modalities: Unavailable = None
    functions: Unavailable = None
    function_call: Unavailable = None
    moderation: Unavailable = None
    prediction: Unavailable = None
    prompt_cache_options: Unavailable = None
    prompt_cache_retention: Unavailable = None
    reasoning_effort: Unavailable = None
    response_format: ResponseFormat | None = None
    service_tier: Unavailable = None
    store: Unavailable = None
    verbosity: Unavailable = None
    web_search_options: Unavailable = None

    @property
    def usable_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools or []


def asked_of(request: CompletionRequest | ChatRequest) -> Asked:
    """What is asked: one query for each choice, in order, each with a seed of its own. Raises ApiError."""
    _refuse_unavailable(request)
    chat = request if isinstance(request, ChatRequest) else None
    try:
        queries = _completion(request) if isinstance(request, CompletionRequest) else _chat(request)
    except InvalidInput as error:
        raise api_error(error) from error
    shape = CompletionShape if chat is None else ChatShape
    usage = request.stream_options is not None and bool(request.stream_options.include_usage)
    return Asked(
        request.model,
        queries,
        bool(request.stream),
        lambda model: shape(request.model, f"fp_{model.key[:12]}", request.n or 1, usage=usage),
        calls=1 if chat is not None and chat.parallel_tool_calls is False else None,
    )


def _refuse_unavailable(request: Request) -> None:
    refuse_unavailable(request, UNAVAILABLE)
    options = request.stream_options
    if options is not None and not request.stream:
        raise ApiError(400, "stream_options are for streams: they need stream to be true", param="stream_options")
    if options is not None and options.include_obfuscation not in (None, False):
        raise unavailable("stream_options.include_obfuscation", "chunks are as long as they are")


def _chat(request: ChatRequest) -> list[pb.Query]:
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs need logprobs", param="top_logprobs")
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens are two words for one limit", param="max_tokens")
    constraint = constraint_of(request.response_format, request.structured_outputs)
    sampling = sampling_of(request, next(iter(limits), None), stops_of(request.stop), constraint)
    sampling.logprobs = bool(request.logprobs)
    sampling.top_logprobs = request.top_logprobs or 0
    messages = json.dumps(plain_messages([message.model_dump() for message in request.messages]))
    tools = json.dumps(plain_tools(request.usable_tools)) if request.usable_tools else ""
    choice = tool_choice_of(request.tool_choice, single=request.parallel_tool_calls is False)
    if choice is not None and not request.usable_tools:
        raise ApiError(400, "tool_choice: there are no tools to choose from", param="tool_choice")
    prompt = {"messages": messages, "tools": tools, "tool_choice": choice}
    return [query_of(sampling, index, **prompt) for index in range(request.n or 1)]


def _completion(request: CompletionRequest) -> list[pb.Query]:
    count = request.n or 1
    if request.best_of not in (None, count):
        raise unavailable("best_of", "all answers are handed out, n of n")
    constraint = constraint_of(None, request.structured_outputs)
    sampling = sampling_of(request, request.max_tokens, stops_of(request.stop), constraint)
    sampling.logprobs = request.logprobs is not None
    sampling.top_logprobs = request.logprobs or 0
    prompts = prompts_of(request.prompt)
    if len(prompts) * count > MOST_CHOICES:
        raise ApiError(400, f"at most {MOST_CHOICES} answers at a time", param="n")
    return [query_of(sampling, index, **prompt) for prompt in prompts for index in range(count)]


def stops_of(stop: str | list[str] | None) -> list[str]:
    """The stop texts."""
    return [stop] if isinstance(stop, str) else stop or []


def prompts_of(prompt: str | list[int] | list[str] | list[list[int]]) -> list[dict[str, Any]]:
    """The prompts of a completion as fields of a query: texts, or tokens."""
    many: Sequence[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    return [{"text": each} if isinstance(each, str) else {"tokens": pb.Tokens(ids=each)} for each in many]
