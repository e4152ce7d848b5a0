"""What audits have shown outlives the process, in a file that may be anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm.client.integrity import Standing
from swarm.client.standings import load, save
from swarm.config import ClientConfig
from swarm.errors import InvalidInput
from swarm.testing import run
from tests.attackers.attacks import Skipper
from tests.attackers.campaign import campaign, swarm


def test_who_was_convicted_is_not_used_the_next_time(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "standings.json"
    config = ClientConfig(compare=2, standings=str(file))

    async def main() -> set[str]:
        world = await swarm(3, {(1, 0): Skipper})
        outcome = await campaign(world, {"10"}, 4, config, count=8)
        await world.close()
        assert outcome.wrong == 0
        return outcome.convicted

    assert run(main()) == {"10"}
    kept = load(str(file))
    assert kept["10"].convicted and kept["11"].passed > 0
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert run(main()) == {"10"}
    assert load(str(file))["10"].failed == pytest.approx(kept["10"].failed)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "standings")
    assert load(path) == {}
    known = {"a": Standing(3.5, 0.25, 1e9), "b": Standing(0.0, 1.0, 2e9, "computed wrong")}
    save(path, known)
    assert load(path) == known


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a": 3}',
        '{"a": {"passed": 1}}',
        '{"a": {"passed": "x", "failed": 0, "at": 0, "convicted": ""}}',
    ],
    ids=["empty", "a list", "cut off", "a number", "half", "words"],
)
def test_what_is_no_such_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "standings"
    file.write_text(text)
    with pytest.raises(InvalidInput, match="standings"):
        load(str(file))


def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "standings"
    for value in (-1.0, float("nan"), float("inf")):
        file.write_text(json.dumps({"a": {"passed": value, "failed": 0, "at": 0, "convicted": ""}}))
        with pytest.raises(InvalidInput, match="cannot be"):
            load(str(file))
    with pytest.raises(InvalidInput, match="cannot be written"):
        save("/proc/nowhere/standings", {})
