"""What a token costs a client beside its numbers."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = 32
"""Tokens by which is measured what one takes."""


def step_seconds() -> float:
    """What a token takes on this machine beside its numbers: the library's loop, over a model of next to nothing."""
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).train(False)
    ids = torch.ones(1, 1, dtype=torch.long)
    times = []
    for count in (2, 2 + STEPS):
        began = time.thread_time()
        model.generate(ids, attention_mask=ids, max_new_tokens=count, min_new_tokens=count, pad_token_id=0)
        times.append(time.thread_time() - began)
    return max(times[1] - times[0], 0.0) / STEPS
