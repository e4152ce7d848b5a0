"""What the API's own description says of answers that OpenAI's package has no type for."""

from __future__ import annotations

from typing import Any

from openai.types import Model as ModelObject
from pydantic import BaseModel

STATUSES = {
    400: "What is asked makes no sense, or does not fit into the model's context",
    401: "An API key is needed",
    403: "Host or Origin are not allowed",
    404: "There is no such model",
    413: "The request is too large",
    429: "The swarm is full; Retry-After says when to come again",
    502: "The swarm failed",
    503: "Blocks have no server",
}


class ErrorObject(BaseModel):
    """Of an error: what OpenAI's clients read."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorObject


class AnthropicError(BaseModel):
    """Of an error: what Anthropic's clients read."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """Anthropic's shape of an error."""

    type: str
    error: AnthropicError


class TokenCount(BaseModel):
    """Of a conversation."""

    input_tokens: int


class ModelList(BaseModel):
    """The models that are answered for."""

    object: str = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """Whether all blocks are served, in words too, and how many queries are being answered."""

    status: str
    detail: str
    running: int


class Version(BaseModel):
    """Of this package."""

    version: str


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the schema: that these are answered in OpenAI's shape."""
    return {status: {"model": ErrorBody, "description": STATUSES[status]} for status in statuses}


def anthropic_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the schema: that these are answered in Anthropic's shape."""
    return {status: {"model": AnthropicErrorBody, "description": STATUSES[status]} for status in statuses}
