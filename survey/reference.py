"""What plain transformers computes: run as a process of its own, in which nothing of swarm touches a model.

    python -m survey.reference FOLDER TYPE...

writes for each type a checkpoint and `reference.safetensors` (token ids and logits), or `impossible.txt`; then
`gradients.safetensors` and, in `layers.json`, the layers that LoRA was beside, or `untrained.txt`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from survey.configs import VOCABULARY, small_config
from survey.trained import APART, Learning, linear_layers

LENGTHS = (24, 21)
"""Tokens of the two prompts."""
MOST_PARAMETERS = 6_500_000


def build(config: Any) -> torch.nn.Module:
    """A model with random weights in which every weight matters. Raises what the library raises, and ValueError."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    text = type(config).sub_configs.get("text_config")
    inner = config.get_text_config(decoder=True) if text is not None and kind.config_class is text else config
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(inner).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"its smallest configuration that is found by name has {size:,} parameters")
    torch.manual_seed(0)
    model: torch.nn.Module = kind(inner).eval()
    for parameter in model.parameters():
        if parameter.ndim < 2:  # norms and biases begin as ones and zeros, which hide being left out
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def prompts() -> list[torch.Tensor]:
    """Token ids `[1, length]` of two sessions."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY - 1, (1, length), generator=generator) for length in LENGTHS]


def write(folder: Path, model_type: str) -> None:
    """The checkpoint of one type, its logits and its gradients."""
    model: Any = build(small_config(model_type))
    results: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for name, ids in zip("ab", prompts(), strict=True):
            results |= {f"{name}.ids": ids, f"{name}.logits": model(ids, use_cache=False).logits.float().contiguous()}
    model.save_pretrained(folder, max_shard_size="200KB")
    save_file(results, folder / "reference.safetensors")
    with saying_why(folder / "untrained.txt"):
        layers = linear_layers(model)
        learning, ids = Learning(model, layers), together(prompts())
        found, again = learning.gradients(ids), learning.one_by_one(ids)
        save_file(found | {APART + name: each for name, each in again.items()}, folder / "gradients.safetensors")
        (folder / "layers.json").write_text(json.dumps(layers), encoding="utf-8")


def together(ids: list[torch.Tensor]) -> torch.Tensor:
    """The beginnings of prompts `[1, length]` as a batch."""
    return torch.cat([each[:, : min(LENGTHS)] for each in ids])


@contextlib.contextmanager
def saying_why(path: Path, longest: int | None = None) -> Iterator[None]:
    """Whatever goes wrong is written to a file, in at most `longest` characters."""
    try:
        yield
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        path.write_text(words[:longest], encoding="utf-8")


def write_each(arguments: list[str], write: Callable[[Path, str], None], longest: int | None = None) -> None:
    """For each type that is named after the folder what `write` makes in a folder of its own, or why it cannot: in at
    most `longest` characters."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for model_type in arguments[1:]:
        folder = Path(arguments[0]) / model_type
        folder.mkdir(parents=True)
        with saying_why(folder / "impossible.txt", longest):
            write(folder, model_type)


if __name__ == "__main__":
    write_each(sys.argv[1:], write)
