"""All contact with transformers. Nothing heavy is imported before a name that needs it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm.models.ends.load import load_ends
    from swarm.models.loading.checkpoint import open_checkpoint
    from swarm.models.loading.cost import Description, describe
    from swarm.models.span.load import load_span
    from swarm.models.span.model import SpanModel

__all__ = ["Description", "SpanModel", "describe", "load_ends", "load_span", "open_checkpoint"]

_HOMES = {
    "Description": "swarm.models.loading.cost",
    "SpanModel": "swarm.models.span.model",
    "describe": "swarm.models.loading.cost",
    "load_ends": "swarm.models.ends.load",
    "load_span": "swarm.models.span.load",
    "open_checkpoint": "swarm.models.loading.checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
