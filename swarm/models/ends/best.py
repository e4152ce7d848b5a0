"""How many of the largest logits decide a token, by how texts are generated. Pure.

What the library does to logits before it looks at the largest ones is known of some settings. Where anything else is
set, all logits decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig

UNTOUCHED = frozenset({
    "max_length", "max_new_tokens", "early_stopping", "max_time", "stop_strings", "use_cache", "cache_implementation",
    "cache_config", "max_cache_len", "length_penalty", "num_return_sequences", "return_dict_in_generate",
    "output_attentions", "output_hidden_states", "pad_token_id", "bos_token_id", "eos_token_id",
    "decoder_start_token_id", "compile_config", "disable_compile", "prefill_chunk_size", "transformers_version",
    "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "is_assistant",
})  # fmt: skip
"""Settings that do nothing to logits."""
AFTER_TOP_K = frozenset({"temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"})
"""What only looks at those that `top_k` has left, or does the same to all of them."""
SAMPLING = AFTER_TOP_K | {"do_sample", "top_k", "top_h"}
LOWERING = frozenset({"repetition_penalty", "no_repeat_ngram_size", "min_length", "min_new_tokens", "suppress_tokens"})
"""What makes some tokens less likely and none more so, each of those that `most_lowered` counts."""
KNOWN = UNTOUCHED | SAMPLING | LOWERING
NAMES = tuple(name for name in vars(GenerationConfig()) if not name.startswith("_"))  # type: ignore[no-untyped-call]
"""Of all settings of the library."""
GIVEN = ("logits_processor", "prefix_allowed_tokens_fn", "custom_generate", "assistant_model", "negative_prompt_ids")
"""Arguments of `generate` that may look at any logit."""


def deciding_logits(get: Callable[[str], Any], options: Mapping[str, Any], longest: int) -> int:
    """How many of the largest logits of a row decide; 0: all. Those that are equal to the last of them do, too.

    `get`: how to generate, by name, None where nothing is said; `options`: the arguments of `generate`; `longest`:
    tokens of the longest text, its prompt included.
    """
    if any(options.get(name) is not None and options.get(name) != [] for name in GIVEN):
        return 0
    if not all(name in KNOWN or _is_neutral(name, get(name)) for name in NAMES):
        return 0
    if (get("repetition_penalty") or 1.0) < 1.0:
        return 0  # it makes tokens more likely
    kept = _kept(get)
    return kept + most_lowered(get, longest) if kept else 0


def _kept(get: Callable[[str], Any]) -> int:
    """How many are looked at in the end; 0: all."""
    if not get("do_sample"):
        return 1
    if get("top_h") is not None:
        return 0
    top_k = get("top_k")
    if top_k is None:
        defaults: Mapping[str, Any] = getattr(GenerationConfig, "_get_default_generation_params", dict)()
        top_k = defaults.get("top_k")
    return int(top_k or 0)


def most_lowered(get: Callable[[str], Any], longest: int) -> int:
    """How many tokens may be made less likely than they are."""
    penalty, ngrams = get("repetition_penalty"), get("no_repeat_ngram_size")
    lowered = longest if penalty not in (None, 1.0) or ngrams else 0
    suppressed, ends = get("suppress_tokens") or (), get("eos_token_id")
    if get("min_length") or get("min_new_tokens"):
        lowered += len(ends) if isinstance(ends, list | tuple) else 1
    return lowered + len(suppressed)


def _is_neutral(name: str, value: Any) -> bool:
    """Whether a setting is as if it were not there."""
    if name in ("num_beams", "num_beam_groups"):
        return value in (None, 1)
    if name in ("guidance_scale", "encoder_repetition_penalty"):
        return value in (None, 1, 1.0)
    return value is None or value is False or value in (0, 0.0)
