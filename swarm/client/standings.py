"""What a client knows of who computes right, in a file of its own: nobody else's word is in it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from swarm.client.integrity import Standing
from swarm.errors import InvalidInput
from swarm.files import read_small, write_whole
from swarm.types import PeerId

LARGEST = 64 << 20
"""Bytes of such a file."""


def load(path: str) -> dict[PeerId, Standing]:
    """What was kept there; nothing where there is no such file yet. Raises InvalidInput for what is no such file."""
    file = Path(path).expanduser()
    if not file.exists():
        return {}
    try:
        told = json.loads(read_small(file, LARGEST))
        return {str(peer): _standing(values) for peer, values in told.items()}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidInput(f"standings: {path} is no file of standings: {error}; name another, or delete it") from error


def _standing(values: dict[str, object]) -> Standing:
    standing = Standing(
        float(str(values["passed"])), float(str(values["failed"])), float(str(values["at"])), str(values["convicted"])
    )
    numbers = standing.passed, standing.failed, standing.at
    if not all(math.isfinite(number) and number >= 0.0 for number in numbers):
        raise ValueError("numbers that cannot be")
    return standing


def save(path: str, standings: dict[PeerId, Standing]) -> None:
    """Write it, whole or not at all. Raises InvalidInput where that cannot be."""
    told = json.dumps({peer: asdict(standing) for peer, standing in standings.items()})
    try:
        write_whole(Path(path).expanduser(), told.encode())
    except OSError as error:
        raise InvalidInput(f"standings: {path} cannot be written: {error}") from error
