"""Training scripts as people write them, over servers in processes of their own, of which one is killed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from swarm import DistributedModelForCausalLM
from swarm.demo.local_swarm import LocalSwarm
from tests.processes.test_servers import run_notebook

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
TEXTS = [f"A function definition of kind {n} defines a user-defined function object number {n}." for n in range(12)]
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_train_epochs": 2, "learning_rate": 1e-2,
    "logging_steps": 1, "report_to": [], "use_cpu": True, "seed": 1, "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    torch.set_num_threads(1)
    with LocalSwarm(MODEL) as local:
        local.start_bootstrap()
        for name, blocks in {"a": "0:4", "b": "4:8", "c": "4:8"}.items():
            local.start_server(name, blocks)
        local.wait_until_online("a", "b", "c")
        yield local


class AtStep(TrainerCallback):
    """Lets something happen in the middle of an epoch."""

    def __init__(self, step: int, happening: Callable[[], None]) -> None:
        self.step = step
        self.happening = happening

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.happening()


def losses(trainer: Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train(model: Any, folder: Path, *callbacks: TrainerCallback) -> list[float]:
    """A script for one machine."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = get_peft_model(model, LoraConfig(**LORA))
    ids = [tokenizer(text)["input_ids"][:12] for text in TEXTS]
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    arguments = TrainingArguments(str(folder), **ARGUMENTS)
    return losses(Trainer(model=model, args=arguments, train_dataset=data, callbacks=list(callbacks)))


def fine_tune(model: Any, folder: Path) -> list[float]:
    """Another, with trl: texts of several lengths, padded."""
    torch.manual_seed(0)
    arguments = SFTConfig(str(folder), max_length=24, bf16=False, **ARGUMENTS)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = tokenizer.eos_token
    data = Dataset.from_dict({"text": [text[: 30 + 4 * n] for n, text in enumerate(TEXTS)]})
    options: dict[str, Any] = {"peft_config": LoraConfig(**LORA), "processing_class": tokenizer}
    return losses(SFTTrainer(model=model, args=arguments, train_dataset=data, **options))


def close(found: list[float], expected: list[float]) -> bool:
    return len(found) == len(expected) > 4 and found == pytest.approx(expected, rel=1e-4)


def test_unmodified_scripts_lose_as_on_one_machine_though_a_server_is_killed(swarm: LocalSwarm, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": torch.float32}
    model = DistributedModelForCausalLM.from_pretrained(MODEL, initial_peers=[swarm.peer], **options)

    def kill() -> None:
        swarm.kill(swarm.name_of(model.route.hops[-1].peer_id))

    found = train(model, tmp_path, AtStep(2, kill))
    expected = train(AutoModelForCausalLM.from_pretrained(MODEL, **options), tmp_path)
    assert close(found, expected)
    assert expected[-1] < expected[0]
    model = DistributedModelForCausalLM.from_pretrained(MODEL, initial_peers=[swarm.peer], **options)
    found = fine_tune(model, tmp_path)
    assert close(found, fine_tune(AutoModelForCausalLM.from_pretrained(MODEL, **options), tmp_path))


def test_the_notebook_of_fine_tuning_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_ROOT", str(MODEL.parent.parent))
    monkeypatch.setenv("MPLBACKEND", "agg")
    left = run_notebook("fine_tuning")
    assert left["losses"] == pytest.approx(left["losses_here"], rel=1e-2)  # 24 large steps: last bits grow
    assert left["kill"].killed in ("bob", "carol")
    assert "is called Ada." in left["after"]
    assert "Ada" not in left["before"]
