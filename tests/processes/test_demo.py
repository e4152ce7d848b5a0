"""swarm-demo on real processes: the answer goes on, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-P", "-m", "swarm.cli.demo"]
TINY = Path(__file__).parents[2] / "models" / "tiny-llama"
PATIENCE = 240.0


def left(place: Path) -> list[str]:
    """Processes that were started with a file in `place`."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [words] if str(place) in words else []
    return found


@pytest.mark.processes
@pytest.mark.realmodel
def test_a_real_answer_goes_on_when_a_server_is_killed(real_model: Path, tmp_path: Path) -> None:
    asked = ["--model", str(real_model), "--tokens", "24", "--kill-after", "8"]
    environment = dict(os.environ, TMPDIR=str(tmp_path))
    told = subprocess.run(
        [*COMMAND, *asked], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "Gravity is a fundamental concept in physics" in told.stdout
    assert "[killing " in told.stdout and "[rerouted: " in told.stdout
    assert "equal, token for token (24)" in told.stdout
    assert left(tmp_path) == []


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_whoever_stops_it_early_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    environment = dict(os.environ, TMPDIR=str(tmp_path), PYTHONUNBUFFERED="1")
    with subprocess.Popen(
        [*COMMAND, "--model", str(TINY)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        while not running.stdout.readline().startswith("bootstrap peer"):
            assert running.poll() is None
        deadline = time.monotonic() + PATIENCE
        while len(left(tmp_path)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)  # the first servers have been started
        running.send_signal(number)
        assert running.wait(PATIENCE) == 128 + number
    assert left(tmp_path) == []
