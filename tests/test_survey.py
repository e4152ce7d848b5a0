"""What docs/architectures.md says of transformers' causal LMs is what this code does with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from survey.configs import VARIANTS
from survey.run import all_types
from survey.table import read_page

HERE = Path(__file__).parents[1]
PAGE = HERE / "docs" / "architectures.md"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a survey of every type and of their variants writes, in processes of its own: there the library may warn."""
    page = tmp_path_factory.mktemp("survey") / "page.md"
    command = [sys.executable, "-W", "ignore", "-m", "survey", "--write", str(page)]
    command += [*all_types(), *VARIANTS]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_page(page.read_text(encoding="utf-8"))


@pytest.mark.skipif(
    f"transformers {transformers.__version__})" not in PAGE.read_text(encoding="utf-8"),
    reason="the page was written with another version of transformers",
)
def test_the_page_says_what_happens_to_every_type(seen: dict[str, str]) -> None:
    said = read_page(PAGE.read_text(encoding="utf-8"))
    assert sorted(said) == all_types()
    assert said == {name: kind for name, kind in seen.items() if name not in VARIANTS}
    assert sum(kind != "refused" for kind in said.values()) >= 100


def test_every_refusal_says_why() -> None:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and "| refused |" in line:
            assert len(line.split("|")[3].split()) >= 4, line


def test_variants_of_rotary_embeddings_windows_and_heads_are_exact(seen: dict[str, str]) -> None:
    kinds = {name: seen[name] for name in VARIANTS}
    assert {name for name, kind in kinds.items() if kind != "batched"} == {"falcon+alibi"}
    assert kinds["falcon+alibi"] == "unbatched"
