"""The survey itself: references in one process, what is examined in this one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from swarm.models.survey.examine import Outcome, examine


def all_types() -> list[str]:
    """The model types that transformers has a causal LM for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def survey(types: Sequence[str]) -> Iterator[Outcome]:
    """The outcome for each type, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        write_references(Path(folder), types)
        yield from (examine(Path(folder) / model_type) for model_type in types)


def write_references(folder: Path, types: Sequence[str]) -> None:
    """Small checkpoints of these types in `folder`, with what plain transformers makes of them."""
    command = [sys.executable, "-W", "ignore", "-m", "swarm.models.survey.reference", str(folder), *types]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
