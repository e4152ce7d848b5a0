"""What a server may host that was told no model: those that the swarm knows, most needed first."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from swarm.errors import InvalidInput, SwarmError
from swarm.net.base import Directory
from swarm.server.needs import Need, most_needed, need
from swarm.types import printable

T = TypeVar("T")

HEADER = ("", "model", "blocks", "nobody has", "servers", "steps/s", "waiting")
OF_A_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)+", re.ASCII)


async def offers(directory: Directory) -> list[Need]:
    """The models of a swarm, most needed first. Raises InvalidInput where there is none, NetworkError."""
    models = await directory.models()
    if not models:
        raise InvalidInput("this swarm serves no model yet: swarm-serve MODEL begins")
    found = await asyncio.gather(*(directory.lookup(model.key, model.blocks) for model in models))
    return most_needed(need(model, records) for model, records in zip(models, found, strict=True))


def table(needs: Sequence[Need]) -> list[str]:
    """A numbered line for each, below a header."""
    rows = [HEADER, *(_row(number, one) for number, one in enumerate(needs, 1))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(number: int, one: Need) -> tuple[str, ...]:
    name = printable(one.model.name).replace("\n", "?")
    counts = (one.model.blocks, one.unserved, one.servers)
    return (str(number), name, *map(str, counts), f"{one.weakest:.1f}", str(one.queue))


def folders_of(patterns: Iterable[str]) -> list[Path]:
    """The folders and files of this machine that are meant: the last part of a path may hold wildcards."""
    return [found for path in map(Path, patterns) for found in sorted(path.parent.glob(path.name or "."))]


def source_of(one: Need, patterns: Sequence[str], folders: Mapping[str, Path]) -> str | None:
    """Where an allowed model comes from: a folder of this machine with these very files, or the hub; None: neither.

    `folders`: by the key of the model in them. What strangers call a model never leads to a file of this machine.
    """
    if one.model.key in folders:
        return str(folders[one.model.key])
    name = one.model.name
    allowed = any(fnmatchcase(name, pattern) for pattern in patterns)
    return name if allowed and OF_A_HUB.fullmatch(name) and ".." not in name and not Path(name).exists() else None


def first_that_fits(sources: Sequence[tuple[Need, str]], opened: Callable[[Need, str], T]) -> T:
    """What the first of these opens as. Raises InvalidInput with the reason for each when none does."""
    reasons = []
    for one, source in sources:
        try:
            return opened(one, source)
        except SwarmError as error:
            reasons.append(f"{printable(source)}: {error}")
    if not reasons:
        raise InvalidInput(
            "--models allows none of the models that this swarm knows: it takes names on the hub, * for any characters "
            "in them, and folders of this machine with their very files"
        )
    raise InvalidInput("; ".join(reasons))
