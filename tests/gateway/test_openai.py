"""The HTTP side as OpenAI's own client meets it, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import (
    ContextTooLong,
    GenerationFailed,
    InvalidInput,
    LimitExceeded,
    MissingBlocks,
    NoServerFits,
    ServerBusy,
)
from swarm.gateway.http.app import create_app
from swarm.gateway.http.choice import Choice
from swarm.gateway.http.guard import HttpSettings
from swarm.gateway.http.server import serve_http
from swarm.gateway.openai.replies import ChatShape, CompletionShape
from swarm.models.tool_calls import ToolCall, ToolCallParser, calls_in
from swarm.wire import swarm_pb2 as pb
from tests.gateway.scripted import Scripted

HELLO: Any = [{"role": "user", "content": "hello"}]


class Served:
    """An app on a port of its own, while `run` runs."""

    def __init__(self, answerer: Scripted, settings: HttpSettings | None = None, **options: Any) -> None:
        self.answerer = answerer
        self.settings = settings or HttpSettings()
        self.options = options
        self.url = ""

    async def __aenter__(self) -> Served:
        bound: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        app = create_app({"tiny": self.answerer}, self.settings, **self.options)
        say = lambda host, port: bound.set_result(f"http://{host}:{port}")  # noqa: E731
        self.task = asyncio.create_task(serve_http(app, "127.0.0.1", 0, say))
        self.url = await bound
        self.client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="secret", max_retries=0)
        self.http = httpx.AsyncClient(base_url=self.url)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()
        await self.http.aclose()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def served(work: Callable[[Served], Awaitable[None]], *answerer: Any, says: str | None = None, **options: Any) -> None:
    async def main() -> None:
        scripted = answerer[0]() if answerer else Scripted(says) if says else Scripted()
        async with Served(scripted, **options) as server:
            await work(server)
            assert scripted.running == 0

    asyncio.run(main())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


def test_a_conversation_whole_and_as_a_stream() -> None:
    async def work(server: Served) -> None:
        whole = await server.client.chat.completions.create(model="tiny", messages=HELLO, seed=4)
        assert whole.choices[0].message.content == "one two three four"
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (5, 4, 9)
        stream = await server.client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, max_tokens=3, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3
        assert len({c.id for c in chunks}) == 1
        assert [c.model_extra for c in chunks if c.choices and c.choices[0].finish_reason] == [
            {"seed": server.answerer.asked[1].sampling.seed}
        ]
        assert server.answerer.asked[1].sampling.seed < 1 << 53
        assert server.answerer.asked[0].sampling.seed == 4
        assert json.loads(server.answerer.asked[0].messages) == HELLO

    served(work)


def test_completions_of_texts_and_tokens_with_logprobs() -> None:
    async def work(server: Served) -> None:
        create: Any = server.client.completions.create
        whole = await create(model="tiny", prompt="hello", logprobs=2, n=2, seed=7)
        assert [choice.text for choice in whole.choices] == ["one two three four"] * 2
        assert whole.choices[0].logprobs.tokens == ["one", " two", " three", " four"]
        assert whole.choices[0].logprobs.text_offset == [0, 3, 7, 13]
        assert whole.choices[0].logprobs.top_logprobs[0] == {"t0": -1.0, "t1": -2.0}
        assert whole.usage.prompt_tokens == 5
        assert [query.sampling.seed for query in server.answerer.asked] == [7, 8]
        many = await create(model="tiny", prompt=["a", "b"])
        assert [choice.index for choice in many.choices] == [0, 1]
        assert many.usage.prompt_tokens == 10
        await create(model="tiny", prompt=[1, 2, 3])
        await create(model="tiny", prompt=[[1, 2], [3]], extra_body={"top_k": 5, "min_p": 0.1, "ignore_eos": True})
        assert list(server.answerer.asked[-3].tokens.ids) == [1, 2, 3]
        assert (server.answerer.asked[-1].sampling.top_k, server.answerer.asked[-1].sampling.ignore_eos) == (5, True)
        stream = await create(model="tiny", prompt="hello", stream=True, n=3)
        texts = ["", "", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == ["one two three four"] * 3

    served(work)


def test_logprobs_of_a_conversation() -> None:
    async def work(server: Served) -> None:
        whole = await server.client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=1)
        told = whole.choices[0].logprobs
        assert told is not None
        assert told.content is not None
        assert [(t.token, t.logprob, t.bytes) for t in told.content][1] == (" two", -0.5, list(b" two"))
        assert told.content[0].top_logprobs[0].token == "t0"

    served(work)


def test_tokens_that_share_a_character_have_their_own_bytes_and_its_place() -> None:
    bee = "\U0001f41d".encode()
    pieces = [b"a", bee[:1], bee[1:3], bee[3:] + b"b", b"c"]
    logprobs = [pb.Logprob(token=at, text=piece, top=[pb.Logprob(text=piece)]) for at, piece in enumerate(pieces)]
    told, choice, offsets = ["a", "", "", "\U0001f41db", "c"], Choice(0), []
    for text, logprob in zip(told, logprobs, strict=True):
        before = len(choice.logprobs)
        shown = choice.take(pb.QueryReply(delta=pb.Delta(text=text, logprobs=[logprob])))
        offsets += CompletionShape("tiny", "x").delta(choice, shown, choice.logprobs[before:])["logprobs"][
            "text_offset"
        ]
    whole = CompletionShape("tiny", "x").choice(choice)
    assert whole["text"] == "a\U0001f41dbc"
    assert whole["logprobs"]["text_offset"] == offsets == [0, 1, 1, 1, 3]
    assert whole["logprobs"]["tokens"] == ["a", "bytes:\\xf0", "bytes:\\x9f\\x90", "bytes:\\x9d\\x62", "c"]
    tokens = ChatShape("tiny", "x").choice(choice)["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens) == whole["text"].encode()
    assert [token["bytes"] for token in tokens] == [list(piece) for piece in pieces]


CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'
TOOLS: Any = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]


def test_calls_of_tools() -> None:
    async def work(server: Served) -> None:
        create: Any = server.client.chat.completions.create
        whole = await create(model="tiny", messages=HELLO, tools=TOOLS)
        assert whole.choices[0].finish_reason == "tool_calls"
        call = whole.choices[0].message.tool_calls[0].function
        assert (call.name, json.loads(call.arguments)) == ("now", {"zone": "UTC"})
        assert json.loads(server.answerer.asked[0].tools) == TOOLS
        chunks = [chunk async for chunk in await create(model="tiny", messages=HELLO, tools=TOOLS, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Let me see. "
        assert chunks[-1].choices[0].delta.tool_calls[0].function.name == "now"
        plain = await create(model="tiny", messages=HELLO, tools=TOOLS, tool_choice="none")
        assert plain.choices[0].message.content == f"Let me see. {CALL}"

    served(work, says=f"Let me see. {CALL}")


@given(st.text("<{tol_ca>/}n", max_size=30), st.lists(st.integers(1, 7), max_size=9))
def test_text_that_calls_nothing_comes_through_whole(text: str, cuts: list[int]) -> None:
    parser, shown, rest = ToolCallParser(), "", text
    for cut in cuts:
        shown += parser.add(rest[:cut])
        rest = rest[cut:]
    shown += parser.add(rest)
    left, calls = parser.end()
    assert (shown + left, calls) == (text, [])


def test_the_ways_of_calling() -> None:
    def sort(text: str) -> tuple[str, list[ToolCall]]:
        parser = ToolCallParser()
        shown = "".join(parser.add(letter) for letter in text)
        left, calls = parser.end()
        return shown + left, calls

    assert sort(f"x {CALL}{CALL}") == ("x ", [ToolCall("now", '{"zone": "UTC"}')] * 2)
    assert sort('<|python_tag|>{"name": "f", "parameters": {}}') == ("", [ToolCall("f", "{}")])
    assert sort('{"name": "f", "parameters": ') == ('{"name": "f", "parameters": ', [])
    assert sort('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": 1}}]') == (
        "",
        [ToolCall("f", "{}"), ToolCall("g", '{"a": 1}')],
    )
    for text in ("[1, 2]", "[]", "[not a list", "<tool_call><function=f>x</function></tool_call>"):
        assert sort(text) == (text, [])
    assert sort("<tool_call>nonsense</tool_call>") == ("<tool_call>nonsense</tool_call>", [])


def test_calls_in_tags_of_their_own_get_the_types_of_the_tool() -> None:
    kinds = {
        "path": {"type": "string"},
        "line": {"type": "integer"},
        "all": {"type": "boolean"},
        "parts": {"type": "array"},
    }
    tools: Any = [{"type": "function", "function": {"name": "edit", "parameters": {"properties": kinds}}}]
    values = {"path": "12", "line": "7", "all": "true", "parts": '["a"]', "other": "8"}
    written = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    parser = ToolCallParser(tools=tools)
    shown = parser.add(f"I edit. <tool_call>\n<function=edit>\n{written}</function>\n</tool_call>")
    left, (call,) = parser.end()
    assert (shown, left, call.name) == ("I edit. ", "", "edit")
    assert json.loads(call.arguments) == {"path": "12", "line": 7, "all": True, "parts": ["a"], "other": "8"}
    assert json.loads(calls_in("<tool_call><function=f></function></tool_call>")[0].arguments) == {}
    odd: Any = [{"function": {"name": "edit", "parameters": {"properties": 5}}}]
    assert calls_in(f"<tool_call><function=edit>{written}</function></tool_call>", odd)


ERRORS = [
    (ContextTooLong("long"), 400, "context_length_exceeded"),
    (InvalidInput("no"), 400, None),
    (ServerBusy("full", 2.5), 429, "swarm_full"),
    (MissingBlocks("gone", [(1, 2)]), 503, "blocks_missing"),
    (NoServerFits("unlike", [(1, 2)]), 503, "no_server_fits"),
    (LimitExceeded("much", "positions", 4, 9), 400, "limit_exceeded"),
    (GenerationFailed("broken"), 502, "generation_failed"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_first_word_are_statuses(error: Any, status: int, code: str | None, stream: bool) -> None:
    async def work(server: Served) -> None:
        server.answerer.error = error
        with pytest.raises(openai.APIStatusError) as raised:
            await server.client.chat.completions.create(model="tiny", messages=HELLO, stream=stream)
        assert raised.value.status_code == status
        assert raised.value.body["code"] == code  # type: ignore[index]
        if status == 429:
            assert raised.value.response.headers["retry-after"] == "3"

    served(work)


def test_an_error_in_the_middle_of_a_stream_ends_it() -> None:
    async def work(server: Served) -> None:
        server.answerer.error, server.answerer.fails_after = GenerationFailed("broken"), 2
        body = {"model": "tiny", "prompt": "x", "stream": True}
        lines = (await server.http.post("/v1/completions", json=body)).text.split("\n\n")
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "generation_failed"
        assert "[DONE]" not in lines[-1]

    served(work)


@pytest.mark.parametrize("count", [3, 4])
def test_what_turns_out_wrong_before_it_is_given_is_computed_anew(count: int) -> None:
    async def work(server: Served) -> None:
        server.answerer.refuted, server.answerer.says = count, ["wrong", "wrong again", "no", "one two three four"]
        got = await server.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HELLO})
        assert len(server.answerer.asked) == 4
        if count == 3:
            assert got.json()["choices"][0]["message"]["content"] == "one two three four"
            assert got.json()["usage"]["completion_tokens"] == 4
        else:
            assert got.status_code >= 500 and got.json()["error"]["code"] == "generation_failed"
        server.answerer.refuted = 1
        streamed = await server.http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "stream": True})
        assert "not right" in streamed.text

    served(work)


def test_missing_blocks_are_said_at_once() -> None:
    async def work(server: Served) -> None:
        assert (await server.http.get("/health")).status_code == 200
        server.answerer.missing = MissingBlocks("no server hosts blocks 2:4", [(2, 4)])
        with pytest.raises(openai.InternalServerError, match="2:4") as raised:
            await server.client.chat.completions.create(model="tiny", messages=HELLO)
        assert raised.value.status_code == 503
        assert raised.value.response.headers["retry-after"] == "5"
        health = await server.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "waiting")
        assert "2:4" in health.json()["detail"]
        server.answerer.missing = NoServerFits("nobody computes blocks 0:4 in int8: a 0:4 computes in none", [(0, 4)])
        answer = await server.http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], "int8" in error["message"]) == (503, "no_server_fits", True)
        assert "retry-after" not in answer.headers

    served(work)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_ends_its_query(stream: bool, begun: bool) -> None:
    async def work(server: Served) -> None:
        answerer = server.answerer
        if not begun:
            answerer.gate.clear()
        body = {"model": "tiny", "prompt": "x", "stream": stream, "n": 2}
        async with httpx.AsyncClient(base_url=server.url) as leaving:
            asking = asyncio.create_task(leaving.post("/v1/completions", json=body))
            await until(lambda: answerer.running == 2)
            answerer.gate.clear()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: answerer.running == 0)
        answerer.gate.set()
        assert (await server.client.completions.create(model="tiny", prompt="x")).choices[0].text

    served(work, says="word " * 10_000)


BODIES = [
    b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": "tiny"}', b'{"model": 3, "prompt": "x"}',
    b'{"model": "tiny", "prompt": []}', b'{"model": "tiny", "prompt": "x", "n": 1000}',
    b'{"model": "tiny", "prompt": "\\ud800"}', b'{"model": "tiny", "prompt": "x", "stop": ["\\ud800"]}',
    b'{"model": "tiny", "prompt": "x", "temperature": NaN}', b'{"model": "tiny", "prompt": "x", "echo": true}',
    b'{"model": "tiny", "prompt": "x", "seed": 1e400}', b'{"model": "tiny", "prompt": "x", "logit_bias": {"-1": 1}}',
    b'{"model": "tiny", "prompt": [1, -1]}', b'{"model": "tiny", "prompt": [99999999999]}',
]  # fmt: skip


def test_senseless_bodies_are_400s_in_openais_shape() -> None:
    async def work(server: Served) -> None:
        for body in BODIES:
            answer = await server.http.post(
                "/v1/completions", content=body, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400, body[:80]
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        for path, status in {"/v1/models/none": 404, "/v1/nothing": 404, "/v1/completions": 405}.items():
            answer = await server.http.get(path)
            assert (answer.status_code, set(answer.json())) == (status, {"error"})
        for ask, param in ({"prompt": [1, "a"]}, "prompt"), ({"prompt": "x", "n": 0}, "n"):
            answer = await server.http.post("/v1/completions", json={"model": "tiny", **ask})
            assert answer.json()["error"]["param"] == param
        with pytest.raises(openai.BadRequestError, match="need logprobs"):
            await server.client.chat.completions.create(model="tiny", messages=HELLO, top_logprobs=2)
        with pytest.raises(openai.NotFoundError, match="tiny"):
            await server.client.completions.create(model="other", prompt="x")

    served(work)


def test_large_bodies_are_refused_whether_they_say_so_or_not() -> None:
    async def work(server: Served) -> None:
        async def endless() -> Any:
            for _ in range(100):
                yield b" " * 10_000

        for content in (b" " * 200_000, endless()):
            answer = await server.http.post("/v1/completions", content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")

    served(work, settings=HttpSettings(body_limit=100_000))


def test_keys() -> None:
    async def work(server: Served) -> None:
        assert [model.id async for model in server.client.models.list()] == ["tiny"]
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            answer = await server.http.get("/v1/models", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await server.http.get("/version")).json()["version"]

    served(work, settings=HttpSettings(keys=("other", "secret")))


def test_pages_of_others_and_names_of_others_are_refused() -> None:
    async def work(server: Served) -> None:
        port = server.url.rpartition(":")[2]
        for headers, status in (
            ({"host": "evil.example"}, 403),
            ({"host": f"127.0.0.1.evil.example:{port}"}, 403),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"host": f"localhost:{port}"}, 200),
            ({"host": "Gateway.example"}, 200),
            ({"origin": server.url}, 200),
            ({"origin": "http://localhost:3000"}, 200),
            ({"origin": "https://page.example"}, 200),
        ):
            answer = await server.http.get("/v1/models", headers=headers)
            assert answer.status_code == status, headers
            allowed = answer.headers.get("access-control-allow-origin")
            assert allowed == (headers.get("origin") if status == 200 else None)
        ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        for origin, status in {"https://page.example": 200, "https://evil.example": 400}.items():
            answer = await server.http.options("/v1/completions", headers={"origin": origin, **ask})
            assert answer.status_code == status
            assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)

    served(work, settings=HttpSettings(hosts=("gateway.EXAMPLE",), origins=("https://page.example/",)))


HEADER = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=30)
OURS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d*)?", re.IGNORECASE)


@given(HEADER | st.sampled_from(["localhost:80", "[::1]", "[::1]:8", "localhost.evil"]), HEADER)
def test_no_header_confuses_the_guard(host: str, origin: str) -> None:
    app, sent = create_app({}, HttpSettings()), []
    headers = [(b"host", host.encode("latin-1")), (b"origin", origin.encode("latin-1"))]
    scope = {"type": "http", "method": "GET", "path": "/version", "query_string": b"", "headers": headers}

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 403 or OURS.fullmatch(host)
    assert sent[0]["status"] in (200, 403)


@pytest.mark.parametrize("host", ["*x", "a*", "*.*"])
def test_hosts_that_name_nothing_are_refused(host: str) -> None:
    with pytest.raises(InvalidInput, match="host"):
        HttpSettings(hosts=(host,))


def test_a_stream_that_pauses_says_that_it_lives() -> None:
    async def work(server: Served) -> None:
        async with server.http.stream(
            "POST", "/v1/completions", json={"model": "tiny", "prompt": "x", "stream": True}
        ) as got:
            lines = got.aiter_lines()
            seen: list[str] = []
            async for line in lines:
                seen.append(line)
                if line.startswith("data") and len(seen) < 3:
                    server.answerer.gate.clear()
                if line == ": still here":
                    server.answerer.gate.set()
            assert ": still here" in seen
            assert seen[-2] == "data: [DONE]"

    served(work, settings=HttpSettings(heartbeat=0.05))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "index.html").write_text("<title>page</title>")
    (tmp_path / "main.js").write_text("1")
    yield tmp_path


def test_the_page_and_metrics_are_served_beside_the_api(page: Path) -> None:
    async def work(server: Served) -> None:
        root = await server.http.get("/")
        assert "<title>page</title>" in root.text
        assert "javascript" in (await server.http.get("/main.js")).headers["content-type"]
        assert (await server.http.get("/../secret")).status_code == 404
        assert (await server.http.get("/metrics")).text == "m 1\n"
        assert (await server.http.get("/peers.json")).json() == {"peers": ["/ip4/1.2.3.4/udp/5/webrtc-direct"]}
        assert (await server.http.get("/v1/models")).json()["data"][0]["id"] == "tiny"

    peers = lambda: ["/ip4/1.2.3.4/udp/5/webrtc-direct"]  # noqa: E731
    served(work, page=page, peers=peers, metrics=lambda: ("text/plain", b"m 1\n"))


def test_where_the_page_was_not_built_the_root_says_so(tmp_path: Path) -> None:
    async def work(server: Served) -> None:
        for accept, kind in (("text/html,*/*", "text/html"), ("*/*", "text/plain")):
            root = await server.http.get("/", headers={"accept": accept})
            assert root.status_code == 200
            assert root.headers["content-type"].startswith(kind)
            assert "make page" in root.text
            assert "/v1" in root.text

    served(work, page=tmp_path)
    served(work)


def test_an_address_that_is_taken_is_an_error() -> None:
    async def work(server: Served) -> None:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(InvalidInput, match=str(port)):
            await serve_http(create_app({}, HttpSettings()), "127.0.0.1", port)

    served(work)


def test_a_reader_who_takes_nothing_holds_the_answer_up_and_is_given_up() -> None:
    async def work(server: Served) -> None:
        body = json.dumps({"model": "tiny", "prompt": "x", "stream": True}).encode()
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1000)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: server.answerer.running == 1)
        await until(lambda: server.answerer.running == 0)
        assert server.answerer.told < len(server.answerer.says.split(" ")) // 2
        writer.close()

    served(work, says=f"{'w' * 10_000} " * 5_000, settings=HttpSettings(stuck=0.2))
