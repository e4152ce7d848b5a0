"""What an engine asks of whatever computes for it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from swarm.jobs import Afresh, Backward, Forward
from swarm.types import SequenceKey, Span
from swarm.wire.rows import Buffer


class Runner(Protocol):
    """The blocks of a span and the KV cache of every sequence on them. Called from one thread only.

    Rows stay where the runner computes from one pass to the next: they come in by `put`, go out by `get`, and are in
    between whatever it likes, as long as it has a length and slices by row.
    """

    @property
    def can_rollback(self) -> bool:
        """Whether any positions can be forgotten, of any sequence."""

    @property
    def rollback(self) -> int:
        """How many positions can be forgotten, where that is not so, of a sequence whose segments say `rollback`."""

    @property
    def trains(self) -> bool:
        """Whether gradients go through these blocks."""

    on_block: Callable[[], None] | None
    """Called after each block of a pass: the heartbeat."""

    def put(self, rows: Buffer, count: int) -> Any:
        """Bytes of `count` rows to where they are computed."""

    def get(self, rows: Any) -> memoryview:
        """The bytes of rows."""

    def join(self, parts: Sequence[Any]) -> Any:
        """Rows one behind the other."""

    def run(self, job: Forward[Any] | Afresh[Any] | Backward[Any]) -> Any:
        """Rows of outputs. Raises whatever went wrong; what a Forward appended by then is truncated by the caller."""

    def slices(self, job: Afresh[Any] | Backward[Any]) -> Generator[None, None, Any]:
        """What `run` gives, in parts: wherever it yields, anything else may be run."""

    def check_adapter(self, data: Buffer) -> None:
        """Raises InvalidInput for the file of an adapter that cannot be applied to these blocks. From any thread."""

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None: ...
    def truncate(self, sequence: SequenceKey, length: int) -> None: ...
    def free(self, sequence: SequenceKey) -> None: ...

    def reach(self, sequence: SequenceKey) -> int:
        """The shortest length, beside 0, that `fork`, `move` and `truncate` may have now; for less they raise Gap."""

    def bytes_held(self) -> int:
        """Bytes of all KV caches."""

    def reserved_bytes(self, span: Span, length: int) -> int:
        """What a sequence of `length` positions in the blocks of `span` adds to `bytes_held`, at most: it grows with
        the length, and does not depend on how the sequence came to it. May be called from any thread."""

    def snapshot_bytes(self, span: Span) -> int:
        """What a sequence whose segments say `rollback` adds at most beside. May be called from any thread."""
