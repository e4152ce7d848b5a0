"""Query nodes as processes, asked by a client that holds no part of the model."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
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
        local.start_server("a", "0:4", "--metrics", "0")
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


def test_openais_client_meets_a_real_swarm(processes: LocalSwarm, right: str) -> None:
    with openai.OpenAI(base_url=processes.url("one"), api_key="none", max_retries=0) as client:
        assert len(client.models.list().data) == 1
        ask: Any = {"model": "tiny-llama", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
        whole = client.completions.create(**ask, logprobs=1)
        assert whole.choices[0].text == right
        assert whole.choices[0].finish_reason == "length"
        assert whole.choices[0].logprobs is not None
        assert len(whole.choices[0].logprobs.tokens or []) == TOKENS
        stream = client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == right
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == TOKENS
        with pytest.raises(openai.BadRequestError, match="chat template"):
            client.chat.completions.create(model="tiny-llama", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.BadRequestError) as long:
            client.completions.create(**{**ask, "max_tokens": 1_000_000})
        assert long.value.code == "context_length_exceeded"


def test_metrics_are_shown_by_server_and_gateway(processes: LocalSwarm, swarm: Swarm) -> None:
    ask(swarm, "tiny-llama")
    place = next(line for line in processes.log("a").read_text().splitlines() if line.startswith("metrics"))
    server = numbers(httpx.get(place.split()[1]).text)
    assert server["swarm_blocks_served"] == 4
    assert server['swarm_positions_total{phase="decode"}'] >= TOKENS - 1
    assert server["swarm_sessions_opened_total"] >= 1
    gateways = [
        numbers(httpx.get(processes.url(name).replace("/v1", "/metrics")).text) for name in ("one", "two", "three")
    ]
    assert sum(each["swarm_generation_tokens_total"] for each in gateways) >= TOKENS
    assert sum(each.get('swarm_request_success_total{finished_reason="length"}', 0) for each in gateways) >= 1
    assert all(each["swarm_num_requests_running"] == 0 for each in gateways)


def numbers(text: str) -> dict[str, float]:
    """Samples of an exposition by their names and labels."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_thirty_two_streams_at_once_through_one_gateway(processes: LocalSwarm, right: str) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        ask: Any = {"model": "tiny-llama", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        return "".join([chunk.choices[0].text async for chunk in await client.completions.create(**ask)])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=processes.url("one"), api_key="none", max_retries=0) as client:
            return list(await asyncio.gather(*(one(client) for _ in range(32))))

    assert asyncio.run(main()) == [right] * 32


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
