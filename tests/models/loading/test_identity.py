"""Configurations that compute the same are one model, whatever their files look like; others are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from survey.configs import small_config
from swarm.errors import InvalidInput
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading.identity import canonical, differences, digest

Entries = dict[str, Any]
Change = Callable[[Entries], Entries]


def with_entries(**entries: Any) -> Change:
    return lambda config: config | entries


def without(*names: str) -> Change:
    return lambda config: {name: value for name, value in config.items() if name not in names}


def rope_as_of_old(config: Entries) -> Entries:
    rope = config["rope_parameters"]
    return without("rope_parameters")(config) | {"rope_theta": rope["rope_theta"], "rope_scaling": None}


SAME: dict[str, Change] = {
    "another order": lambda config: dict(reversed(config.items())),
    "a default left out": without("attention_bias", "mlp_bias", "hidden_act", "tie_word_embeddings"),
    "a default written out": with_entries(is_encoder_decoder=False, attention_bias=False, pretraining_tp=1),
    "a derived value left out": without("head_dim"),
    "another kind of number": with_entries(rope_parameters={"rope_theta": 10000, "rope_type": "default"}),
    "rope in the old words": rope_as_of_old,
    "labels": with_entries(
        _name_or_path="elsewhere", transformers_version="4.1.0", architectures=["Other"], id2label={"0": "x"},
        auto_map={"AutoConfig": "x.y"}, tokenizer_class="T",
    ),
    "no labels": without("architectures", "transformers_version", "_name_or_path"),
    "dtype": with_entries(dtype="bfloat16"),
    "dtype in the old word": with_entries(torch_dtype="float16"),
    "what is given out": with_entries(use_cache=False, output_attentions=True, return_dict=False),
    "special tokens": with_entries(pad_token_id=5, bos_token_id=6, eos_token_id=[7, 8]),
    "how it was trained": with_entries(attention_dropout=0.3, initializer_range=0.5, gradient_checkpointing=True),
    "how to generate": with_entries(max_length=99, temperature=0.3, top_p=0.5, do_sample=True, num_beams=4),
    "what no code reads": with_entries(unsloth_version="2025.1", my_note="kept by hand", license="mit"),
    "nothing": with_entries(quantization_config=None, sliding_window=None, _attn_implementation_autoset=True),
}  # fmt: skip

OTHER: dict[str, Change] = {
    "rope base": with_entries(rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}),
    "rope scaling": with_entries(rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}),
    "eps": with_entries(rms_norm_eps=1e-5),
    "activation": with_entries(hidden_act="gelu"),
    "heads": with_entries(num_key_value_heads=4, head_dim=24),
    "biases": with_entries(attention_bias=True),
    "tied": with_entries(tie_word_embeddings=True),
    "context": with_entries(max_position_embeddings=77),
    "vocabulary": with_entries(vocab_size=320),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = small_config("llama")
    config.head_dim = config.hidden_size // config.num_attention_heads
    config.rms_norm_eps, config.tie_word_embeddings = 1e-6, False
    config.rope_parameters = {"rope_theta": 10000.0, "rope_type": "default"}
    config.save_pretrained(folder)
    return folder


def changed(folder: Path, change: Change, to: Path) -> Any:
    (to / "config.json").write_text(json.dumps(change(json.loads((folder / "config.json").read_text()))))
    return AutoConfig.from_pretrained(to)


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_matter_is_one_identity(llama: Path, tmp_path: Path, name: str) -> None:
    config, other = AutoConfig.from_pretrained(llama), changed(llama, SAME[name], tmp_path)
    assert differences(config, other) == []
    assert digest(config) == digest(other)


@pytest.mark.parametrize("name", OTHER)
def test_what_matters_is_another(llama: Path, tmp_path: Path, name: str) -> None:
    config, other = AutoConfig.from_pretrained(llama), changed(llama, OTHER[name], tmp_path)
    assert differences(config, other) != []
    assert digest(config) != digest(other)


TYPES = ("gemma3", "qwen3_next", "gpt2", "gpt_oss", "phi3", "granitemoehybrid", "mixtral", "bloom", "gemma4_text")


@pytest.mark.parametrize("model_type", TYPES)
def test_a_configuration_is_what_it_is_when_it_was_saved_in_any_way(tmp_path: Path, model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]() if model_type == "gemma3" else small_config(model_type)
    (tmp_path / "diff").mkdir()
    (tmp_path / "full").mkdir()
    config.to_json_file(tmp_path / "diff" / "config.json", use_diff=True)
    config.to_json_file(tmp_path / "full" / "config.json", use_diff=False)
    read = [AutoConfig.from_pretrained(tmp_path / name) for name in ("diff", "full")]
    assert canonical(read[0]) == canonical(read[1])
    assert digest(read[0]) == digest(read[1])


def test_a_part_of_a_configuration_that_differs_is_named() -> None:
    one, other = CONFIG_MAPPING["gemma3"](), CONFIG_MAPPING["gemma3"]()
    other.text_config.rms_norm_eps = 0.5
    assert differences(one, other) == ["text_config.rms_norm_eps"]
    assert digest(one) != digest(other)


def test_a_checkpoint_takes_another_configuration_only_where_it_computes_the_same(llama: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(llama)
    config = AutoConfig.from_pretrained(llama, use_cache=False)
    assert checkpoint.with_config(config).config.use_cache is False
    assert checkpoint.config.use_cache is True
    config.rms_norm_eps = 0.5
    with pytest.raises(InvalidInput, match="config: rms_norm_eps differ"):
        checkpoint.with_config(config)
