"""What the checks at load cannot see of an architecture, and why it is refused."""

from __future__ import annotations

from typing import Any

from swarm.models.blocks import text_config

REASONS: dict[str, str] = {}
"""Model types whose blocks depend on something that spans do not send each other."""


def reason_to_refuse(config: Any) -> str | None:
    """Why a model of this configuration cannot be cut; None where nothing is known against it."""
    text = text_config(config)
    if getattr(text, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False):
        return "its decoder attends to an encoder"
    if getattr(text, "num_kv_shared_layers", 0):
        return "some blocks use the keys and values of others"
    if getattr(text, "hidden_size_per_layer_input", 0):
        return "every block also takes an embedding of the tokens"
    return REASONS.get(config.model_type) or REASONS.get(text.model_type)
