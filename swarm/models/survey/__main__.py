"""Survey every causal LM of transformers.

python -m swarm.models.survey [--write docs/architectures.md] [--check docs/architectures.md] [TYPE...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from swarm.models.survey.configs import BLOCKS
from swarm.models.survey.examine import Outcome, examine
from swarm.types import Span

CUTS = (Span(0, 2), Span(2, 3), Span(3, BLOCKS))


def all_types() -> list[str]:
    """The model types that transformers has a causal LM for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def survey(types: Sequence[str]) -> Iterator[Outcome]:
    """The outcome for each type. The references are computed in another process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", "swarm.models.survey.reference", folder, *types]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield from (examine(Path(folder) / model_type, CUTS) for model_type in types)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for outcome in survey(options.types or all_types()):
        sys.stdout.write(f"{outcome.model_type:28} {outcome.kind:10} {outcome.why}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
