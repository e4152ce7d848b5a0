"""The few things that only real processes, sockets and signals can show. One swarm serves all of these tests."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from swarm import DistributedLlama
from swarm.client.swarm import Swarm, connect
from swarm.demo.local_swarm import LocalSwarm

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
PROMPT = "A function definition"
TOKENS = 64

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def swarm() -> Iterator[LocalSwarm]:
    torch.set_num_threads(1)
    with LocalSwarm(MODEL) as local:
        local.start_bootstrap()
        for name, blocks in {"a": "0:4", "b": "4:8", "c": "0:4", "d": "4:8"}.items():
            local.start_server(name, blocks)
        local.wait_until_online("a", "b", "c", "d")
        yield local


@pytest.fixture(scope="module")
def joined(swarm: LocalSwarm) -> Iterator[Swarm]:
    joined = connect([swarm.peer])
    yield joined
    joined.close()


@pytest.fixture(scope="module")
def model(joined: Swarm) -> Any:
    return DistributedLlama.from_pretrained(MODEL, swarm=joined, dtype="float32")


@pytest.fixture(scope="module")
def right() -> list[int]:
    """What one process generates."""
    local = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return generate(local)


class At:
    """A streamer that lets something happen in the middle."""

    def __init__(self, happening: Callable[[], None]) -> None:
        self.happening = happening
        self.count = 0

    def put(self, value: torch.Tensor) -> None:
        self.count += 1
        if self.count == TOKENS // 2:
            self.happening()

    def end(self) -> None:
        pass


def generate(model: Any, happening: Callable[[], None] = lambda: None) -> list[int]:
    inputs = AutoTokenizer.from_pretrained(MODEL)(PROMPT, return_tensors="pt")
    options = {"max_new_tokens": TOKENS, "do_sample": False}
    return list(model.generate(**inputs, **options, streamer=At(happening))[0].tolist())


def serving(swarm: LocalSwarm, model: Any, hop: int) -> str:
    return swarm.name_of(model.route.hops[hop].peer_id)


def revive(swarm: LocalSwarm, name: str) -> None:
    swarm.start_server(name, "0:4" if name in "ac" else "4:8")
    swarm.wait_until_online(name)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_with_a_standby_a_server_is_lost(
    swarm: LocalSwarm, joined: Swarm, right: list[int], kind: signal.Signals
) -> None:
    lost: list[str] = []
    model: Any = DistributedLlama.from_pretrained(MODEL, swarm=joined, dtype="float32", standby=1)

    def lose() -> None:
        lost.append(serving(swarm, model, 1))
        swarm.signal(lost[0], kind) if kind is signal.SIGSTOP else swarm.kill(lost[0])

    assert generate(model, lose) == right
    if kind is signal.SIGSTOP:
        swarm.signal(lost[0], signal.SIGCONT)
    else:
        revive(swarm, lost[0])


def test_the_swarm_generates_what_one_process_does(swarm: LocalSwarm, model: Any, right: list[int]) -> None:
    assert generate(model) == right


def run_notebook(name: str) -> dict[str, Any]:
    """Execute the code of a notebook; what it leaves."""
    notebook = json.loads((MODEL.parent.parent / "notebooks" / f"{name}.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


def test_the_quickstart_notebook_runs(swarm: LocalSwarm, monkeypatch: pytest.MonkeyPatch, right: list[int]) -> None:
    monkeypatch.setenv("SWARM_INITIAL_PEERS", swarm.peer)
    monkeypatch.setenv("SWARM_MODEL", str(MODEL))
    assert run_notebook("quickstart")["longer"][0].tolist() == right


def test_the_notebook_of_a_lost_server_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_ROOT", str(MODEL.parent.parent))
    left = run_notebook("survive_a_lost_server")
    assert left["text"] == left["alone"]
    assert left["streamer"].killed in ("bob", "dave")
    assert [notice.kind for notice in left["notices"]] == ["route", "rerouted"]


def test_the_notebook_of_what_travels_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_ROOT", str(MODEL.parent.parent))
    left = run_notebook("what_travels_over_the_wire")
    assert left["read"][0] == 1.0
    assert left["sizes"][8192, "int8"] < 0.27 * left["sizes"][8192, "raw"]


def test_a_server_is_killed(swarm: LocalSwarm, model: Any, right: list[int]) -> None:
    killed: list[str] = []

    def kill() -> None:
        killed.append(serving(swarm, model, 1))
        swarm.kill(killed[0])

    assert generate(model, kill) == right
    revive(swarm, killed[0])


def test_a_server_freezes_and_wakes(swarm: LocalSwarm, model: Any, right: list[int]) -> None:
    frozen: list[str] = []

    def freeze() -> None:
        frozen.append(serving(swarm, model, 0))
        swarm.signal(frozen[0], signal.SIGSTOP)

    assert generate(model, freeze) == right
    assert serving(swarm, model, 0) != frozen[0]
    swarm.signal(frozen[0], signal.SIGCONT)
    assert generate(model) == right


def test_the_daemon_of_a_server_dies_alone(swarm: LocalSwarm, model: Any, right: list[int]) -> None:
    struck: list[str] = []

    def strike() -> None:
        struck.append(serving(swarm, model, 1))
        process = psutil.Process(swarm.processes[struck[0]].pid)
        (daemon,) = [child for child in process.children() if "p2pd" in child.name()]
        daemon.kill()

    assert generate(model, strike) == right
    process = swarm.processes.pop(struck[0])
    assert process.wait(timeout=60) == 1, "a server without a network says so and exits, for a supervisor to restart"
    assert "p2pd died" in swarm.log(struck[0]).read_text()
    revive(swarm, struck[0])


def test_no_daemon_outlives_its_server(swarm: LocalSwarm) -> None:
    daemons = psutil.Process(swarm.processes["a"].pid).children()
    assert daemons
    swarm.kill("a")
    psutil.wait_procs(daemons, timeout=10)
    assert not any(daemon.is_running() and daemon.status() != psutil.STATUS_ZOMBIE for daemon in daemons)
    revive(swarm, "a")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_leave_hands_over_and_exits_with_0(
    swarm: LocalSwarm, model: Any, right: list[int], how: signal.Signals
) -> None:
    left: list[str] = []

    def leave() -> None:
        left.append(serving(swarm, model, 0))
        swarm.interrupt(left[0]) if how is signal.SIGINT else swarm.signal(left[0], how)

    assert generate(model, leave) == right
    assert swarm.processes.pop(left[0]).wait(timeout=60) == 0
    revive(swarm, left[0])
