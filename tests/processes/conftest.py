"""How these tests start servers and query nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarm.demo import local_swarm
from tests.processes.warm import Warm


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[Warm]:
    """Those of a local swarm are forked off a process that has imported what they import."""
    with Warm() as ready, pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_swarm, "launch", ready.start)
        yield ready
