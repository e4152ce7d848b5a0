"""A server that computes wrong is found out and left, and the text is right: real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm import DistributedLlama
from swarm.client.swarm import connect
from swarm.demo.local_swarm import LocalSwarm

pytestmark = pytest.mark.processes

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"


def test_a_server_that_computes_wrong_is_found_out_by_what_it_signed(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    ids = torch.tensor([[1, 20, 300, 40]])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, "attention_mask": torch.ones_like(ids)}
    expected = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).generate(ids, **options)
    with LocalSwarm(MODEL) as swarm:
        peers = ["--initial-peers", swarm.start_bootstrap(), "--threads", "1"]
        serve = [str(MODEL), "--blocks", "0:8", "--dtype", "float32"]
        swarm._start("liar", "tests.attackers.wrong_server", *serve, *peers)
        for name in ("one", "two"):
            swarm.start_server(name, "0:8")
        swarm.wait_until_online("liar", "one", "two")
        joined = connect([swarm.peer])
        try:
            for trust in ({"compare": 2}, {"audits": True}):
                folder = tmp_path / "-".join(trust)
                for _ in range(30):  # who is asked is drawn by chance, and whoever knows two good servers stays there
                    model: Any = DistributedLlama.from_pretrained(
                        MODEL, swarm=joined, dtype="float32", evidence=str(folder), **trust
                    )
                    integrity = model.remote_blocks.view.trust.integrity
                    text = model.generate(ids, **options)
                    if "compare" in trust or integrity.convicted:
                        assert torch.equal(text, expected)
                    if integrity.convicted:
                        break
                assert [swarm.name_of(peer) for peer in integrity.convicted] == ["liar"]
                (file,) = folder.iterdir()
                check(file, next(iter(integrity.convicted)), tmp_path / "other")
        finally:
            joined.close()


def check(file: Path, liar: str, other: Path) -> None:
    """As anybody does who has the weights, and as somebody does who made up half of it."""
    done = audit(str(file), "--model", str(MODEL), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["peer"], told["answer"]) == (liar, "wrong") and told["error"] > 0.3
    other.write_bytes(file.read_bytes()[:-60] + bytes(60))
    forged = audit(str(other), "--model", str(MODEL))
    assert forged.returncode == 1 and "does not hold" in forged.stderr and not forged.stdout


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """swarm-audit as a process."""
    return subprocess.run(
        [sys.executable, "-m", "swarm.cli.audit", *arguments], capture_output=True, text=True, timeout=400, check=False
    )
