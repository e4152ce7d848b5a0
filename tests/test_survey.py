"""What docs/architectures.md says of transformers' causal LMs is what this code does with them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import transformers

from survey.configs import VARIANTS, small_config
from survey.examine import Outcome, Wrong, outcome_of
from survey.images import all_seeing_types
from survey.run import all_types
from survey.table import as_page, merged, read_outcomes, read_page
from swarm.models.loading.refused import refuse
from swarm.models.span.model import SpanModel

HERE = Path(__file__).parents[1]
PAGE = HERE / "docs" / "architectures.md"


SHARE = 6
"""Of the types, every so manieth is tried where all would take too long."""


def survey(page: Path, types: Sequence[str], *, seeing: bool = False) -> dict[str, str]:
    """What a survey of some types writes to a page, in processes of its own: there the library may warn."""
    options = ["--images"] if seeing else []
    command = [sys.executable, "-W", "ignore", "-m", "survey", "--write", str(page), *options, *types]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_page(page.read_text(encoding="utf-8"), seeing=seeing)


as_written = pytest.mark.skipif(
    f"transformers {transformers.__version__})" not in PAGE.read_text(encoding="utf-8"),
    reason="the page was written with another version of transformers",
)


def _trained(page: str) -> dict[str, str]:
    """What is said of gradients, without how far off they are: that is another on another processor."""
    return {outcome.model_type: outcome.trained.partition(",")[0] for outcome in read_outcomes(page)}


@as_written
@pytest.mark.parametrize("share", [SHARE, pytest.param(1, marks=pytest.mark.soak)])
def test_the_page_says_what_happens_to_every_type(share: int, tmp_path: Path) -> None:
    said = read_page(PAGE.read_text(encoding="utf-8"))
    assert sorted(said) == all_types()
    types, page = all_types()[::share], tmp_path / "page.md"
    assert {name: said[name] for name in types} == survey(page, types)
    here, right = (_trained(each.read_text("utf-8")) for each in (page, PAGE))
    looked_at = [name for name in types if right[name]]
    assert {name: right[name] for name in looked_at} == {name: here[name] for name in looked_at}
    exact = Counter(said.values())
    assert exact["batched"] >= 110
    assert exact["batched"] + exact["stacked"] + exact["unbatched"] >= 150


@as_written
@pytest.mark.parametrize("share", [SHARE, pytest.param(1, marks=pytest.mark.soak)])
def test_the_page_says_what_happens_to_every_type_with_an_image(share: int, tmp_path: Path) -> None:
    said = read_page(PAGE.read_text(encoding="utf-8"), seeing=True)
    assert sorted(said) == all_seeing_types()
    types = all_seeing_types()[::share]
    assert {name: said[name] for name in types} == survey(tmp_path / "page.md", types, seeing=True)
    assert sum(kind in ("batched", "stacked", "unbatched") for kind in said.values()) >= 60


def test_every_refusal_says_why() -> None:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and "| refused |" in line:
            assert len(line.split("|")[3].split()) >= 4, line


def test_a_rule_that_refuses_what_is_exact_is_found() -> None:
    gemma = small_config("gemma3n_text")

    def exact() -> Sequence[SpanModel]:
        refuse(gemma)
        return []

    found = outcome_of("gemma3n_text", exact)
    assert found.kind == "wrong"
    assert "every block also takes an embedding of the tokens" in found.why


def test_a_rule_that_refuses_what_is_wrong_stands() -> None:
    gemma = small_config("gemma3n_text")

    def wrong() -> Sequence[SpanModel]:
        refuse(gemma)
        raise Wrong("another answer")

    assert outcome_of("gemma3n_text", wrong).kind == "refused"


def test_a_survey_of_some_types_leaves_what_is_said_of_others() -> None:
    page = as_page(
        [Outcome("a", "batched"), Outcome("b", "refused", "it reads minds")], [Outcome("a", "unbatched", "slow")]
    )
    assert merged(page, [Outcome("b", "batched"), Outcome("c", "stacked", "why")]) == [
        Outcome("a", "batched"),
        Outcome("b", "batched"),
        Outcome("c", "stacked", "why"),
    ]
    assert merged(page, [], seeing=True) == [Outcome("a", "unbatched", "slow")]
    assert merged(page.replace(transformers.__version__, "0.1"), [Outcome("c", "batched")]) == [Outcome("c", "batched")]


def test_variants_of_rotary_embeddings_windows_and_heads_are_exact(tmp_path: Path) -> None:
    kinds = survey(tmp_path / "page.md", [*VARIANTS])
    assert {name for name, kind in kinds.items() if kind != "batched"} == {"falcon+alibi"}
    assert kinds["falcon+alibi"] == "unbatched"
