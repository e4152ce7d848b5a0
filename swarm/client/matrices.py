"""An adapter as servers get it: for each hop the matrices beside its blocks, as a file with a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from swarm.types import Span


@dataclass(frozen=True, slots=True)
class Blob:
    """An adapter's matrices for some blocks, as a file, and its sha256."""

    digest: bytes
    data: bytes = field(repr=False)


class Matrices:
    """An adapter, as the files that servers get of it. `of`: that of some blocks, empty where it has nothing there;
    `check`: raises InvalidInput where the second of two files is not one of gradients of the first."""

    def __init__(
        self, of: Callable[[Span], bytes] | None, check: Callable[[bytes, bytes], None] = lambda matrices, found: None
    ) -> None:
        self._of = of or (lambda span: b"")
        self.check = check
        self.some = of is not None
        """Whether there is an adapter at all."""
        self._made: dict[Span, Blob | None] = {}

    def on(self, span: Span) -> Blob | None:
        """What is added in these blocks; None: nothing."""
        if span not in self._made:
            data = self._of(span)
            self._made[span] = Blob(hashlib.sha256(data).digest(), data) if data else None
        return self._made[span]


NOTHING = Matrices(None)
