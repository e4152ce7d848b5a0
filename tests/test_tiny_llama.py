"""The checkpoint that ships with the project loads offline and writes legible English."""

import json
import math
import re
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHECKPOINT = Path(__file__).parents[1] / "models" / "tiny-llama"


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32, local_files_only=True).eval()


def test_folder_is_at_most_8_mb() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 8_000_000


def test_has_several_layers_and_grouped_query_attention(model: LlamaForCausalLM) -> None:
    assert model.config.num_hidden_layers == 8
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.max_position_embeddings >= 1024


def test_tokenizer_round_trips_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "The import statement:\n\n\timport naïve  # 雪"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_loss_on_an_unseen_sentence_is_far_below_uniform(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    sentence = "If the file does not exist, the function raises an error and returns no value."
    ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < math.log(model.config.vocab_size) - 2


def test_reported_losses_rise_with_distance_from_the_training_text() -> None:
    report = json.loads((CHECKPOINT / "training.json").read_text())
    assert report["reference_loss"] < report["train_loss"] < report["held_out_loss"] < report["uniform_loss"]


@pytest.mark.parametrize("prompt", ["Python", "A function definition"])
def test_greedy_text_is_made_of_english_words(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str
) -> None:
    ids = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=64, do_sample=False)
    written = words(tokenizer.decode(output[0]))
    known = set(words(" ".join(topics.values())))
    assert sum(word in known for word in written) >= 0.95 * len(written)
    assert len(written) >= 32, "the text ends early"
    assert len(set(written)) >= 0.4 * len(written)
