"""The survey itself: references in processes of their own, what is examined in others."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from survey.examine import Outcome, examine
from survey.seeing import examine_seeing

CHECKOUT = Path(__file__).parents[1]


def all_types() -> list[str]:
    """The model types that transformers has a causal LM for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def survey(types: Sequence[str], jobs: int = 1, *, seeing: bool = False) -> Iterator[Outcome]:
    """The outcome for each type, in this order, from `jobs` processes of one thread each. `seeing`: as models of images
    and text."""
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        write_references(Path(folder), types, jobs, "survey.seeing" if seeing else "survey.reference")
        yield from pool.map(examine_seeing if seeing else examine, [Path(folder) / kind for kind in types])


def write_references(folder: Path, types: Sequence[str], jobs: int, module: str = "survey.reference") -> None:
    """Small checkpoints of these types in `folder`, with what plain transformers makes of them."""
    command = [sys.executable, "-W", "ignore", "-m", module, str(folder)]
    silent = subprocess.DEVNULL
    parts = [types[first::jobs] for first in range(min(jobs, len(types)))]
    running = [subprocess.Popen([*command, *part], cwd=CHECKOUT, stdout=silent, stderr=silent) for part in parts]
    failed = [process.returncode for process in running if process.wait()]
    if failed:
        raise subprocess.CalledProcessError(failed[0], command)
