"""A `swarm-serve` that leaves out a third of what its blocks add, otherwise in order."""

from __future__ import annotations

from typing import Any

from swarm.cli.serve import main
from swarm.models.span.model import SpanModel

right = SpanModel._forward


def wrong(self: SpanModel, job: Any) -> Any:
    """What the blocks make of it, and not quite."""
    return job.rows + 0.67 * (right(self, job) - job.rows)


if __name__ == "__main__":
    SpanModel._forward = wrong  # type: ignore[method-assign]
    main()
