"""What the commands share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from swarm.cli.identity import identity, state_dir
from swarm.cli.network_options import edge_beside
from swarm.cli.values import size_of, span_of
from swarm.errors import InvalidInput
from swarm.memory import size
from swarm.types import Span

COMMANDS = ["serve", "bootstrap", "status", "plan", "audit"]
HEAVY = {"torch", "transformers", "hivemind", "libp2p", "numpy", "tqdm"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy_and_documents_exit_codes(command: str) -> None:
    code = (
        f"import sys\nfrom swarm.cli.{command} import main\nmain(['--help'], standalone_mode=False)\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert not set(loaded.split()) & HEAVY
    assert "Exit codes: 0" in " ".join(text.split())


@click.command()
@click.option("--span", callback=span_of)
@click.option("--memory", callback=size_of)
def parse(span: Span | None, memory: int | None) -> None:
    click.echo(f"{span} {memory}")


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "None None"),
        (["--span", "10:20"], "10:20 None"),
        (["--memory", "512"], "None 512"),
        (["--memory", "1.5GiB"], f"None {3 * 1024**3 // 2}"),
        (["--memory", "12 GB"], "None 12000000000"),
        (["--memory", "800m"], "None 800000000"),
    ],
)
def test_spans_and_sizes_are_read(arguments: list[str], printed: str) -> None:
    assert CliRunner().invoke(parse, arguments).output.strip() == printed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--span", "10-20"], "write it as first:last"),
        (["--span", "20:10"], "empty or negative"),
        (["--memory", "much"], "write it as 500MB or 12GiB"),
    ],
)
def test_what_cannot_be_read_is_wrong_usage(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(parse, arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (5 << 30, "5.0 GiB")])
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_the_key_is_where_the_platform_keeps_state() -> None:
    assert state_dir({"XDG_STATE_HOME": "/var/state"}, "linux") == Path("/var/state/swarm")
    assert state_dir({"XDG_STATE_HOME": "relative"}, "linux") == Path.home() / ".local/state/swarm"
    assert state_dir({}, "darwin") == Path.home() / "Library/Application Support/swarm"


def test_two_servers_of_one_user_do_not_share_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    with identity(None, "serve") as first:
        assert first == str(tmp_path / "swarm" / "serve.key")
        with identity(None, "serve") as second, identity(None, "bootstrap") as other:
            assert second is None
            assert other == str(tmp_path / "swarm" / "bootstrap.key")
    with identity(None, "serve") as again:
        assert again == first


def test_a_key_that_was_asked_for_and_is_in_use_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "my.key")
    with identity(path, "serve") as first:
        assert first == path
        with pytest.raises(InvalidInput, match="in use"), identity(path, "serve"):
            pass


@pytest.mark.parametrize(
    ("host", "ports"),
    [
        ("/ip4/10.0.0.1/tcp/31337", ("ip4/10.0.0.1", 31338, 31339)),
        ("/ip6/::/udp/4001/quic-v1", ("ip6/::", 4002, 4003)),
        ("/ip4/127.0.0.1/tcp/0", ("ip4/127.0.0.1", 0, 0)),
        ("/ip4/127.0.0.1/tcp/65535", ("ip4/127.0.0.1", 0, 0)),
        ("/dns4/example.org/tcp/1", ("ip4/0.0.0.0", 0, 0)),
    ],
)
def test_browsers_are_served_at_the_ports_after_the_peers_own(host: str, ports: tuple[str, int, int]) -> None:
    ip, one, two = ports
    assert edge_beside([host]) == (
        f"/{ip}/udp/{one}/webrtc-direct",
        f"/{ip}/udp/{two}/quic-v1/webtransport",
        f"/{ip}/tcp/{one}/ws",
    )
