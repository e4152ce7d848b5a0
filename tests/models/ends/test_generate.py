"""transformers' own `generate` over spans gives the tokens of the whole model, for every kind of cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from survey.configs import small_config
from survey.examine import Client, cuts
from survey.reference import build, prompts
from swarm.models.span.load import load_span

TYPES = (
    "llama", "gemma2", "gpt_oss", "phi3", "bloom", "qwen3_next", "lfm2", "inkling_text", "granitemoehybrid", "mamba",
    "jamba", "bamba",
)  # fmt: skip


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model_type", TYPES)
def test_greedy_tokens_are_those_of_the_whole_model(tmp_path: Path, model_type: str) -> None:
    whole: Any = build(small_config(model_type))
    whole.save_pretrained(tmp_path, max_shard_size="200KB")
    client = Client(tmp_path, [load_span(tmp_path, span, progress=False) for span in cuts(6)])
    ids = prompts()[0][:, :10]
    with torch.no_grad():
        expected = whole.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
        got = client.model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert got.tolist() == expected.tolist()
