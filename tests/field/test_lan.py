"""Two servers and a client on one network at home, which were told nothing of each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.field.homes import HERE, MODEL, impossible
from tests.field.lab import Lab

why = impossible()
pytestmark = [pytest.mark.processes, pytest.mark.skipif(why is not None, reason=why or "")]

ASKING = """
import json, sys, torch
from swarm import DistributedLlama, connect
with connect(lan=True) as swarm:
    model = DistributedLlama.from_pretrained(sys.argv[1], swarm=swarm, dtype="float32", progress=False)
    ids = torch.arange(5, 15).unsqueeze(0)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    print(json.dumps(out.tolist()))
"""


def test_a_swarm_on_a_local_network_needs_no_address_and_no_outside(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "SWARM_LAN": "1"}
    serve = [sys.executable, "-m", "swarm.cli.serve", MODEL, "--dtype", "float32", "--threads", "1"]
    with Lab(f"lan{os.getpid()}") as home:
        home.router("router", nat="symmetric", lan="192.168.7.0/24")
        for name in ("one", "two", "three"):
            home.host(name, behind="router")
        for name, blocks in (("one", "0:4"), ("two", "4:8")):  # at the same time: neither finds the other at its start
            own = ["--blocks", blocks, "--identity-path", tmp_path / f"{name}.key"]
            with (tmp_path / f"{name}.log").open("wb") as log:
                home.popen(name, [*serve, *own], stdout=log, stderr=subprocess.STDOUT, env=environment)
        for _ in range(5):  # there may be nobody yet
            asked = home.run("three", [sys.executable, "-c", ASKING, MODEL], env=environment, timeout=120)
            if asked.returncode == 0:
                break
        assert asked.returncode == 0, asked.stderr + "".join(log.read_text() for log in tmp_path.glob("*.log"))
        local = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        ids = torch.arange(5, 15).unsqueeze(0)
        right = local.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert json.loads(asked.stdout.splitlines()[-1]) == right.tolist()
        assert sum(home.bytes_through("router")) < 20_000, "what is on one network stays there"
