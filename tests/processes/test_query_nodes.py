"""Query nodes as processes, asked by a client that holds no part of the model."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from swarm.client.swarm import Swarm, connect
from swarm.demo.local_swarm import BIN, LocalSwarm
from swarm.errors import InvalidInput
from swarm.wire import swarm_pb2 as pb
from tests.checkpoints import put_on_grids

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
PROMPT = "A function definition"
TOKENS = 48
TEMPLATE = """{%- if tools %}Tools: {{ tools | tojson }}
{% endif %}
{%- for message in messages %}
{%- if not loop.first and message.role == messages[loop.index0 - 1].role %}
{{- raise_exception("roles must alternate") }}
{%- endif %}
{{- message.role }}: {{ message.content }}
{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}"""

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
        guessed = client.completions.create(**{**ask, "max_tokens": 200}, extra_body={"speculation": "ngram"})
        plain = client.completions.create(**{**ask, "max_tokens": 200}, extra_body={"speculation": "none"})
        assert guessed.choices[0].text == plain.choices[0].text
        assert plain.choices[0].text.startswith(right)
        verified = numbers(httpx.get(processes.url("one").replace("/v1", "/metrics")).text)
        assert verified["swarm_spec_decode_num_draft_tokens_total"] > 0
        with pytest.raises(openai.BadRequestError, match="chat template"):
            client.chat.completions.create(model="tiny-llama", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.BadRequestError) as long:
            client.completions.create(**{**ask, "max_tokens": 1_000_000})
        assert long.value.code == "context_length_exceeded"


@pytest.fixture
def conversing(processes: LocalSwarm, tmp_path: Path) -> Iterator[Path]:
    """The query node "chat", whose copy of the model has a chat template."""
    folder = tmp_path / "tiny-llama"
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    processes.start_gateway("chat", model=folder)
    processes.wait_until_ready("chat")
    yield folder
    leave(processes, "chat")


def leave(processes: LocalSwarm, *names: str) -> None:
    """What Ctrl-C does."""
    for name in names:
        processes.interrupt(name)
    for name in names:
        assert processes.processes.pop(name).wait(60) == 0, processes.log(name).read_text()


def test_a_chat_goes_through_the_models_own_template(processes: LocalSwarm, conversing: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(conversing)
    local = AutoModelForCausalLM.from_pretrained(conversing, dtype=torch.float32)
    messages: list[Any] = [
        {"role": "system", "content": "Python"},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "is executable."},
        {"role": "user", "content": "A class"},
    ]
    tool = {"type": "function", "function": {"name": "look_up", "description": "Read the manual", "parameters": {}}}
    with openai.OpenAI(base_url=processes.url("chat"), api_key="none", max_retries=0) as client:
        for tools in ([], [tool]):
            inputs = tokenizer.apply_chat_template(
                messages, tools=tools or None, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            length = inputs["input_ids"].shape[1]
            output = local.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            right = tokenizer.decode(output[0, length:], skip_special_tokens=True)
            ask: Any = {"model": "tiny-llama", "messages": messages, "max_tokens": TOKENS, "temperature": 0}
            ask |= {"tools": tools} if tools else {}
            whole = client.chat.completions.create(**ask)
            assert whole.choices[0].message.content == right
            assert whole.usage is not None
            assert whole.usage.prompt_tokens == length
            stream = client.chat.completions.create(**ask, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == right
        with pytest.raises(openai.BadRequestError, match="roles must alternate"):
            client.chat.completions.create(**{**ask, "messages": [*messages, messages[-1]]})


def test_servers_that_compute_with_int8_answer_those_who_ask_for_it(processes: LocalSwarm, right: str) -> None:
    """The oracle is plain transformers with the numbers of int8 in its blocks."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    local = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    put_on_grids(local.model.layers, "int8")
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = local.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    expected = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    processes.start_server("eight", "0:8", "--quantization", "int8", "--max-disk", "0")
    processes.start_gateway("eight-too", "--quantization", "int8", "--no-edge")
    processes.wait_until_online("eight")
    processes.wait_until_ready("eight-too")
    ask: Any = {"model": "tiny-llama", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    for name, text in (("eight-too", expected), ("one", right)):
        with openai.OpenAI(base_url=processes.url(name), api_key="none", max_retries=0) as client:
            assert client.completions.create(**ask).choices[0].text == text
    command = [BIN / "swarm-chat", str(MODEL), "-p", processes.peer, "--quantization", "int8", "--dtype", "float32"]
    options = ["--temperature", "0", "--max-new-tokens", str(TOKENS), "--max-wait", "60"]
    said = subprocess.run([*command, *options], input=PROMPT, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == expected.strip()
    leave(processes, "eight-too", "eight")


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
