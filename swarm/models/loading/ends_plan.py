"""Where the embeddings and the head of a model are to be, and what that takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from swarm.config import DISK, FILE, HEADS, MEMORY, REMOTE
from swarm.errors import InvalidInput, NotEnoughMemory, UnsupportedModel
from swarm.memory import size
from swarm.models.linear.schemes import BITS, can_quantize

WORKING = 64 << 20
"""Bytes beside the result: a part of a weight as it is read, cast and laid out."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One that a checkpoint has: `stored` bytes, perhaps on a grid that there is a kernel for."""

    rows: int
    columns: int
    stored: int
    on_grid: bool

    @property
    def numbers(self) -> int:
        """How many."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class EndsFiles:
    """What a checkpoint has of a model's ends. `embeddings`, `head`: None where they are no plain matrix, and only in
    memory; `tied`: they are one; `others`: numbers of all else that is loaded."""

    name: str
    embeddings: Matrix | None
    head: Matrix | None
    tied: bool
    others: int


@dataclass(frozen=True, slots=True)
class EndsPlan:
    """`embeddings`: MEMORY, DISK or REMOTE; `head`: one of `HEADS`, or REMOTE. Bytes that head and all else take in
    memory, what is taken while they are loaded, and what stays on disk; embeddings in memory are the head, or among all
    else."""

    name: str
    embeddings: str
    head: str
    head_bytes: int
    other_bytes: int
    peak: int
    on_disk: int

    @property
    def words(self) -> str:
        """In one line."""
        parts = [f"{size(self.on_disk)} stay on disk"] if self.on_disk else []
        parts += ["the head is at servers"] if self.head == REMOTE else []
        if self.head_bytes:
            scheme = "" if self.head == MEMORY else f" as {self.head}"
            parts += [f"{size(self.head_bytes)} of memory for the head{scheme}"]
        return f"ends of {self.name}: {', '.join([*parts, f'{size(self.other_bytes)} for all else'])}"


def plan_ends(
    files: EndsFiles, asked: str | None, itemsize: int, scheme: str, free: int, embeddings: str | None = None
) -> EndsPlan:
    """Where they are to be. `asked`: one of `HEADS`, or REMOTE; None: on the checkpoint's grid where the blocks are on
    it, too, else in memory where it fits, else on disk. `itemsize`: bytes of a number that is computed with; `scheme`:
    of the blocks; `free`: bytes that may be taken.

    Embeddings stay on disk, unless the head is the same and in memory; or they are asked for as REMOTE, as the head is.
    Raises InvalidInput, UnsupportedModel, and NotEnoughMemory where what is asked for takes more than is free.
    """
    if embeddings is not None:
        return _without_embeddings(files, asked, embeddings, itemsize, free)
    if asked is not None:
        check_head(asked)
        _check_possible(files, asked)
        return _fitting(files, asked, itemsize, free)
    by_file = scheme == FILE and files.head is not None and files.head.on_grid
    usual = _plan(files, FILE if by_file else MEMORY, itemsize)
    return usual if usual.peak <= free or files.head is None else _fitting(files, DISK, itemsize, free)


def _without_embeddings(files: EndsFiles, head: str | None, asked: str, itemsize: int, free: int) -> EndsPlan:
    if asked != REMOTE:
        raise InvalidInput(f"embeddings={asked!r}: there is {REMOTE}; left out, they stay on disk")
    if head != REMOTE:
        raise InvalidInput("embeddings='remote' goes with head='remote': who has the head can have them, too")
    if files.embeddings is None:
        raise UnsupportedModel(f"embeddings='remote': those of {files.name} are no plain table; leave it out")
    _check_possible(files, REMOTE)
    return replace(_fitting(files, REMOTE, itemsize, free), embeddings=REMOTE, on_disk=0)


def check_head(asked: str) -> None:
    """Raises InvalidInput for a place or a scheme that there is not."""
    if asked not in (*HEADS, REMOTE):
        raise InvalidInput(f"head={asked!r}: there is {', '.join((*HEADS, REMOTE))}")


def _check_possible(files: EndsFiles, asked: str) -> None:
    head = files.head
    if asked == MEMORY:
        return
    if head is None:
        raise UnsupportedModel(f"head={asked!r}: the head of {files.name} is no plain layer; leave it out")
    if asked == FILE and not head.on_grid:
        raise UnsupportedModel(f"head={asked!r}: the head of {files.name} is on no grid that there is a kernel for")
    if asked in BITS and not can_quantize(head.columns):
        raise UnsupportedModel(f"head={asked!r}: the {head.columns} columns of this head do not divide into groups")


def _fitting(files: EndsFiles, head: str, itemsize: int, free: int) -> EndsPlan:
    plan = _plan(files, head, itemsize)
    if plan.peak <= free:
        return plan
    smaller = [_plan(files, other, itemsize) for other in _others(files, head)]
    fits = ", ".join(f"head={each.head!r} takes {size(each.peak)}" for each in smaller if each.peak <= free)
    raise NotEnoughMemory(
        f"{plan.words}; loading it takes {size(plan.peak)}, and {size(free)} may be taken; "
        f"{fits or 'free some memory, or ask a query node'}"
    )


def _others(files: EndsFiles, head: str) -> list[str]:
    """What else could be asked for."""
    found = []
    for other in HEADS:
        try:
            _check_possible(files, other)
        except UnsupportedModel:
            continue
        found += [other] if other != head else []
    return found


def _plan(files: EndsFiles, head: str, itemsize: int) -> EndsPlan:
    table, matrix = files.embeddings, files.head
    together = files.tied and head == MEMORY
    on_disk = 0 if table is None or together else table.stored
    rest = files.others * itemsize
    taken, peak = 0, 0
    if matrix is not None:
        plain = matrix.numbers * itemsize
        if head == MEMORY:
            # A head of its own is laid out for the processor beside what was read; numbers are cast beside theirs.
            taken, peak = plain, plain + (matrix.stored if files.tied else max(plain, matrix.stored))
        elif head == DISK:
            on_disk += 0 if files.tied else matrix.stored
        elif head != REMOTE:
            taken = peak = matrix.stored if head == FILE else int(matrix.numbers * BITS[head] / 8)
    place = MEMORY if table is None or together else DISK
    return EndsPlan(files.name, place, head, taken, rest, rest + peak + WORKING, on_disk)
