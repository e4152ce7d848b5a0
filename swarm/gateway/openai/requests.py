"""What is asked over HTTP, and the queries that it means."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from swarm.gateway.openai.errors import ApiError
from swarm.wire import swarm_pb2 as pb

MOST_CHOICES = 16
MOST_TOKENS = (1 << 31) - 1
SEEDS = 1 << 64
DRAWN_BITS = 53
"""Of a seed that nobody gave: JavaScript can hand it back as it was."""

Stop = str | Annotated[list[str], Field(max_length=16)] | None
Tokens = Annotated[list[Annotated[int, Field(ge=0, le=MOST_TOKENS)]], Field(min_length=1)]


class StreamOptions(BaseModel):
    """Of a stream: whether its last chunk tells the usage."""

    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of completion have in common. Fields of OpenAI's that are not here are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MOST_TOKENS, description="0: all tokens")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=SEEDS)] | None = None
    stop: Stop = None
    ignore_eos: bool = False
    speculation: Annotated[
        Literal["none", "ngram"] | None, Field(description="ngram: send guesses ahead; the text stays the same")
    ] = None
    user: str | None = None


class CompletionRequest(Request):
    """POST /v1/completions"""

    prompt: str | Tokens | Annotated[list[str] | list[Tokens], Field(min_length=1, max_length=MOST_CHOICES)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None


class Message(BaseModel):
    """One turn of a conversation; what else is in it is for the model's template."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(Request):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def usable_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools or []


def queries_of(request: CompletionRequest | ChatRequest) -> list[pb.Query]:
    """One query for each choice, in order. Each has a seed of its own. Raises ApiError."""
    try:
        if isinstance(request, ChatRequest):
            return _chat(request)
        return _completion(request)
    except (ValueError, RecursionError) as error:
        # Text that is no Unicode, though JSON can write it.
        raise ApiError(400, f"this cannot be asked: {error}") from error


def _chat(request: ChatRequest) -> list[pb.Query]:
    if (request.response_format or {}).get("type", "text") != "text":
        raise ApiError(400, "only plain text can be asked for", param="response_format")
    if request.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "tools are the model's own choice: none or auto", param="tool_choice")
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs need logprobs", param="top_logprobs")
    sampling = _sampling(request, request.max_completion_tokens or request.max_tokens)
    sampling.logprobs = bool(request.logprobs)
    sampling.top_logprobs = request.top_logprobs or 0
    messages = json.dumps([_plain(message) for message in request.messages])
    tools = json.dumps(request.usable_tools) if request.usable_tools else ""
    return [_query(sampling, index, messages=messages, tools=tools) for index in range(request.n or 1)]


def _plain(message: Message) -> dict[str, Any]:
    """Parts of text are one text: most templates know no other. Raises ApiError for pictures and sounds."""
    plain = message.model_dump(exclude_none=True)
    if isinstance(message.content, list):
        if not all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in message.content):
            raise ApiError(400, "messages consist of text alone", param="messages")
        plain["content"] = "".join(part["text"] for part in message.content)
    return plain


def _completion(request: CompletionRequest) -> list[pb.Query]:
    for name in ("suffix", "best_of"):
        if getattr(request, name) not in (None, 1, ""):
            raise ApiError(400, f"{name} is not available", param=name)
    if request.echo:
        raise ApiError(400, "echo is not available: the prompt is known to who sent it", param="echo")
    sampling = _sampling(request, request.max_tokens)
    sampling.logprobs = request.logprobs is not None
    sampling.top_logprobs = request.logprobs or 0
    prompts = prompts_of(request.prompt)
    count = request.n or 1
    if len(prompts) * count > MOST_CHOICES:
        raise ApiError(400, f"at most {MOST_CHOICES} answers at a time", param="n")
    return [_query(sampling, index, **prompt) for prompt in prompts for index in range(count)]


def prompts_of(prompt: str | list[int] | list[str] | list[list[int]]) -> list[dict[str, Any]]:
    """The prompts of a completion as fields of a query: texts, or tokens."""
    many: Sequence[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    return [{"text": each} if isinstance(each, str) else {"tokens": pb.Tokens(ids=each)} for each in many]


def _query(sampling: pb.Sampling, index: int, **prompt: Any) -> pb.Query:
    query = pb.Query(id=secrets.token_bytes(16), sampling=sampling, **prompt)
    query.sampling.seed = (sampling.seed + index) % SEEDS
    return query


def _sampling(request: Request, most: int | None) -> pb.Sampling:
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given: Mapping[str, Any] = {name: getattr(request, name) for name in names}
    sampling = pb.Sampling(max_tokens=most, **{name: value for name, value in given.items() if value is not None})
    sampling.seed = secrets.randbits(DRAWN_BITS) if request.seed is None else request.seed % SEEDS
    sampling.stop.extend([request.stop] if isinstance(request.stop, str) else request.stop or [])
    sampling.ignore_eos = request.ignore_eos
    sampling.speculation = request.speculation or ""
    for token, value in (request.logit_bias or {}).items():
        if not token.isascii() or not token.isdigit() or int(token) > MOST_TOKENS:
            raise ApiError(400, f"{token!r} is no token id", param="logit_bias")
        sampling.bias.add(token=int(token), value=value)
    return sampling
