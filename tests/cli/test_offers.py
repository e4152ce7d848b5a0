"""What a server that was told no model may host, and what strangers' names may not do."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.cli.offers import first_that_fits, folders_of, source_of, table
from swarm.errors import InvalidInput, ModelNotFound
from swarm.server.needs import Need
from swarm.types import ModelInfo


def need(name: str, key: str = "k") -> Need:
    return Need(ModelInfo(key, name, 4, 8), 1, 0.0, 2, 3)


@pytest.mark.parametrize(
    ("name", "pattern", "taken"),
    [
        ("org/model", "org/*", True),
        ("org/model", "*", True),
        ("org/model", "other/*", False),
        ("org/model/file.gguf", "org/*", True),
        ("a-folder", "*", False),
        ("../org/model", "*", False),
        ("org/../../etc", "*", False),
        ("/etc/passwd", "*", False),
        ("org/model\nx", "*", False),
        ("", "*", False),
    ],
)
def test_only_names_of_a_hub_are_looked_up(name: str, pattern: str, taken: bool) -> None:
    assert source_of(need(name), [pattern], {}) == (name if taken else None)


def test_a_strangers_name_never_leads_to_a_file_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert source_of(need("org/model"), ["*"], {}) is None
    assert source_of(need("org/model", "ours"), ["*"], {"ours": tmp_path}) == str(tmp_path)


def test_folders_may_be_meant_by_wildcards(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert folders_of([str(tmp_path / "*")]) == [tmp_path / "one", tmp_path / "two"]
    assert folders_of([str(tmp_path / "one"), "org/*", str(tmp_path / "none")]) == [tmp_path / "one"]


def test_the_first_that_fits_is_hosted_and_reasons_are_told_where_none_does() -> None:
    def opened(one: Need, source: str) -> str:
        if source == "b":
            return source
        raise ModelNotFound("not here")

    assert first_that_fits([(need("a"), "a"), (need("b"), "b")], opened) == "b"
    with pytest.raises(InvalidInput, match="a: not here; c: not here"):
        first_that_fits([(need("a"), "a"), (need("c"), "c")], opened)
    with pytest.raises(InvalidInput, match="--models allows none"):
        first_that_fits([], opened)


def test_names_that_cannot_be_shown_are_not() -> None:
    header, line = table([need("bad\x1b[2J\nname")])
    assert header.split() == ["model", "blocks", "nobody", "has", "servers", "steps/s", "waiting"]
    assert line.split() == ["1", "bad?[2J?name", "4", "1", "2", "0.0", "3"]
