"""swarm: run language models that are too large for one machine, together.

    from swarm import DistributedLlama
    model = DistributedLlama.from_pretrained("meta-llama/Llama-3.1-70B-Instruct")

Importing this package is cheap: torch and the network are loaded when a name that needs them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from swarm import errors
from swarm._version import __version__
from swarm.errors import SwarmError

if TYPE_CHECKING:
    from swarm.client.model import (
        DistributedLlama,
        DistributedModel,
        DistributedModelForCausalLM,
        DistributedModelForImageTextToText,
        DistributedModelForSequenceClassification,
    )
    from swarm.client.swarm import connect
    from swarm.models.ends.remote import RemoteSpan

__all__ = [
    "DistributedLlama",
    "DistributedModel",
    "DistributedModelForCausalLM",
    "DistributedModelForImageTextToText",
    "DistributedModelForSequenceClassification",
    "RemoteSpan",
    "SwarmError",
    "__version__",
    "connect",
    "errors",
]

_HOMES = {
    "DistributedLlama": "swarm.client.model",
    "DistributedModel": "swarm.client.model",
    "DistributedModelForCausalLM": "swarm.client.model",
    "DistributedModelForImageTextToText": "swarm.client.model",
    "DistributedModelForSequenceClassification": "swarm.client.model",
    "RemoteSpan": "swarm.models.ends.remote",
    "connect": "swarm.client.swarm",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
