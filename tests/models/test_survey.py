"""What docs/architectures.md says of transformers' causal LMs is what this code does with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from swarm.models.survey.configs import VARIANTS
from swarm.models.survey.run import all_types
from swarm.models.survey.table import read_page

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


def survey(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what the library warns of does not become an outcome."""
    command = [sys.executable, "-W", "ignore", "-m", "swarm.models.survey", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.skipif(
    f"transformers {transformers.__version__})" not in PAGE.read_text(encoding="utf-8"),
    reason="the page was written with another version of transformers",
)
def test_the_page_says_what_happens_to_every_type(tmp_path: Path) -> None:
    done = survey("--write", str(tmp_path / "page.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    written = read_page((tmp_path / "page.md").read_text(encoding="utf-8"))
    assert written == read_page(PAGE.read_text(encoding="utf-8"))
    assert sorted(written) == all_types()
    assert sum(kind != "refused" for kind in written.values()) >= 100


def test_every_refusal_says_why() -> None:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and "| refused |" in line:
            assert len(line.split("|")[3].split()) >= 4, line


def test_variants_of_rotary_embeddings_windows_and_heads_are_exact() -> None:
    done = survey(*VARIANTS)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = dict(line.split()[:2] for line in done.stdout.splitlines())
    assert kinds.keys() == VARIANTS.keys()
    assert {name for name, kind in kinds.items() if kind != "batched"} == {"falcon+alibi"}
    assert kinds["falcon+alibi"] == "unbatched"
