"""A client that holds neither head nor embeddings, over real processes of which one is killed."""

from __future__ import annotations

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
NEW = 32
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
SAMPLED: dict[str, Any] = {"do_sample": True, "top_k": 20, "max_new_tokens": NEW, "min_new_tokens": NEW}


class Killer:
    """A streamer that ends a process once some tokens are there."""

    def __init__(self, swarm: LocalSwarm, model: Any) -> None:
        self._swarm, self._model, self._seen = swarm, model, 0
        self.killed = ""

    def put(self, value: torch.Tensor) -> None:
        self._seen += 1
        if self._seen == NEW // 2:
            self.killed = self._swarm.name_of(self._model.remote_blocks.head.server.peer_id)
            self._swarm.kill(self.killed)

    def end(self) -> None:
        pass


def test_the_text_survives_the_server_of_its_head() -> None:
    torch.set_num_threads(1)
    ids = torch.tensor([[1, 20, 300, 40]])
    whole = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with LocalSwarm(MODEL) as swarm:
        swarm.start_bootstrap()
        for name in ("a", "b"):
            swarm.start_server(name, "0:8", "--serve-ends")
        swarm.wait_until_online("a", "b")
        joined = connect([swarm.peer])
        try:
            assert all(server["ends"] for server in swarm.status()["servers"])  # type: ignore[attr-defined]
            how: dict[str, Any] = {"dtype": "float32", "head": "remote", "embeddings": "remote", "progress": False}
            model = DistributedLlama.from_pretrained(MODEL, swarm=joined, **how)
            killer = Killer(swarm, model)
            assert torch.equal(model.generate(ids, **GREEDY, streamer=killer), whole.generate(ids, **GREEDY))
            assert killer.killed
            texts = []
            for each in (model, whole):
                torch.manual_seed(7)
                texts.append(each.generate(ids, **SAMPLED))
            assert torch.equal(*texts)
        finally:
            joined.close()
