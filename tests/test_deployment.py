"""What maintainers deploy: it names commands, options and metrics that there are."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from swarm.gateway.metrics import QueryMetrics

ROOT = Path(__file__).parent.parent
BOOTSTRAP = ROOT / "bootstrap"
COMMANDS = ("bootstrap", "chat", "gateway", "serve", "status")
METRIC = re.compile(r"swarm_[a-z0-9_]+")
SUFFIXES = ("_bucket", "_sum", "_count", "_total")


def command(name: str) -> click.Command:
    return importlib.import_module(f"swarm.cli.{name}").main


def options(name: str) -> set[str]:
    return {option for parameter in command(name).params for option in parameter.opts}


def calls(text: str) -> list[tuple[str, set[str]]]:
    """Commands of ours in a text, and the long options that follow in the same command."""
    flat = text.replace("\\\n", " ").replace('", "', " ")
    found = re.findall(r"\bswarm-(bootstrap|chat|gateway|serve|status)\b([^\n]*)", flat)
    return [(name, set(re.findall(r"(--[a-z][a-z-]+)", rest))) for name, rest in found]


FILES = [*BOOTSTRAP.glob("*.service"), BOOTSTRAP / "compose.yaml", BOOTSTRAP / "Containerfile", ROOT / "README.md"]
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("index", "contribute", "private", "operating")]


@pytest.mark.parametrize("file", [*FILES, *PAGES], ids=lambda file: file.name)
def test_options_that_are_written_down_exist(file: Path) -> None:
    known = {"--scale", "--help", "--build-arg"}
    for name, used in calls(file.read_text()):
        assert used - options(name) - known == set(), f"{file.name}: swarm-{name}"


def test_services_begin_with_the_command_and_can_write_only_their_state() -> None:
    for name in ("bootstrap", "serve", "gateway"):
        text = (BOOTSTRAP / f"swarm-{name}.service").read_text()
        start = re.search(r"ExecStart=((?:.|\\\n)*?[^\\])\n", text)
        assert start is not None
        assert shlex.split(start[1].replace("\\\n", " "))[0] == f"/opt/swarm/bin/swarm-{name}"
        assert "ProtectSystem=strict" in text
        assert "DynamicUser=yes" in text


def shown() -> set[str]:
    """Metrics in the code: of query nodes by asking, of the others by reading."""
    registry = CollectorRegistry()
    QueryMetrics(registry)
    sources = [*(ROOT / "swarm").rglob("metrics.py")]
    named = {name for source in sources for name in re.findall(r'"(swarm_[a-z0-9_]+)"', source.read_text())}
    return named | {family.name for family in registry.collect()}


def bare(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def test_the_dashboard_and_the_handbook_name_metrics_that_there_are() -> None:
    there = {bare(name) for name in shown()}
    dashboard = json.loads((BOOTSTRAP / "grafana.json").read_text())
    drawn = {
        bare(m) for panel in dashboard["panels"] for target in panel["targets"] for m in METRIC.findall(target["expr"])
    }
    table = (ROOT / "docs" / "operating.md").read_text().partition("## Metrics")[2].partition("## Traces")[0]
    told = {bare(name) for name in METRIC.findall(table)}
    assert drawn <= there
    assert told == there


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("name", COMMANDS)
def test_shells_complete_every_command(name: str, shell: str) -> None:
    assert f"_SWARM_{name.upper()}_COMPLETE={shell}_complete" in told_to_shells(name, f"{shell}_source")
    assert "plain,--initial-peers" in told_to_shells(name, "bash_complete", "--")


@pytest.mark.parametrize("name", ["chat", "gateway", "serve", "status"])
def test_shells_complete_a_model_by_its_folder_and_leave_addresses_alone(name: str) -> None:
    assert told_to_shells(name, "bash_complete", "models/ti") == "dir,models/ti\n"
    assert told_to_shells(name, "bash_complete", "--initial-peers", "/ip4/12").strip() == ""


def told_to_shells(name: str, instruction: str, *words: str) -> str:
    """What a command answers to its shell's question, the cursor being at the end of the last word."""
    question = {
        f"_SWARM_{name.upper()}_COMPLETE": instruction,
        "COMP_WORDS": shlex.join([f"swarm-{name}", *words]),
        "COMP_CWORD": str(len(words)),
    }
    return CliRunner().invoke(command(name), prog_name=f"swarm-{name}", env=question).output
