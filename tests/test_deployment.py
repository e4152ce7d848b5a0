"""What maintainers deploy: it names commands, options and metrics that there are."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from swarm.gateway.metrics import QueryMetrics

ROOT = Path(__file__).parent.parent
BOOTSTRAP = ROOT / "bootstrap"
CONTAINERFILE = BOOTSTRAP / "Containerfile"
COMMANDS = ("bootstrap", "chat", "demo", "gateway", "serve", "status")
METRIC = re.compile(r"swarm_[a-z0-9_]+")
SUFFIXES = ("_bucket", "_sum", "_count", "_total")


def command(name: str) -> click.Command:
    return importlib.import_module(f"swarm.cli.{name}").main


def options(name: str) -> set[str]:
    return {option for parameter in command(name).params for option in parameter.opts}


def calls(text: str) -> list[tuple[str, set[str]]]:
    """Commands of ours in a text, and the long options that follow in the same command."""
    flat = text.replace("\\\n", " ").replace('", "', " ")
    found = re.findall(r"\bswarm-(bootstrap|chat|demo|gateway|serve|status)\b([^\n]*)", flat)
    return [(name, set(re.findall(r"(--[a-z][a-z-]+)", rest))) for name, rest in found]


FILES = [*BOOTSTRAP.glob("*.service"), BOOTSTRAP / "compose.yaml", CONTAINERFILE, ROOT / "README.md"]
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("index", "contribute", "private", "operating")]


@pytest.mark.parametrize("file", [*FILES, *PAGES], ids=lambda file: file.name)
def test_options_that_are_written_down_exist(file: Path) -> None:
    known = {"--scale", "--help", "--build-arg"}
    for name, used in calls(file.read_text()):
        assert used - options(name) - known == set(), f"{file.name}: swarm-{name}"


def parse(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The command's own look at its arguments. Raises click.UsageError."""
    return command(name).make_context(f"swarm-{name}", list(arguments)).params


@pytest.mark.parametrize("name", ["bootstrap", "serve", "gateway"])
def test_services_begin_with_the_command_and_can_write_only_their_state(name: str) -> None:
    text = (BOOTSTRAP / f"swarm-{name}.service").read_text()
    start = re.search(r"ExecStart=((?:.|\\\n)*?[^\\])\n", text)
    assert start is not None
    line = start[1].replace("\\\n", " ").replace("$SWARM_OPTIONS", "--public-name mine")
    executable, *arguments = shlex.split(line)
    assert executable == f"/opt/swarm/bin/swarm-{name}"
    assert parse(name, arguments)["identity_path"].startswith("${STATE_DIRECTORY}/")
    assert "ProtectSystem=strict" in text
    assert "DynamicUser=yes" in text


@pytest.mark.parametrize("name", ["bootstrap", "serve", "gateway"])
def test_systemd_understands_the_services(name: str, tmp_path: Path) -> None:
    systemd = shutil.which("systemd-analyze")
    if systemd is None:
        pytest.skip("no systemd here")
    unit = tmp_path / f"swarm-{name}.service"
    text = (BOOTSTRAP / unit.name).read_text()
    unit.write_text(text.replace(f"/opt/swarm/bin/swarm-{name}", sys.executable))
    checked = subprocess.run([systemd, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((BOOTSTRAP / "compose.yaml").read_text()))


def composed(service: str) -> tuple[str, dict[str, Any]]:
    """The command of ours that a service ends up running, and its look at its arguments."""
    line = compose()["services"][service]["command"][-1].partition("exec ")[2]
    line = line.replace('"$$MODEL"', "MODEL").replace('"$$(head -n 1 /bootstrap/addresses)"', "/ip4/10.0.0.1/tcp/1")
    name, *arguments = shlex.split(line)
    return name, parse(name.removeprefix("swarm-"), arguments)


def test_containers_are_started_with_arguments_that_the_commands_take() -> None:
    commands = {service: composed(service)[0] for service in ("bootstrap", "server", "gateway")}
    assert commands == {"bootstrap": "swarm-bootstrap", "server": "swarm-serve", "gateway": "swarm-gateway"}


def targets(job: dict[str, Any]) -> list[str]:
    """Where a job of Prometheus looks: HOST:PORT."""
    fixed = [target for each in job.get("static_configs", ()) for target in each["targets"]]
    return fixed + [f"{name}:{each['port']}" for each in job.get("dns_sd_configs", ()) for name in each["names"]]


def test_prometheus_looks_where_containers_show_metrics() -> None:
    jobs = yaml.safe_load((BOOTSTRAP / "prometheus.yml").read_text())["scrape_configs"]
    shown = {f"{service}:{composed(service)[1]['metrics'][1]}" for service in ("bootstrap", "server")}
    gateway = composed("gateway")[1]
    assert {target for job in jobs for target in targets(job)} == shown | {f"gateway:{gateway['http'][1]}"}
    assert "gateway" in gateway["allow_host"]


def mounts() -> list[list[str]]:
    return [mount.split(":") for service in compose()["services"].values() for mount in service["volumes"]]


def test_containers_mount_what_there_is() -> None:
    for source, *_ in mounts():
        assert (BOOTSTRAP / source).exists() if source.startswith("./") else source in compose()["volumes"]
    ours = {where for source, where, *options in mounts() if source in ("bootstrap", "models") and not options}
    # A volume gets its owner from the image's folder.
    assert f"install -d -o swarm -g swarm {' '.join(sorted(ours, reverse=True))}" in CONTAINERFILE.read_text()


def test_containers_publish_what_the_image_exposes() -> None:
    ours = [service for service in compose()["services"].values() if "build" in service]
    inside = {port.rpartition(":")[2] for service in ours for port in service.get("ports", ())}
    exposed = CONTAINERFILE.read_text().partition("EXPOSE ")[2].partition("\n")[0].split()
    assert {port if "/" in port else f"{port}/tcp" for port in inside} == set(exposed)


def test_browsers_are_told_ports_of_the_gateway_that_are_published() -> None:
    told = composed("gateway")[1]["edge_announce_maddrs"]
    ports = {re.sub(r"/ip4/127.0.0.1/(udp|tcp)/(\d+)/.*", r"127.0.0.1:\2:\2/\1", address) for address in told}
    assert ports <= set(compose()["services"]["gateway"]["ports"])
    assert len(ports) == 2


def shown() -> set[str]:
    """Metrics in the code: of query nodes by asking, of the others by reading."""
    registry = CollectorRegistry()
    QueryMetrics(registry)
    sources = [*(ROOT / "swarm").rglob("*metrics.py")]
    named = {name for source in sources for name in re.findall(r'"(swarm_[a-z0-9_]+)"', source.read_text())}
    return named | {family.name for family in registry.collect()}


def bare(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def test_the_dashboard_and_the_handbook_name_metrics_that_there_are() -> None:
    there = {bare(name) for name in shown()}
    dashboard = json.loads((BOOTSTRAP / "grafana" / "swarm.json").read_text())
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
    assert "plain,--verbose" in told_to_shells(name, "bash_complete", "--")


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
