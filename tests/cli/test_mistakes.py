"""Whatever a user passes, a command ends with one line that says what is wrong, never with a traceback."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner, Result

from swarm import net
from swarm.errors import DaemonFailed

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWSPfVm14AFBKqmwqBxnKhjQyMJDjYc7vKSPj54QZyHkUe"
COMMANDS = ("serve", "bootstrap", "status", "chat", "gateway", "plan")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def refuse(config: object) -> NoReturn:
        raise DaemonFailed("the network was reached")

    monkeypatch.setattr(net, "open", refuse)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def run(name: str, *arguments: str, model: object = "/nowhere/model") -> Result:
    usual = ["-p", PEER, *([str(model)] if name != "bootstrap" else [])]
    return CliRunner().invoke(importlib.import_module(f"swarm.cli.{name}").main, [*usual, *arguments])


def one_line(result: Result) -> str:
    """The complaint. Fails unless it is one, and all there is."""
    assert "Traceback" not in result.output, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2), result.output
    (line,) = [line for line in result.output.splitlines() if line.lower().startswith("error: ")]
    assert line.isprintable()
    return line


NUMBERS = ["-1", "0", "nan", "inf", "1e999", "9" * 30, "9" * 5000, "0.5.5"]
TEXTS = ["", " ", "a\nb\x1b[2J", "\udcff", "→\U0001f600", "::", "a:b", "[", "--", "http://[", "%s{}"]
PATHS = ["/", "/dev/null/at/all", "/dev/full", "/proc/1/mem", "folder", "text", "text/below", "a" * 300]
VALUES = [*NUMBERS, *TEXTS, *PATHS]


def options(name: str) -> Iterator[str]:
    for parameter in importlib.import_module(f"swarm.cli.{name}").main.params:
        if isinstance(parameter, click.Option) and not parameter.is_flag and not parameter.count:
            yield parameter.opts[-1]


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in COMMANDS for option in options(name)])
def test_whatever_is_passed_is_taken_or_refused_in_one_line(name: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("neither a key nor JSON")
    for value in VALUES:
        line = one_line(run(name, option, value))
        assert "(-v shows where)" not in line, (value, line)


PLACES = ["/", "/dev/null/at/all", "/dev/full", "/proc/1/mem", "folder", "text/below", "a" * 300, ""]


@pytest.mark.parametrize("place", PLACES)
def test_addresses_cannot_be_written_just_anywhere(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").touch()
    before = set(tmp_path.rglob("*"))
    for option in ("--address-file", "--edge-address-file"):
        result = run("bootstrap", option, place)
        assert result.exit_code == 1
        assert option in one_line(result)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["serve", "bootstrap", "gateway"])
@pytest.mark.parametrize("place", [*PLACES, "/proc/1/nothing/key"])
def test_an_identity_cannot_be_kept_just_anywhere(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").touch()
    line = one_line(run(name, "--identity-path", place, model=MODEL))
    assert "--identity-path" in line


def test_where_no_state_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")
    assert "pass --identity-path" in one_line(run("bootstrap"))


CONTENTS = [b"", b'{"a": ', b"[1, 2]", b"null", b'"text"', b"\xff\xfe{\x00", b"[" * 100_000]


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_files_of_a_model_that_hold_something_else(file: str, tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    for content in CONTENTS:
        (folder / file).write_bytes(content)
        line = one_line(run("gateway", model=folder))
        assert str(folder) in line, content
        assert "(-v shows where)" not in line


@pytest.mark.parametrize("name", ["serve", "status", "chat", "gateway"])
def test_what_is_no_folder_of_a_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "model.txt").write_bytes(b"GGUF")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for model, words in (
        ("model.gguf", "model.gguf is no GGUF file that can be read"),
        ("model.txt", "model.txt is a file: pass a folder, with config.json"),
        (str(tmp_path / "empty"), "holds no config.json"),
        (str(tmp_path / "loop"), "there is no folder"),
        ("./nothing", "there is no folder ./nothing"),
        ("a b/c", "is neither a folder on this machine nor a name on the hub"),
    ):
        line = one_line(run(name, model=model))
        assert words in line or name == "status"
