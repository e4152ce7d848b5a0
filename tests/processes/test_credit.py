"""Receipts among real processes: what both sides have on disk agrees, also after one of them was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm import DistributedLlama
from swarm.accounting.account import Account
from swarm.accounting.work import QUARTERS, WINDOW
from swarm.client.swarm import connect
from swarm.demo.local_swarm import LocalSwarm
from swarm.errors import InvalidInput

pytestmark = pytest.mark.processes

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"


def opened(folder: Path) -> Account:
    return Account.open(folder)


def between(taker: Path, giver: Path) -> tuple[int, int]:
    """What the taker has admitted, and what the giver has of it."""
    one, two = opened(taker), opened(giver)
    try:
        return one.book.pair(one.key, two.key).taken, two.book.pair(two.key, one.key).given
    finally:
        one.close()
        two.close()


def credit(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swarm.cli.credit", "--account", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_two_servers_a_contributor_and_a_stranger(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    ids = torch.tensor([[1, 20, 300, 40]])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 100, "attention_mask": torch.ones_like(ids)}
    expected = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).generate(ids, **options)
    mine = tmp_path / "mine"
    with LocalSwarm(MODEL) as swarm:
        swarm.start_bootstrap()
        halves = {"one": "0:4", "two": "4:8", "spare": "4:8"}
        for name, blocks in halves.items():
            swarm.start_server(name, blocks, "--account", str(tmp_path / name))
        swarm.wait_until_online(*halves)

        def generated(tokens: int = 100, **network: Any) -> None:
            with connect([swarm.peer], **network) as joined:
                model: Any = DistributedLlama.from_pretrained(MODEL, swarm=joined, dtype="float32")
                text = model.generate(ids, **{**options, "max_new_tokens": tokens})
                assert torch.equal(text, expected[:, : text.shape[1]])

        generated(account=str(mine))
        parameters = block_parameters()
        used = [name for name in ("two", "spare") if between(mine, tmp_path / name)[1]]
        for name in ("one", *used):
            assert between(mine, tmp_path / name) == (4 * parameters * 103,) * 2
        assert len(used) == 1
        before = json.loads(credit(tmp_path / "one", "--json").stdout)["given"]
        generated()  # a stranger
        assert json.loads(credit(tmp_path / "one", "--json").stdout)["given"] == before

        # A server is killed in the middle of a generation: what it was not signed for is a window at most.
        killed: list[str] = []
        with connect([swarm.peer], account=str(mine)) as joined:
            model: Any = DistributedLlama.from_pretrained(MODEL, swarm=joined, dtype="float32")

            def kill(*_: object) -> bool:
                count.append(1)
                if len(count) == 60:
                    route = next(iter(joined._sessions)).route
                    assert route is not None
                    killed.append(swarm.name_of(route.hops[1].peer_id))
                    swarm.processes[killed[0]].send_signal(signal.SIGKILL)
                return False

            count: list[int] = []
            stopping = [lambda ids, scores, **_: torch.tensor([kill()])]
            assert torch.equal(model.generate(ids, **options, stopping_criteria=stopping), expected)
        window = WINDOW * 4 * parameters // QUARTERS
        for name in halves:
            taken, given = between(mine, tmp_path / name)
            assert 0 <= taken - given <= window
            assert credit(tmp_path / name, "--verify").returncode == 0
        assert killed and between(mine, tmp_path / "one") == (4 * parameters * 206,) * 2

    told = json.loads(credit(mine, "--verify", "--json").stdout)
    assert told["given"] == 0 and told["links"] >= 8 and len(told["others"]) == 3
    assert told["taken"] == sum(other["taken"] for other in told["others"])
    text = credit(mine).stdout
    assert f"account  {told['account']}" in text and all(other["account"] in text for other in told["others"])


def block_parameters() -> int:
    from swarm.models.loading.cost import describe

    counts = set(describe(str(MODEL)).parameters)
    assert len(counts) == 1
    return counts.pop()


def test_what_is_no_account_is_said(tmp_path: Path) -> None:
    assert "swarm-serve begins one" in credit(tmp_path).stderr
    mine = Account.open(tmp_path)
    mine.close()
    (tmp_path / "receipts.sqlite").write_bytes(b"no database" * 1000)
    told = credit(tmp_path)
    assert told.returncode == 1 and "receipts" in told.stderr and "Traceback" not in told.stderr
    with pytest.raises(InvalidInput):
        connect(["/ip4/127.0.0.1/tcp/1/p2p/x"], accounts="x")
