"""How these tests start servers and query nodes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import pytest

from swarm.demo import local_swarm
from tests.processes.warm import Warm


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[Warm]:
    """Those of a local swarm are forked off a process that has imported what they import; where another hub is meant,
    which is read as one imports, they start as any."""
    cold, here = local_swarm.launch, hub_of(os.environ)

    def launch(
        module: str, arguments: Sequence[str], output: IO[bytes], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        start = ready.start if hub_of(environment) == here else cold
        return start(module, arguments, output, environment)

    with Warm() as ready, pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_swarm, "launch", launch)
        yield ready


def hub_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What says where models come from, and where they are kept."""
    return {name: value for name, value in environment.items() if name.startswith("HF_")}
