"""What a model's authors recommend is checked at the start: it is never fatal, and never an asker's fault."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from swarm.errors import BadCheckpoint
from swarm.gateway.recommended import Recommended
from swarm.gateway.sampling import settings_of
from swarm.models.ends.load import read_generation_config
from swarm.wire import swarm_pb2 as pb

TOKENIZER = SimpleNamespace(eos_token_id=2)


def recommended(**values: Any) -> Recommended:
    config = GenerationConfig()
    for name, value in values.items():
        setattr(config, name, value)
    return Recommended.of(config, TOKENIZER, 100)


WRONG = [
    {"top_k": -1}, {"top_k": 2.5}, {"top_k": "many"}, {"temperature": -1.0}, {"temperature": "hot"},
    {"temperature": float("inf")}, {"temperature": float("nan")}, {"temperature": 1e6}, {"top_p": 1.5}, {"top_p": -0.1},
    {"min_p": 2}, {"repetition_penalty": 0.0}, {"repetition_penalty": -1}, {"repetition_penalty": [1]},
    {"max_new_tokens": 0}, {"max_new_tokens": -5}, {"max_new_tokens": "7"}, {"eos_token_id": 100}, {"eos_token_id": -1},
    {"eos_token_id": [1, "x"]}, {"eos_token_id": "</s>"},
]  # fmt: skip


@pytest.mark.parametrize("values", WRONG, ids=str)
def test_what_is_out_of_range_is_ignored_and_said(values: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    (name,) = values
    with caplog.at_level(logging.WARNING, "swarm"):
        found = recommended(do_sample=True, **values)
    assert f"{name} of generation_config.json is ignored" in caplog.text
    settings_of(pb.Sampling(), found.values, 100)
    assert found.values.get(name) in (None, 1.0)
    assert found.ends <= {1, 2}
    assert found.max_tokens is None


def test_what_is_right_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    values = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05}
    found = recommended(do_sample=True, eos_token_id=[5, 6], max_new_tokens=10**6, **values)
    assert found == Recommended(values, frozenset({2, 5, 6}), 10**6)
    assert recommended(temperature=0.6, do_sample=False).values == {"repetition_penalty": None}
    assert recommended(do_sample=True).values["temperature"] == 1.0
    assert not caplog.records


ANY = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)
NAMES = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "eos_token_id", "max_new_tokens",
         "max_length", "num_beams", "pad_token_id", "nonsense")  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), ANY, max_size=4))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")
def test_no_recommendation_is_fatal(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    config = read_generation_config(tmp_path / "generation_config.json")
    settings_of(pb.Sampling(), Recommended.of(config, TOKENIZER, 100).values, 100)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "\xff"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json is damaged"):
        read_generation_config(tmp_path / "generation_config.json")


def test_one_that_the_library_refuses_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": -5, "eos_token_id": 7}))
    assert read_generation_config(tmp_path / "generation_config.json").eos_token_id == 7
