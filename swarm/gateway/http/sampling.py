"""How tokens are chosen, as requests to any API may say it, and as it is on the wire."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from swarm.gateway.http.fields import MOST_TOKENS, Biases, Fields, YesNo, number, whole
from swarm.wire import swarm_pb2 as pb

SEEDS = 1 << 64
DRAWN_BITS = 53
"""Of a seed that nobody gave: JavaScript can hand it back as it was."""
PLAIN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""What is called on the wire as it is here."""


class SamplingFields(Fields):
    """What all calls have in common, whether their APIs have it or not."""

    temperature: number(0, 100) | None = None  # type: ignore[valid-type]
    top_p: number(0, 1) | None = None  # type: ignore[valid-type]
    top_k: whole(0, MOST_TOKENS, "0: all tokens") | None = None  # type: ignore[valid-type]
    min_p: number(0, 1) | None = None  # type: ignore[valid-type]
    repetition_penalty: number(0.01, 100) | None = None  # type: ignore[valid-type]
    presence_penalty: number(-2, 2) | None = None  # type: ignore[valid-type]
    frequency_penalty: number(-2, 2) | None = None  # type: ignore[valid-type]
    logit_bias: Biases | None = None
    seed: whole(-(1 << 63), SEEDS - 1) | None = None  # type: ignore[valid-type]
    ignore_eos: YesNo | None = None
    speculation: Annotated[
        Literal["none", "ngram"] | None, Field(description="ngram: send guesses ahead; the text stays the same")
    ] = None


def sampling_of(
    fields: SamplingFields, most: int | None, stops: Sequence[str], constraint: pb.Constraint | None
) -> pb.Sampling:
    """On the wire. `most`: tokens that an answer may have; `stops`: texts that end it; `constraint`: what it must look
    like."""
    given: Mapping[str, Any] = {name: getattr(fields, name) for name in PLAIN}
    sampling = pb.Sampling(max_tokens=most, **{name: value for name, value in given.items() if value is not None})
    sampling.seed = secrets.randbits(DRAWN_BITS) if fields.seed is None else fields.seed % SEEDS
    sampling.stop.extend(stops)
    sampling.ignore_eos = bool(fields.ignore_eos)
    sampling.speculation = fields.speculation or ""
    if constraint is not None:
        sampling.constraint.CopyFrom(constraint)
    for token, value in (fields.logit_bias or {}).items():
        sampling.bias.add(token=int(token), value=value)
    return sampling


def query_of(sampling: pb.Sampling, index: int = 0, **prompt: Any) -> pb.Query:
    """The query for one of several answers, each of which has a seed of its own."""
    query = pb.Query(id=secrets.token_bytes(16), sampling=sampling, **prompt)
    query.sampling.seed = (sampling.seed + index) % SEEDS
    return query
