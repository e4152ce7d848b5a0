"""Query nodes as processes, asked by a client that holds no part of the model."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.local_swarm import LocalSwarm
from swarm.client.swarm import Swarm, connect
from swarm.errors import InvalidInput
from swarm.wire import swarm_pb2 as pb

MODEL = Path(__file__).parent.parent / "models" / "tiny-llama"
PROMPT = "A function definition"
TOKENS = 48

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def processes() -> Iterator[LocalSwarm]:
    with LocalSwarm(MODEL) as local:
        local.start_bootstrap()
        local.start_server("a", "0:4")
        local.start_server("b", "4:8")
        for name in ("one", "two", "three"):
            local.start_gateway(name)
        local.wait_until_online("a", "b")
        local.wait_until_ready("one", "two", "three")
        yield local


@pytest.fixture(scope="module")
def swarm(processes: LocalSwarm) -> Iterator[Swarm]:
    with connect([processes.peer]) as joined:
        yield joined


@pytest.fixture(scope="module")
def right() -> str:
    """What one process says."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    local = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = local.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def ask(
    swarm: Swarm, name: str, on_text: Callable[[int, str], None] = lambda count, node: None, **sampling: Any
) -> str:
    pieces: list[str] = []
    nodes: list[str] = []
    options = {"temperature": 0.0, "max_tokens": TOKENS, **sampling}
    for text in swarm.ask(name, PROMPT, on_node=lambda node: nodes.append(node.name), **options):
        pieces.append(text)
        on_text(len(pieces), nodes[-1])
    return "".join(pieces)


def test_the_text_is_that_of_one_process(swarm: Swarm, right: str) -> None:
    ended: list[pb.Finished] = []
    listen = lambda reply: ended.append(reply.finished) if reply.HasField("finished") else None  # noqa: E731
    assert "".join(swarm.ask("tiny-llama", PROMPT, max_tokens=TOKENS, temperature=0.0, on_reply=listen)) == right
    assert ended[0].completion_tokens == TOKENS
    with pytest.raises(InvalidInput, match="tiny-llama"):
        ask(swarm, "another")
    with pytest.raises(InvalidInput, match="temperature"):
        ask(swarm, "tiny-llama", heat=3)


@pytest.mark.parametrize(
    ("how", "sampling"), [(signal.SIGKILL, {}), (signal.SIGSTOP, {"temperature": 0.8, "seed": 11})]
)
def test_a_query_node_lost_in_the_middle_of_an_answer_is_no_loss(
    processes: LocalSwarm, swarm: Swarm, right: str, how: signal.Signals, sampling: dict[str, Any]
) -> None:
    undisturbed = ask(swarm, "tiny-llama", **sampling)
    assert sampling or undisturbed == right
    lost: list[str] = []

    def lose(count: int, node: str) -> None:
        if count == 10:
            lost.append(node)
            processes.signal(node, how)

    assert ask(swarm, "tiny-llama", lose, **sampling) == undisturbed
    assert len(lost) == 1
