"""Models without a head, and with one that classifies, are those of plain transformers on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments

from survey.configs import small_config
from swarm import DistributedModel, DistributedModelForSequenceClassification
from swarm.errors import BadCheckpoint, InvalidInput, UnsupportedModel
from tests.checkpoints import Served, prompt, spans_of

Serve = Callable[[str, int], Served]
Checkpoints = Callable[[str], Path]
KINDS = ["llama", "gpt2", "gemma2", "mixtral", "bloom", "qwen3"]
PAD = 0
CLOSE = 1e-5


def padded() -> dict[str, torch.Tensor]:
    """Texts of several lengths, padded on the right and on the left."""
    ids, mask = prompt(8, batch=3), torch.ones(3, 8, dtype=torch.long)
    mask[0, 5:], mask[1, :3] = 0, 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    servers = Served(folder, spans_of(2))
    try:
        yield servers
    finally:
        servers.close()


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_the_librarys(served: Serve, checkpoints: Checkpoints, kind: str) -> None:
    right = AutoModel.from_pretrained(checkpoints(kind), dtype=torch.float32).eval()
    model, inputs = served(kind, 2).model(DistributedModel), padded()
    assert type(model).__name__ == type(right).__name__
    assert not hasattr(model, "generate")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        got, expected = (each(**inputs, use_cache=False).last_hidden_state for each in (model, right))
    close(got[real], expected[real])


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_classifies_does_so(tmp_path: Path, kind: str) -> None:
    config = small_config(kind)
    config.num_labels, config.pad_token_id = 3, PAD
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    right = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    found, inputs = [], {**padded(), "labels": torch.tensor([2, 0, 1])}
    with serving(tmp_path) as servers:
        model = servers.model(DistributedModelForSequenceClassification)
        assert type(model).__name__ == type(right).__name__
        assert not any(parameter.requires_grad for parameter in model.parameters())
        for each in (right, model):
            each.requires_grad_(False)
            each.score.requires_grad_(True)
            output = each(**inputs, use_cache=False)
            output.loss.backward()
            found.append((output.logits.detach(), output.loss.detach(), each.score.weight.grad))
    for expected, got in zip(*found, strict=True):
        close(got, expected)


def test_a_new_head_is_the_librarys_and_is_trained_with_lora(served: Serve, checkpoints: Checkpoints) -> None:
    how: dict[str, Any] = {"num_labels": 4, "pad_token_id": PAD, "dtype": torch.float32}
    torch.manual_seed(3)
    right = AutoModelForSequenceClassification.from_pretrained(checkpoints("llama"), **how).eval()
    torch.manual_seed(3)
    options = how | {"output_loading_info": True}
    model, report = served("llama", 2).model(DistributedModelForSequenceClassification, **options)
    assert report["missing_keys"] == {"score.weight"}
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["score.weight"]
    assert torch.equal(model.score.weight, right.score.weight)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type=TaskType.SEQ_CLS, init_lora_weights=True)
    found = []
    for each in (right, model):
        tuned = get_peft_model(each, config)
        for name, parameter in sorted(tuned.named_parameters()):
            if "lora_" in name:
                generator = torch.Generator().manual_seed(len(name))
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        tuned(**padded(), labels=torch.tensor([2, 0, 3])).loss.backward()
        found.append({name: each.grad for name, each in tuned.named_parameters() if each.requires_grad})
    expected, got = found
    assert expected.keys() == got.keys() and any("score" in name for name in got)
    for name, gradient in expected.items():
        assert gradient is not None and got[name] is not None
        assert float((got[name] - gradient).norm() / gradient.norm()) < CLOSE, name


def test_a_trainer_comes_to_the_same_losses(served: Serve, checkpoints: Checkpoints, tmp_path: Path) -> None:
    ids, how = prompt(8, batch=16), {"num_labels": 2, "pad_token_id": PAD}
    ids[::2, 5:] = PAD
    data: Any = [{"input_ids": row, "attention_mask": row != PAD, "labels": int(row[0]) % 2} for row in ids]
    options: dict[str, Any] = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    options |= {"logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
    losses = []
    for here in (False, True):
        torch.manual_seed(1)
        if here:
            model = served("llama", 2).model(DistributedModelForSequenceClassification, **how)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(checkpoints("llama"), **how)
            model.requires_grad_(False).score.requires_grad_(True)
        trainer = Trainer(model, TrainingArguments(str(tmp_path), **options), train_dataset=data)
        trainer.train()
        losses.append([each["loss"] for each in trainer.state.log_history if "loss" in each])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_would_be_told_from_padding_is_refused(served: Serve) -> None:
    servers = served("llama", 2)
    model = servers.model(DistributedModelForSequenceClassification, num_labels=2)
    model.config.pad_token_id = None
    with pytest.raises(InvalidInput, match="pad_token_id: without it"):
        model(**padded())
    model.config.pad_token_id = PAD
    inputs = padded()
    inputs["input_ids"][0, 6] = 9
    with pytest.raises(InvalidInput, match=r"attention_mask: the class of row 0 is told from column 6"):
        model(**inputs)
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(InvalidInput, match="the class of row 0 is told from column 7, the last, which is padding"):
        model(inputs_embeds=embedded, attention_mask=inputs["attention_mask"])
    with torch.no_grad():
        assert model(**padded()).logits.shape == (3, 2)
    with pytest.raises(InvalidInput, match="head='int8' is where a vocabulary is"):
        servers.model(DistributedModel, head="int8")


def test_labels_that_do_not_fit_the_head_and_architectures_without_one(tmp_path: Path, served: Serve) -> None:
    config = small_config("llama")
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with serving(tmp_path) as servers, pytest.raises(BadCheckpoint, match="do not fit"):
        servers.model(DistributedModelForSequenceClassification, num_labels=5)
    with pytest.raises(UnsupportedModel, match="'granite' has no model for sequence classification in transformers"):
        served("granite", 1).model(DistributedModelForSequenceClassification, num_labels=2)
