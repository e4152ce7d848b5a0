"""What the documentation tells readers to type, typed: to a swarm of the tiny model under the name that it uses."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from swarm.demo.local_swarm import BIN, LocalSwarm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAME = "Llama-3.1-70B-Instruct"
ADDRESS = re.compile(r"/ip4/203\.0\.113\.5/tcp/31337/p2p/12D3KooW\.\.\.")
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
OTHER_OPTIONS = {"--build", "--scale", "--strict", "--build-arg", "--write"}
"""Of tools that are not ours."""


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a page in one language; shell has none written beside its fence."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def options(module: str) -> set[str]:
    main = importlib.import_module(module).main
    return {option for parameter in main.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help",
        "--version",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_is_code_and_options_exist(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)
    for text in blocks(page, "json"):
        json.loads(text)
    commands = [
        f"swarm.cli.{name}"
        for name in ("audit", "bootstrap", "chat", "credit", "demo", "gateway", "plan", "serve", "status")
    ]
    named = set(re.findall(r"python -m benchmarks (\w+)", page.read_text())) - {"NAME", "all"}
    every = set().union(*map(options, [*commands, *(f"benchmarks.{name}" for name in named)]))
    quoted = " ".join(re.findall(r"`([^`\n]+)`", page.read_text()))
    told = set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]+", quoted))
    assert told - every - OTHER_OPTIONS == set()


@dataclass
class Place:
    """A swarm whose model bears the name that the pages use."""

    processes: LocalSwarm
    model: Path

    def here(self, text: str) -> str:
        """What a page says, with the addresses and the folder of this place."""
        text = re.sub(r"meta-llama/[\w.-]+", str(self.model), ADDRESS.sub(self.processes.peer, text))
        return text.replace("http://127.0.0.1:8000/v1", self.processes.url("gateway"))

    def type(self, line: str, given: str = "") -> str:
        """Run a line of shell, and return what it prints."""
        environment = dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", OMP_NUM_THREADS="1")
        typed = ["bash", "-c", self.here(line)]
        done = subprocess.run(
            typed, input=given, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("models") / NAME
    shutil.copytree(ROOT / "models" / "tiny-llama", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with LocalSwarm(folder, dtype="bfloat16") as processes:
        processes.start_bootstrap()
        processes.start_server("server", "0:8")
        processes.start_gateway("gateway")
        processes.wait_until_online("server")
        processes.wait_until_ready("gateway")
        yield Place(processes, folder)


@pytest.mark.processes
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(place: Place, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    try:
        for code in blocks(page, "python"):
            exec(place.here(code), names)
    finally:
        for value in names.values():
            if isinstance(value, openai.OpenAI):
                value.close()
    if any("print(" in code for code in blocks(page, "python")):
        assert len(capsys.readouterr().out) > 32, "it prints an answer"


@pytest.mark.processes
@pytest.mark.parametrize("page", [page for page in PAGES if "curl" in page.read_text()], ids=lambda page: page.stem)
def test_the_requests_of_a_page_are_answered(place: Place, page: Path) -> None:
    asked = [line for block in blocks(page, "") if "curl" in block for line in re.split(r"\n\n", block)]
    for line in asked:
        answer = place.type(line)
        assert f'"model": "{place.model}"' in answer or NAME in answer
        assert "error" not in answer


SHORT = re.compile(r"^swarm-(?:chat|serve|status) .*203\.0\.113\.5.*$", re.MULTILINE)
LINES = sorted({line for page in PAGES for block in blocks(page, "") for line in SHORT.findall(block)})


@pytest.mark.processes
@pytest.mark.parametrize("line", LINES)
def test_commands_of_the_pages_do_what_is_said(place: Place, line: str) -> None:
    """Those that would stay are only asked what they would do."""
    if line.startswith("swarm-serve"):
        assert "8 blocks" in place.type(f"{line} --dry-run")
    elif line.startswith("swarm-status"):
        assert "every block is served" in place.type(line)
    else:
        assert place.type(f"{line} --max-new-tokens 8", "A function definition\n").strip()
