"""What a model's authors recommend, as far as it makes sense: nobody who asks is to blame for what does not."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swarm.config import SAMPLING

log = logging.getLogger(__name__)

SOURCE = "generation_config.json"
OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
"""What counts only where the authors sample."""
UNKNOWN = (
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "encoder_no_repeat_ngram_size", "epsilon_cutoff",
    "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "guidance_scale",
    "length_penalty", "min_length", "min_new_tokens", "no_repeat_ngram_size", "num_beams", "penalty_alpha",
    "sequence_bias", "stop_strings", "suppress_tokens", "top_h", "typical_p", "watermarking_config",
)  # fmt: skip
"""What transformers would do and a query node does not."""
NOTHING: tuple[Any, ...] = (None, 0, 0.0, 1, 1.0, [], {})
"""Values that ask for nothing of these."""


@dataclass(frozen=True, slots=True)
class Recommended:
    """What the model's authors say of generation. `values`: of sampling, by its names; `ends`: what ends a text."""

    values: Mapping[str, Any]
    ends: frozenset[int]
    max_tokens: int | None = None

    @classmethod
    def of(cls, generation: Any, tokenizer: Any, vocabulary: int) -> Recommended:
        """Out of transformers' GenerationConfig. What is out of range there is left out, and said in the log."""
        samples = _usable("do_sample", generation.do_sample, lambda value: isinstance(value, bool), "true or false")
        names = (*OF_SAMPLING, "repetition_penalty") if samples else ("repetition_penalty",)
        values = {name: _value(name, getattr(generation, name, None)) for name in names}
        if samples and values["temperature"] is None:
            values["temperature"] = 1.0
        ends = generation.eos_token_id
        ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
        is_token = lambda value: _is_whole(value) and 0 <= value < vocabulary  # noqa: E731
        known = {_usable("eos_token_id", end, is_token, f"a token from 0 to {vocabulary - 1}") for end in ends}
        for name in UNKNOWN:
            if (value := getattr(generation, name, None)) not in NOTHING:
                log.warning("%s of %s is ignored: query nodes do not know it (%r)", name, SOURCE, value)
        most = _usable("max_new_tokens", generation.max_new_tokens, lambda n: _is_whole(n) and n >= 1, "at least 1")
        return cls(values, frozenset(known - {None}), most)


def _value(name: str, value: Any) -> Any:
    if name == "top_k":
        return _usable(name, value, lambda k: _is_whole(k) and k >= 0, "a whole number from 0")
    least, most = SAMPLING[name]
    return _usable(name, value, lambda number: _is_number(number) and least <= number <= most, f"{least:g} to {most:g}")


def _usable(name: str, value: Any, fits: Any, words: str) -> Any:
    if value is None or fits(value):
        return value
    log.warning("%s of %s is ignored: %r is not %s", name, SOURCE, value, words)
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
