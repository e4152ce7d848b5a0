"""How much memory there is to take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swarm.memory import available_memory, container_limits


def test_this_machine_has_memory() -> None:
    assert available_memory("cpu") > 0


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has is told in /proc")
def test_a_process_may_be_limited_by_itself() -> None:
    code = "import resource; from swarm.memory import available_memory as a; "
    code += "resource.setrlimit(resource.RLIMIT_DATA, (1 << 28, resource.RLIM_INFINITY)); print(a('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 1 << 28


@pytest.mark.parametrize(("limit", "left"), [("4096", [3072]), ("max", []), (None, [])])
def test_a_container_may_have_less_than_the_machine(tmp_path: Path, limit: str | None, left: list[int]) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("1024\n")
    assert list(container_limits(tmp_path, tmp_path / "none")) == left


def test_every_group_around_a_process_limits_it_and_files_that_are_cached_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:memory:/outer/inner\n0::/outer\n")
    for group, limit, used in [("memory/outer/inner", 500, 100), ("memory/outer", 400, 350)]:
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (tmp_path / group / "memory.usage_in_bytes").write_text(f"{used}\n")
    (tmp_path / "memory/outer/memory.stat").write_text("cache 40\ntotal_inactive_file 30\n")
    assert list(container_limits(tmp_path, tmp_path / "own")) == [400, 80]
