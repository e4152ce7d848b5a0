"""A client and a server without p2pd in a swarm of real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm import DistributedLlama
from swarm.client.swarm import connect
from swarm.demo.local_swarm import LocalSwarm

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"

pytestmark = pytest.mark.processes


def test_what_goes_over_libp2ps_python_implementation_is_the_same_text() -> None:
    """Client to servers of both kinds, and links between them in both directions, through the loss of one."""
    torch.set_num_threads(1)
    ids = torch.arange(5, 25).unsqueeze(0)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    right = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).generate(ids, **options)
    with LocalSwarm(MODEL) as processes:
        processes.start_bootstrap()
        for name, blocks, pure in (("a", "0:3", True), ("b", "3:6", False), ("c", "6:8", True), ("d", "3:6", True)):
            processes.start_server(name, blocks, *(["--no-p2pd"] if pure else []))
        processes.wait_until_online("a", "b", "c", "d")
        with connect([processes.peer], p2pd=False) as swarm:
            model = DistributedLlama.from_pretrained(str(MODEL), swarm=swarm, dtype="float32", progress=False)
            assert torch.equal(model.generate(ids, **options), right)
            processes.kill("b")
            assert torch.equal(model.generate(ids, **options), right)
