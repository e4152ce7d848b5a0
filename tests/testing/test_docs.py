"""What docs/testing.md tells readers to type, typed; and that it needs neither pytest nor torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "testing.md").read_text(), re.MULTILINE | re.DOTALL)
BARE = "import sys; import swarm.testing; print(*{'pytest', 'torch', 'hivemind'} & set(sys.modules))"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_does_what_it_says(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_imported_without_what_only_some_have() -> None:
    assert subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=60).stdout == "\n"
