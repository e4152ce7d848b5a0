"""A half-open range of blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from swarm.errors import InvalidInput

_SPAN = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of blocks, `first` ≤ block < `last`, written `first:last`."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise InvalidInput(
                f"span {self.first}:{self.last} is empty or negative; write it as first:last, e.g. 10:20"
            )

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read `10:20`. Raises InvalidInput on anything else."""
        match = _SPAN.fullmatch(text.strip())
        if match is None:
            raise InvalidInput(f"{text!r} is not a span; write it as first:last, e.g. 10:20 for blocks 10 to 19")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))

    def __contains__(self, block: int) -> bool:
        return self.first <= block < self.last

    def covers(self, other: Span) -> bool:
        """Whether every block of `other` is in this span."""
        return self.first <= other.first and other.last <= self.last


def parted(span: Span, joined: Iterable[Span]) -> Span | None:
    """The first of some runs of blocks of which `span` has a part and not all; None: there is none."""
    return next(
        (run for run in joined if run.first < span.last and span.first < run.last and not span.covers(run)), None
    )


def is_inside(place: int, joined: Iterable[Span]) -> bool:
    """Whether a cut before block `place` would be within one of these runs."""
    return any(run.first < place < run.last for run in joined)
