"""What agents do, through the official client libraries: loops of tools over the three APIs, streamed and not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest

from swarm.client.view import View
from swarm.config import ClientConfig, GatewayConfig
from swarm.errors import GenerationFailed, InvalidInput, MissingBlocks, ServerBusy
from swarm.gateway.ends_batcher import EndsBatcher
from swarm.gateway.generation import Generator
from swarm.gateway.http.app import create_app
from swarm.gateway.http.guard import HttpSettings
from swarm.gateway.http.server import serve_http
from swarm.gateway.recommended import Recommended
from swarm.models.ends.ends import Ends
from swarm.models.ends.load import load_ends
from swarm.models.texts import Texts, load_tokenizer
from swarm.net.loop import shared_loop
from swarm.span import Span
from tests.checkpoints import Served
from tests.gateway.scripted import Scripted


@asynccontextmanager
async def clients(answerer: Any, **settings: Any) -> AsyncIterator[SimpleNamespace]:
    """Both official clients, and a plain one, of a gateway for `answerer`."""
    bound: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    app = create_app({"tiny": answerer}, HttpSettings(**settings))
    said = lambda host, port: bound.set_result(f"http://{host}:{port}")  # noqa: E731
    serving = asyncio.create_task(serve_http(app, "127.0.0.1", 0, said))
    url = await bound
    made = SimpleNamespace(
        openai=openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0),
        anthropic=anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0),
        http=httpx.AsyncClient(base_url=url),
    )
    try:
        yield made
    finally:
        await made.openai.close()
        await made.anthropic.close()
        await made.http.aclose()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def asking(answerer: Any, work: Callable[[SimpleNamespace], Awaitable[Any]], **settings: Any) -> Any:
    async def main() -> Any:
        async with clients(answerer, **settings) as made:
            return await work(made)

    return asyncio.run(main())


PARAMETERS = {
    "type": "object",
    "properties": {"place": {"enum": ["here", "there"]}},
    "required": ["place"],
    "additionalProperties": False,
}
CALLS = ['Let me look. <tool_call>\n{"name": "look", "arguments": {"place": "here"}}\n</tool_call>',
         '<tool_call>\n{"name": "look", "arguments": {"place": "there"}}\n</tool_call>',
         "It is over there."]  # fmt: skip
FOUND = {"here": "nothing", "there": "a bee"}
Choose = Callable[[int], Any]
"""By the turn: what is said of the choice of tools."""
Loop = Callable[[SimpleNamespace, bool, Mapping[str, Any], Choose], Awaitable[tuple[list[str], str]]]
"""Runs until nothing is called any more; returns the places looked at, and what was said at last."""


async def completions(made: SimpleNamespace, stream: bool, more: Mapping[str, Any], choose: Choose) -> Any:
    tools = [{"type": "function", "function": {"name": "look", "description": "x", "parameters": PARAMETERS}}]
    messages: list[Any] = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Where is the bee?"}]
    looked: list[str] = []
    while True:
        asked = {"model": "tiny", "messages": messages, "tools": tools, "tool_choice": choose(len(looked)), **more}
        if stream:
            async with made.openai.chat.completions.stream(**asked) as events:
                completion = await events.get_final_completion()
        else:
            completion = await made.openai.chat.completions.create(**asked)
        message = completion.choices[0].message
        messages.append(message.model_dump(exclude_none=True, exclude={"parsed"}))
        if not message.tool_calls:
            assert completion.choices[0].finish_reason == "stop"
            return looked, message.content
        for call in message.tool_calls:
            place = json.loads(call.function.arguments)["place"]
            looked.append(place)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": FOUND[place]})


async def responses(made: SimpleNamespace, stream: bool, more: Mapping[str, Any], choose: Choose) -> Any:
    tools: list[Any] = [{"type": "function", "name": "look", "parameters": PARAMETERS, "strict": True}]
    items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "Where is the bee?"}]}]
    looked: list[str] = []
    more = {("max_output_tokens" if name == "max_tokens" else name): value for name, value in more.items()}
    while True:
        choice = choose(len(looked))
        if isinstance(choice, dict):
            choice = {"type": "function", "name": choice["function"]["name"]}
        asked = {
            "model": "tiny",
            "instructions": "Look.",
            "input": items,
            "tools": tools,
            "tool_choice": choice,
            **more,
        }
        if stream:
            async with made.openai.responses.stream(**asked) as events:
                kinds = [event.type async for event in events]
                assert kinds[:2] == ["response.created", "response.in_progress"]
                assert kinds[-1] == "response.completed"
                response = await events.get_final_response()
        else:
            response = await made.openai.responses.create(**asked)
        assert response.status == "completed"
        items += [item.model_dump(exclude_none=True) for item in response.output]
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            return looked, response.output_text
        for call in calls:
            place = json.loads(call.arguments)["place"]
            looked.append(place)
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": FOUND[place]})


async def messages(made: SimpleNamespace, stream: bool, more: Mapping[str, Any], choose: Choose) -> Any:
    tools: list[Any] = [{"name": "look", "description": "x", "input_schema": PARAMETERS}]
    turns: list[Any] = [{"role": "user", "content": "Where is the bee?"}]
    looked: list[str] = []
    more = {"max_tokens": 100, **more}
    names = {"auto": "auto", "none": "none", "required": "any"}
    extra = {name: value for name, value in more.items() if name != "max_tokens"}
    while True:
        choice = choose(len(looked))
        choice = {"type": names[choice]} if isinstance(choice, str) else {"type": "tool", "name": "look"}
        asked = {
            "model": "tiny",
            "max_tokens": more["max_tokens"],
            "system": "Look.",
            "messages": turns,
            "tools": tools,
            "tool_choice": choice,
        }
        if stream:
            async with made.anthropic.messages.stream(**asked, extra_body=extra) as events:
                message = await events.get_final_message()
        else:
            message = await made.anthropic.messages.create(**asked, extra_body=extra)
        turns.append(
            {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in message.content]}
        )
        uses = [block for block in message.content if block.type == "tool_use"]
        if not uses:
            assert message.stop_reason == "end_turn"
            return looked, message.content[0].text
        assert message.stop_reason == "tool_use"
        looked += [use.input["place"] for use in uses]
        results = [{"type": "tool_result", "tool_use_id": use.id, "content": FOUND[use.input["place"]]} for use in uses]
        turns.append({"role": "user", "content": results})


LOOPS = {"completions": completions, "responses": responses, "messages": messages}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api", LOOPS)
def test_a_loop_of_three_turns(api: str, stream: bool) -> None:
    answerer = Scripted(CALLS)
    done = asking(answerer, lambda made: LOOPS[api](made, stream, {}, lambda turn: "auto"))
    assert done == (["here", "there"], "It is over there.")
    told = [json.loads(query.messages) for query in answerer.asked]
    system = [{"role": "system", "content": "Look."}, {"role": "user", "content": "Where is the bee?"}]
    shown = [[{name: each[name] for name in ("role", "content") if each.get(name)} for each in turn] for turn in told]
    assert shown[0] == system
    assert shown[1] == [
        *system,
        {"role": "assistant", "content": "Let me look. "},
        {"role": "tool", "content": "nothing"},
    ]
    assert shown[2][4:] == [{"role": "assistant"}, {"role": "tool", "content": "a bee"}]
    for turn in told[1:]:
        asked = {call["id"]: call["function"] for each in turn for call in each.get("tool_calls", ())}
        answered = [each["tool_call_id"] for each in turn if each["role"] == "tool"]
        assert list(asked) == answered
    assert asked[answered[1]] == {"name": "look", "arguments": {"place": "there"}}
    (tool,) = json.loads(answerer.asked[0].tools)
    assert (tool["function"]["name"], tool["function"]["parameters"]) == ("look", PARAMETERS)


HELLO: Any = [{"role": "user", "content": "hello"}]


def test_stops_and_usage_are_told_in_each_apis_words() -> None:
    async def work(made: SimpleNamespace) -> None:
        create = made.anthropic.messages.create
        message = await create(model="tiny", max_tokens=2, messages=HELLO, extra_body={"seed": 4})
        assert (message.content[0].text, message.stop_reason) == ("one two", "max_tokens")
        assert (message.usage.input_tokens, message.usage.output_tokens, message.seed) == (5, 2, 4)
        response = await made.openai.responses.create(model="tiny", input="hello", max_output_tokens=2)
        assert (response.output_text, response.status) == ("one two", "incomplete")
        assert response.incomplete_details.reason == "max_output_tokens"
        assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (5, 2, 7)
        answerer.stop = "five"
        message = await create(model="tiny", max_tokens=9, messages=HELLO, stop_sequences=["five"])
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "five")
        assert list(answerer.asked[-1].sampling.stop) == ["five"]
        counted = await made.anthropic.messages.count_tokens(model="tiny", messages=HELLO)
        assert counted.input_tokens == len(json.dumps(HELLO))

    answerer = Scripted()
    asking(answerer, work)


def test_logprobs_of_a_response() -> None:
    async def work(made: SimpleNamespace) -> None:
        create = made.openai.responses.create
        whole = await create(model="tiny", input="x", top_logprobs=1)
        told = whole.output[0].content[0].logprobs
        assert [(each.token, each.logprob) for each in told][1] == (" two", -0.5)
        assert told[0].top_logprobs[0].token == "t0"
        stream = await create(model="tiny", input="x", include=["message.output_text.logprobs"], stream=True)
        events = [event async for event in stream]
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert [each.token for event in deltas for each in event.logprobs] == ["one", " two", " three", " four"]
        assert [event.sequence_number for event in events] == list(range(len(events)))

    asking(Scripted(), work)


def test_forms_of_answers_come_by_every_api() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}

    async def work(made: SimpleNamespace) -> None:
        wanted: Any = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
        response = await made.openai.responses.create(model="tiny", input="x", text={"format": wanted})
        assert response.text.format.schema_ == schema
        await made.openai.responses.create(model="tiny", input="x", text={"format": {"type": "json_object"}})
        config: Any = {"format": {"type": "json_schema", "schema": schema}}
        await made.anthropic.messages.create(model="tiny", max_tokens=9, messages=HELLO, output_config=config)
        assert [query.sampling.constraint.json_schema for query in answerer.asked] == [
            json.dumps(schema), "", json.dumps(schema),
        ]  # fmt: skip

    answerer = Scripted()
    asking(answerer, work)


ERRORS = [
    (InvalidInput("no"), 400, "invalid_request_error"),
    (ServerBusy("full", 2.5), 429, "rate_limit_error"),
    (MissingBlocks("gone", [(1, 2)]), 503, "api_error"),
    (GenerationFailed("broken"), 502, "api_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_word_have_each_apis_shape(error: Any, status: int, kind: str, stream: bool) -> None:
    async def work(made: SimpleNamespace) -> None:
        answerer.error = error
        with pytest.raises(anthropic.APIStatusError) as raised:
            await made.anthropic.messages.create(model="tiny", max_tokens=9, messages=HELLO, stream=stream)
        assert raised.value.status_code == status
        body: Any = raised.value.body
        assert (body["type"], body["error"]["type"], body["error"]["message"]) == ("error", kind, str(error))
        with pytest.raises(openai.APIStatusError) as told:
            await made.openai.responses.create(model="tiny", input="x", stream=stream)
        assert told.value.status_code == status
        assert told.value.response.headers.get("retry-after") == (
            "3" if status == 429 else "5" if status == 503 else None
        )

    answerer = Scripted()
    asking(answerer, work)


def test_errors_in_the_middle_of_a_stream_end_it() -> None:
    async def work(made: SimpleNamespace) -> None:
        answerer.error, answerer.fails_after = GenerationFailed("broken"), 2
        events = [event async for event in await made.openai.responses.create(model="tiny", input="x", stream=True)]
        assert events[-1].type == "response.failed"
        assert (events[-1].response.status, events[-1].response.error.message) == ("failed", "broken")
        with pytest.raises(anthropic.APIStatusError, match="broken"):
            async with made.anthropic.messages.stream(model="tiny", max_tokens=9, messages=HELLO) as stream:
                await stream.get_final_message()

    answerer = Scripted()
    asking(answerer, work)


def test_keys_models_and_paths_have_the_shape_of_their_api() -> None:
    async def work(made: SimpleNamespace) -> None:
        async def refused(path: str, body: Any, **headers: str) -> tuple[int, str]:
            answer = await made.http.post(path, json=body, headers=headers)
            assert answer.json()["type"] == "error"
            return answer.status_code, answer.json()["error"]["type"]

        body: Any = {"model": "tiny", "max_tokens": 3, "messages": HELLO}
        key = {"x-api-key": "good"}
        assert (await made.http.post("/v1/messages", json=body, headers=key)).status_code == 200
        assert (await made.http.post("/v1/messages?beta=true", json=body, headers=key)).status_code == 200
        assert await refused("/v1/messages", body) == (401, "authentication_error")
        assert await refused("/v1/messages", {**body, "model": "other"}, **key) == (404, "not_found_error")
        assert await refused("/v1/messages/batches", body, **key) == (404, "not_found_error")
        assert await refused("/v1/messages", body, host="evil.example") == (403, "permission_error")
        assert await refused("/v1/messages", {**body, "max_tokens": "x"}, **key) == (400, "invalid_request_error")

    asking(Scripted(), work, keys=("good",))


TINY = Path(__file__).parents[2] / "models" / "tiny-llama"
TEMPLATE = """{% if tools %}<tool_call>{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% endif %}
{% for message in messages %}{{ message.role }}: {{ message.content or "" }}
{% for call in message.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}
{% endfor %}"""


def test_the_loop_over_a_real_model_is_the_same_by_every_api() -> None:
    """Calls are demanded, as so small a model makes none of its own accord; any common word ends an answer."""
    servers = Served(TINY, [Span(0, 4), Span(4, 8)])
    try:
        client, _ = load_ends(TINY, dtype="float32", progress=False)
        tokenizer = load_tokenizer(str(TINY))
        tokenizer.chat_template = TEMPLATE
        ends = Ends(client)

        async def main() -> list[Any]:
            batcher = EndsBatcher(ends)
            contract = servers.info.contract("float32", 4 * servers.info.hidden_size)
            view = View(servers.swarm.directory, servers.info, contract, ClientConfig())
            common = {tokenizer.encode(word)[0] for word in (".", " the", " a", " is", " of", " to", " and", " in")}
            recommended = Recommended({}, frozenset(common | {tokenizer.eos_token_id}))
            node = Generator(servers.swarm.host, view, Texts(tokenizer), batcher, recommended, GatewayConfig())
            look = {"type": "function", "function": {"name": "look"}}
            choose = lambda turn: [look, "required", "none"][turn]  # noqa: E731
            done = []
            async with clients(node) as made:
                for loop in LOOPS.values():
                    for stream in (False, True):
                        more = {"max_tokens": 100, "temperature": 1.0, "extra_body": {"seed": 3}}
                        if loop is messages:
                            more = {"max_tokens": 100, "temperature": 1.0, "seed": 3}
                        done.append(await loop(made, stream, more, choose))
            await batcher.close()
            return done

        done = shared_loop().run(main())
    finally:
        servers.close()
    assert all(each == done[0] for each in done)
    looked, said = done[0]
    assert len(looked) == 2
    assert set(looked) <= set(FOUND)
    assert said
