"""What the checks at load cannot see of an architecture, and why it is refused."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from swarm.errors import UnsupportedModel
from swarm.models.blocks import text_config
from swarm.models.loading.layouts.choose import fault, settings_of

CANNOT = "cannot be cut into spans: "
"""Before a reason that is known without loading."""
_UNTRIED = "no small model of this type could be made to compare it with"
_INDEXERS = "it keeps where its indexers stand in the cache beside the blocks"
REASONS = {
    "blt": "it works on patches of bytes, with an encoder and a decoder of its own",
    "dots3_note": _UNTRIED,
    "gemma4_assistant": "it drafts from the caches of another model",
    "gemma4_unified_assistant": "it drafts from the caches of another model",
    "git": "its decoder needs an image",
    "musicgen": "it generates audio from several codebooks at once",
    "musicgen_melody": "it generates audio from several codebooks at once",
    "phi4_multimodal": _UNTRIED,
    "qwen4_exp": _INDEXERS,
    "qwen4_exp_text": _INDEXERS,
    "zamba": "its blocks share weights with each other",
}
"""Model types of which it is known, or could not be ruled out, that spans do not send each other all they need."""


def refuse(config: Any) -> None:
    """Raises UnsupportedModel where it is known before loading that a model cannot be cut or read."""
    reason = reason_to_refuse(config)
    if reason is not None:
        raise UnsupportedModel(f"{config.model_type} {CANNOT}{reason}")
    if (unread := fault(config)) is not None:
        raise UnsupportedModel(unread)


def refuse_turned(config: Any, outline: nn.Module) -> None:
    """Raises UnsupportedModel for a quantized model of which some layers are `[in, out]`: layouts are of `[out, in]`,
    which looks the same where a layer is square."""
    if settings_of(config) is not None and any(isinstance(module, Conv1D) for module in outline.modules()):
        raise UnsupportedModel(f"the layers of {config.model_type} are turned, and not read from quantized checkpoints")


def reason_to_refuse(config: Any) -> str | None:
    """Why a model of this configuration cannot be cut; None where nothing is known against it."""
    text = text_config(config)
    if getattr(text, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False):
        return "its decoder attends to an encoder"
    if getattr(text, "hidden_size_per_layer_input", 0):
        return "every block also takes an embedding of the tokens"
    return REASONS.get(config.model_type) or REASONS.get(text.model_type)
