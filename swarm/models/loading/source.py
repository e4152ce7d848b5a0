"""Where blocks may come from beside the checkpoint: somebody else's copy, in the file that is kept of each.

Such a file may be anything. What is in it counts by its fingerprint alone, which is computed here of all that is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import GridDigest
from swarm.models.loading import fingerprint
from swarm.models.loading.block_cache import Damaged, KeptBlock
from swarm.models.loading.block_parts import Part
from swarm.models.loading.safetensors import LENGTH

MOST_HEADER = 16 << 20
"""Bytes of a header that is read of a file that came from elsewhere."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A block that is not here. `path`: where its file is to be, once it is right; `most`: bytes that it can have.

    `fingerprint` gives that of a file that is said to be the block's. `compare` looks into the checkpoint at some
    places whether such a file was made of it; for a checkpoint on the hub it fetches these. Both raise Damaged where
    the file is not what it should be; `compare` also BadCheckpoint and ModelNotFound.
    """

    block: int
    path: Path
    most: int
    fingerprint: Callable[[Path], bytes]
    compare: Callable[[Path], None]


class BlockSource(Protocol):
    """Somebody who may have blocks."""

    def fetch(self, wanted: Sequence[Wanted], rest: Sequence[int]) -> None:
        """Put at their places those that can be had, and are right. `rest`: further blocks that are loaded, of which no
        file is kept. For threads; takes its time. Raises ModelNotFound where the checkpoint must not be read instead.
        """


def fingerprint_of(kept: KeptBlock, block: int, parts: Mapping[str, Part]) -> bytes:
    """Of what is in a file; `parts`: all that the block has. No more of it is in memory at once than the checkpoint
    has in its largest tensor on no grid, or in an expert. Raises Damaged."""
    if kept.names() != {name: part.on_grid for name, part in parts.items()}:
        raise Damaged("it has other tensors")
    found = []
    for name, part in parts.items():
        if not kept.fits(name, part.shape):
            raise Damaged(f"{name} has another shape")
        if not part.on_grid:
            found.append(fingerprint.of_tensor(name, block, kept.plain(name)))
            continue
        digest = GridDigest()
        for grid in kept.parts(name, part.experts):
            digest.add(grid)
        kept.check(name, digest.digest())
        found.append(fingerprint.of_grid(name, block, digest.digest()))
    return fingerprint.of_block(found)


def opened(path: Path, made_of: str) -> KeptBlock:
    """A file that may be anything. Raises Damaged."""
    try:
        with path.open("rb") as file:
            if int.from_bytes(file.read(LENGTH), "little") > MOST_HEADER:
                raise Damaged("its header is too long")
        return KeptBlock(path, made_of)
    except (OSError, BadCheckpoint) as error:
        raise Damaged(str(error)) from error
