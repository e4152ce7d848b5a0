"""A model that sees, through three real servers, of which some are killed while it answers, and a query node of it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoProcessor

from swarm import DistributedModelForImageTextToText
from swarm.client.swarm import connect
from swarm.demo.local_swarm import LocalSwarm
from swarm.models.pictures import open_picture
from tests.seeing import picture, save_seeing

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("default")]
TOKENS, LONG = 24, 60


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
        local.start_gateway("node")
        local.wait_until_ready("node")
        ask_the_node(local, whole, processor, tmp_path / "picture.png")


def ask_the_node(local: LocalSwarm, whole: Any, processor: Any, path: Path) -> None:
    """The only server of the first blocks is killed in the middle of the answer, and another comes."""
    content = [{"type": "image", "image": open_picture(path)}, {"type": "text", "text": "cdef"}]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **how)
    made = whole.generate(**inputs, max_new_tokens=LONG, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(made, skip_special_tokens=True)
    url = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "cdef"}]
    asked: Any = [{"role": "user", "content": parts}]
    text = ""
    with openai.OpenAI(base_url=local.url("node"), api_key="k", max_retries=0) as client:
        model = client.models.list().data[0].id
        for chunk in client.chat.completions.create(
            model=model, messages=asked, max_tokens=LONG, temperature=0, stream=True
        ):
            before, text = text, text + (chunk.choices[0].delta.content or "")
            if text and not before:
                local.kill("a")
                local.start_server("e", "0:2")
    assert text == expected
    metrics = httpx.get(local.url("node").replace("/v1", "/metrics")).text
    assert re.search(r"^swarm_reroutes_total [1-9]", metrics, re.MULTILINE)
