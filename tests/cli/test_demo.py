"""What swarm-demo decides before it starts anything, and what it says after."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from swarm.cli import demo
from swarm.demo import story
from swarm.demo.local_swarm import BIN, LocalSwarm, uninterrupted
from swarm.demo.story import Run, little_model, spans
from swarm.errors import InvalidInput, ModelNotFound, ProcessFailed
from swarm.types import Span

TINY = Path(__file__).parents[2] / "models" / "tiny-llama"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> Path:
        raise ModelNotFound("it cannot be had: pip says: no network")

    monkeypatch.setattr("swarm.demo.smollm2.smollm2", refuse)


@pytest.mark.parametrize("blocks", [8, 9, 12, 16, 30, 80])
def test_whoever_is_lost_the_others_have_every_block(blocks: int) -> None:
    servers = {name: Span.parse(text) for name, text in spans(blocks).items()}
    for lost in servers:
        held = {block for name, span in servers.items() if name != lost for block in span}
        assert held == set(range(blocks)), lost


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_little_model_takes_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.model_and_question(None, None) == (str(TINY), demo.BEGINNING)
    assert demo.model_and_question(None, "Why?")[1] == "Why?"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "it cannot be had: pip says: no network; the little model tiny-llama takes its place"


@pytest.mark.usefixtures("offline")
def test_outside_a_repository_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "little_model", lambda: None)
    answer = CliRunner().invoke(demo.main, [])
    assert answer.exit_code == 1 and len(answer.stderr.splitlines()) == 1
    assert "no network; --model takes another one" in answer.stderr


def test_the_little_model_is_in_the_repository() -> None:
    assert little_model() == TINY and demo.blocks_of(str(TINY)) == 8


def test_a_model_given_is_taken() -> None:
    assert demo.model_and_question("some/model", None) == ("some/model", demo.QUESTION)


def test_few_blocks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LEAST", 9)
    with pytest.raises(InvalidInput, match="8 blocks"):
        demo.blocks_of(str(TINY))


def test_commands_are_written_as_they_are_typed_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr("swarm.demo.local_swarm.BIN", tmp_path / "bin")
    monkeypatch.setenv("PATH", "/nowhere")
    assert demo.words("swarm-chat", "a model") == f"{shlex.quote(str(tmp_path / 'bin' / 'swarm-chat'))} 'a model'"
    monkeypatch.chdir(tmp_path)
    assert demo.words("swarm-chat", "x") == "bin/swarm-chat x"
    (tmp_path / "bin" / "swarm-chat").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert demo.words("swarm-chat", "x") == "swarm-chat x"


def test_a_gateway_that_cannot_be_costs_a_line() -> None:
    class Without(LocalSwarm):
        def wait_until_ready(self, *names: str) -> None:
            raise ProcessFailed("gateway did not come up:\nerror: the gateway's packages are missing")

    with Without(TINY) as swarm:
        assert demo.over_http(swarm) == ["no page and no API: error: the gateway's packages are missing"]


def test_rates_count_from_the_first_token() -> None:
    run = Run([5, 6, 7], [1.0, 1.5, 3.0])
    assert run.rate == 1.0
    assert run.longest_wait(1) == 1.5 and run.longest_wait(3) == 0.0
    assert Run([5], [1.0]).rate == 0.0


def test_a_process_that_ends_says_what_it_said() -> None:
    with LocalSwarm(TINY / "nowhere", patience=30) as swarm, pytest.raises(ProcessFailed, match="did not come up"):
        swarm.peer = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWRaVHiw11mfeVPJfpYvQVEeNeHC4puqySRCDpVxBDqDz8"
        swarm.start_server("server", "0:1")
        swarm.wait_until_online("server")


def test_ctrl_c_waits_for_what_must_not_be_half() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_command_is_there() -> None:
    assert isinstance(demo.main, click.Command) and (BIN / "swarm-demo").exists()
