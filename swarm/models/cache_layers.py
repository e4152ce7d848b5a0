"""What the layers of the library's own cache hold."""

from __future__ import annotations

from typing import Any

import torch


def state_in(layer: Any) -> list[torch.Tensor]:
    """What a layer remembers of the positions that it has seen."""
    names = ("keys", "values", "conv_states", "recurrent_states", "indexer_keys")
    return [tensor for name in names for tensor in tensors_in(getattr(layer, name, None))]


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors inside dictionaries, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in inner for tensor in tensors_in(item)]
