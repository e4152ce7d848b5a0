"""What is asked of /v1/embeddings, and what is answered."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from swarm.gateway.answers import Embedded
from swarm.gateway.http.errors import refuse_unavailable
from swarm.gateway.http.fields import Fields, Inputs, Unavailable
from swarm.gateway.http.sampling import query_of
from swarm.gateway.openai.requests import prompts_of
from swarm.wire import swarm_pb2 as pb

UNAVAILABLE = {"dimensions": ((), "a vector has as many as the model's hidden states")}


class EmbeddingRequest(Fields):
    """POST /v1/embeddings"""

    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Annotated[
        Literal["mean", "last"] | None, Field(description="Of all positions (mean), or of the last one")
    ] = None
    user: Annotated[str | None, Field(description="Not looked at.")] = None
    dimensions: Unavailable = None


def queries_of(request: EmbeddingRequest) -> list[pb.Query]:
    """One for each text. Raises ApiError."""
    refuse_unavailable(request, UNAVAILABLE)
    return [query_of(pb.Sampling(), **prompt) for prompt in prompts_of(request.input)]


def told_of(request: EmbeddingRequest, made: Sequence[Embedded]) -> dict[str, Any]:
    """OpenAI's object, of vectors as numbers, or as base64 of little-endian float32."""
    data = [
        {"object": "embedding", "index": index, "embedding": _written(each.vector, request.encoding_format)}
        for index, each in enumerate(made)
    ]
    tokens = sum(each.tokens for each in made)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def _written(vector: Sequence[float], encoding: str | None) -> Any:
    if encoding != "base64":
        return list(vector)
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
