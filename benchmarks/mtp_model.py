"""Makes `models/tiny-mtp`: a small GLM-4.5 of characters with a block that predicts one token further, trained together
on this project's own pages. `python -m benchmarks.mtp_model FOLDER`; some minutes on one core."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.modeling_layers import MtpModel

ROOT = Path(__file__).parent.parent
CHARACTERS = 128
BLOCKS = 3
STEPS, BATCH, LENGTH = 400, 8, 64


def config() -> Glm4MoeConfig:
    """Dense blocks, and experts where tokens are predicted further, as the library wants them there."""
    return Glm4MoeConfig(
        vocab_size=CHARACTERS,
        hidden_size=64,
        intermediate_size=192,
        moe_intermediate_size=96,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        first_k_dense_replace=BLOCKS,
        n_routed_experts=2,
        num_experts_per_tok=1,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        num_mtp_layers=1,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
        bos_token_id=None,
    )


def encode(text: str) -> list[int]:
    """Characters as tokens; what is not among them is left out."""
    return [ord(character) for character in text if ord(character) < CHARACTERS]


def corpus() -> torch.Tensor:
    """All pages, one behind the other."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return torch.tensor(encode("\n".join(page.read_text("utf-8") for page in pages)))


def train(steps: int = STEPS) -> tuple[Any, Any]:
    """The model and its further block."""
    torch.manual_seed(0)
    model: Any = Glm4MoeForCausalLM(config())
    mtp: Any = MtpModel(model, 1)
    parameters = list(dict.fromkeys([*model.parameters(), *mtp.parameters()]))
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    text, places = corpus(), torch.arange(1, LENGTH + 1).unsqueeze(0)
    for step in range(steps):
        begins = torch.randint(0, len(text) - LENGTH - 3, (BATCH,))
        rows = torch.stack([text[begin : begin + LENGTH + 2] for begin in begins.tolist()])
        states = model.model(rows[:, :-2]).last_hidden_state
        further = mtp.forward_layer(0, states, places, None, input_ids=rows[:, 1:-1])
        loss = loss_of(model.lm_head(states), rows[:, 1:-1])
        second = loss_of(model.lm_head(further), rows[:, 2:])
        optimizer.zero_grad()
        (loss + second).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(
                f"step {step}: {float(loss.detach()):.3f} nats a character, one further {float(second.detach()):.3f}",
                flush=True,
            )
    return model.eval(), mtp.eval()


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross entropy, nats a token."""
    return cross_entropy(logits.flatten(0, 1), tokens.flatten())


def save(model: Any, mtp: Any, folder: Path) -> None:
    """As such checkpoints are: the further block is the layer behind the last."""
    model.save_pretrained(folder)
    own = {name: each for name, each in mtp.state_dict().items() if name.startswith("layers.")}
    behind = {stored(name): each.detach().contiguous() for name, each in own.items()}
    save_file(load_file(folder / "model.safetensors") | behind, folder / "model.safetensors", metadata={"format": "pt"})


def stored(name: str) -> str:
    """What a parameter of the further block is called in checkpoints."""
    behind = name.replace("layers.0.", f"model.layers.{BLOCKS}.", 1).replace(".mtp_block.", ".")
    return behind.replace(".post_norm.", ".shared_head.norm.")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    torch.set_num_threads(1)
    save(*train(int(sys.argv[2]) if len(sys.argv) > 2 else STEPS), target)
