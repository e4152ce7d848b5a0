"""All contact with transformers. Nothing heavy is imported before a name that needs it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm.models.checkpoint import open_checkpoint
    from swarm.models.cost import Description, describe
    from swarm.models.load import load_span
    from swarm.models.shell import load_client_model
    from swarm.models.span import SpanModel

__all__ = ["Description", "SpanModel", "describe", "load_client_model", "load_span", "open_checkpoint"]

_HOMES = {
    "Description": "swarm.models.cost",
    "SpanModel": "swarm.models.span",
    "describe": "swarm.models.cost",
    "load_client_model": "swarm.models.shell",
    "load_span": "swarm.models.load",
    "open_checkpoint": "swarm.models.checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
