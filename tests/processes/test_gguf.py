"""A real model out of the one file that people have: served as it is stored, by processes, of which one is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm import DistributedModelForCausalLM
from swarm.client.swarm import connect
from swarm.demo.local_swarm import LocalSwarm
from swarm.models.texts import Texts, load_tokenizer
from tests.processes.test_servers import At

pytestmark = [pytest.mark.processes, pytest.mark.realmodel]

TOKENS = 48
QUESTION = [{"role": "user", "content": "What is gravity?"}]
SERVERS = {"a": "0:15", "b": "15:30", "c": "15:30"}


@pytest.fixture(scope="module")
def swarm(real_file: Path) -> Iterator[LocalSwarm]:
    torch.set_num_threads(1)
    with LocalSwarm(real_file) as local:
        local.start_bootstrap()
        for name, blocks in SERVERS.items():
            local.start_server(name, blocks)
        local.wait_until_online(*SERVERS)
        yield local


def test_a_file_is_served_and_its_text_goes_on_when_a_server_is_killed(
    swarm: LocalSwarm, real_file: Path, real_model: Path
) -> None:
    ids = torch.tensor([Texts(load_tokenizer(str(real_file))).conversation(QUESTION)])
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": TOKENS}
    plain = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    right = plain.generate(ids, **options)
    joined = connect([swarm.peer])
    try:
        model: Any = DistributedModelForCausalLM.from_pretrained(str(real_file), swarm=joined, dtype="float32")
        killed: list[str] = []

        def kill() -> None:
            killed.append(swarm.name_of(model.route.hops[1].peer_id))
            swarm.kill(killed[0])

        assert torch.equal(model.generate(ids, **options, streamer=At(kill)), right)
        assert killed
    finally:
        joined.close()
