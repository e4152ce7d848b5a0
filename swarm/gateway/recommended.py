"""What a model's authors recommend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Recommended:
    """What the model's authors say of generation. `values`: of sampling, by its names; `ends`: what ends a text."""

    values: Mapping[str, Any]
    ends: frozenset[int]
    max_tokens: int | None = None

    @classmethod
    def of(cls, generation: Any, tokenizer: Any) -> Recommended:
        """Out of transformers' GenerationConfig. What is there for sampling counts only where they sample."""
        names = ("temperature", "top_p", "top_k", "min_p") if generation.do_sample else ()
        values = {name: getattr(generation, name, None) for name in (*names, "repetition_penalty")}
        if generation.do_sample and values["temperature"] is None:
            values["temperature"] = 1.0
        ends = generation.eos_token_id
        known = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
        return cls(values, frozenset(known - {None}), generation.max_new_tokens)
