"""A model that sees, through three real servers, one of which is killed while it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from swarm import DistributedModelForImageTextToText
from swarm.client.swarm import connect
from swarm.demo.local_swarm import LocalSwarm
from swarm.models.pictures import open_picture
from tests.seeing import picture, save_seeing

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("default")]
TOKENS = 24


class Kill:
    """A streamer that ends the server of a hop in the middle of the answer."""

    def __init__(self, swarm: LocalSwarm, model: Any, hop: int) -> None:
        self.swarm, self.model, self.hop = swarm, model, hop
        self.count = 0
        self.killed = ""

    def put(self, value: torch.Tensor) -> None:
        self.count += 1
        if self.count == TOKENS // 2:
            self.killed = self.swarm.name_of(self.model.route.hops[self.hop].peer_id)
            self.swarm.kill(self.killed)

    def end(self) -> None:
        pass


def test_a_picture_is_described_while_a_server_is_killed(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole = save_seeing(tmp_path)
    processor: Any = AutoProcessor.from_pretrained(tmp_path)
    image = open_picture(picture(tmp_path / "picture.png"))
    inputs = processor(text="ab<image>cdef", images=image, return_tensors="pt")
    options = {"max_new_tokens": TOKENS, "do_sample": False}
    expected = whole.generate(**inputs, **options)
    with LocalSwarm(tmp_path) as local:
        local.start_bootstrap()
        spans = {"a": "0:2", "b": "2:4", "c": "4:6", "d": "2:4"}
        for name, blocks in spans.items():
            local.start_server(name, blocks)
        local.wait_until_online(*spans)
        with connect([local.peer]) as joined:
            model = DistributedModelForImageTextToText.from_pretrained(tmp_path, swarm=joined, dtype="float32")
            kill = Kill(local, model, 1)
            assert model.generate(**inputs, **options, streamer=kill).tolist() == expected.tolist()
            assert kill.killed in ("b", "d")
            assert len(model.route.hops) == 3
