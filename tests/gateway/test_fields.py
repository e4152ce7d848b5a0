"""Every field of both calls, as the installed package of OpenAI's declares them: honoured, or refused by name.

A field that a later package adds fails here until somebody has said what becomes of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as completions
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat

from swarm.gateway.http.app import create_app
from swarm.gateway.http.guard import HttpSettings
from swarm.gateway.openai.requests import ChatRequest, CompletionRequest, StreamOptions
from swarm.wire import swarm_pb2 as pb
from tests.gateway.scripted import Scripted

OURS = {"top_k", "min_p", "repetition_penalty", "ignore_eos", "speculation", "structured_outputs"}
"""Fields that OpenAI's API does not have."""
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "x"},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "x"}]},
}
TOOLS = [{"type": "function", "function": {"name": "f"}}]

Becomes = Callable[[pb.Query], Any]


def of_sampling(name: str) -> Becomes:
    return lambda query: round(getattr(query.sampling, name), 5)


BOTH: dict[str, tuple[Any, Becomes, Any]] = {
    "n": (1, lambda query: None, None),
    "max_tokens": (3, of_sampling("max_tokens"), 3),
    "temperature": (0.5, of_sampling("temperature"), 0.5),
    "top_p": (0.25, of_sampling("top_p"), 0.25),
    "top_k": (5, of_sampling("top_k"), 5),
    "min_p": (0.125, of_sampling("min_p"), 0.125),
    "repetition_penalty": (1.5, of_sampling("repetition_penalty"), 1.5),
    "presence_penalty": (0.5, of_sampling("presence_penalty"), 0.5),
    "frequency_penalty": (-0.5, of_sampling("frequency_penalty"), -0.5),
    "logit_bias": ({"7": -100}, lambda query: [(b.token, b.value) for b in query.sampling.bias], [(7, -100)]),
    "seed": (9, of_sampling("seed"), 9),
    "stop": (["three"], lambda query: list(query.sampling.stop), ["three"]),
    "ignore_eos": (True, lambda query: query.sampling.ignore_eos, True),
    "speculation": ("ngram", lambda query: query.sampling.speculation, "ngram"),
    "stream": (False, lambda query: None, None),
    "stream_options": ({"include_usage": True}, lambda query: None, None),
    "user": ("me", lambda query: None, None),
    "structured_outputs": ({"regex": "a+"}, lambda query: query.sampling.constraint.regex, "a+"),
}
"""What is honoured: a value, and what becomes of it in a query; what is told in the answer is tested with answers."""
HONOURED: dict[str, dict[str, tuple[Any, Becomes, Any]]] = {
    "/v1/completions": {
        **BOTH,
        "model": ("tiny", lambda query: None, None),
        "prompt": ([1, 2], lambda query: list(query.tokens.ids), [1, 2]),
        "logprobs": (2, lambda query: (query.sampling.logprobs, query.sampling.top_logprobs), (True, 2)),
    },
    "/v1/chat/completions": {
        **BOTH,
        "model": ("tiny", lambda query: None, None),
        "messages": (
            [{"role": "user", "content": [{"type": "text", "text": "y"}]}],
            lambda query: json.loads(query.messages),
            [{"role": "user", "content": "y"}],
        ),
        "max_completion_tokens": (3, of_sampling("max_tokens"), 3),
        "logprobs": (True, lambda query: query.sampling.logprobs, True),
        "top_logprobs": (2, lambda query: query.sampling.top_logprobs, 2),
        "tools": (TOOLS, lambda query: json.loads(query.tools), TOOLS),
        "tool_choice": ("auto", lambda query: query.HasField("tool_choice"), False),
        "response_format": (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
            lambda query: query.sampling.constraint.json_schema,
            '{"type": "object"}',
        ),
        "parallel_tool_calls": (False, lambda query: None, None),
        "metadata": ({"a": "b"}, lambda query: None, None),
        "safety_identifier": ("me", lambda query: None, None),
        "prompt_cache_key": ("me", lambda query: None, None),
    },
}
WITH = {"stream_options": {"stream": True}, "top_logprobs": {"logprobs": True}}
"""Fields that need others."""
REFUSED: dict[str, dict[str, list[Any]]] = {
    "/v1/completions": {"echo": [True], "suffix": ["x"], "best_of": [2]},
    "/v1/chat/completions": {
        "audio": [{"voice": "x", "format": "mp3"}],
        "modalities": [["audio"], ["text", "audio"]],
        "functions": [[{"name": "f"}]],
        "function_call": [{"name": "f"}],
        "moderation": [{"model": "m"}],
        "prediction": [{"type": "content", "content": "x"}],
        "prompt_cache_options": [{"mode": "implicit"}],
        "prompt_cache_retention": ["24h"],
        "reasoning_effort": ["low", "none"],
        "service_tier": ["flex"],
        "store": [True],
        "verbosity": ["low"],
        "web_search_options": [{}],
    },
}
CHANGE_NOTHING: dict[str, dict[str, Any]] = {
    "/v1/completions": {"echo": False, "suffix": "", "best_of": 1},
    "/v1/chat/completions": {
        "modalities": ["text"], "functions": [], "function_call": "none",
        "service_tier": "auto", "store": False, "verbosity": "medium", "prompt_cache_retention": "in_memory",
    },
}  # fmt: skip
"""Values of refused fields that ask for nothing else than there is."""
OPENAI: dict[str, set[str]] = {
    "/v1/completions": {*completions.CompletionCreateParamsNonStreaming.__annotations__},
    "/v1/chat/completions": {*chat.CompletionCreateParamsNonStreaming.__annotations__},
}
MODELS = {"/v1/completions": CompletionRequest, "/v1/chat/completions": ChatRequest}


def post(path: str, body: Any, **headers: str) -> tuple[int, Any, list[pb.Query]]:
    """Status, what was answered, and what was asked of the answerer."""

    async def main() -> tuple[int, Any, list[pb.Query]]:
        answerer = Scripted()
        app = create_app({"tiny": answerer}, HttpSettings())
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            answer = await client.post(path, content=content, headers={"content-type": "application/json", **headers})
        streamed = answer.headers["content-type"].startswith("text/event-stream")
        return answer.status_code, answer.text if streamed else answer.json(), answerer.asked

    return asyncio.run(main())


def refusal(path: str, body: Any, **headers: str) -> dict[str, Any]:
    status, answer, asked = post(path, body, **headers)
    assert status == 400, answer
    assert asked == []
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    inner = ("pydantic", "Input should", "Value error", "prompt.", "body.", "list[", "literal[", ".str", "_type")
    assert not any(word in error["message"] for word in inner)
    return dict(error)


@pytest.mark.parametrize("path", OPENAI)
def test_the_table_is_complete(path: str) -> None:
    assert {*HONOURED[path], *REFUSED[path]} == OPENAI[path] | OURS
    assert {*MODELS[path].model_fields} == OPENAI[path] | OURS
    assert {*StreamOptions.model_fields} == {*ChatCompletionStreamOptionsParam.__annotations__}


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, table in HONOURED.items() for name in table])
def test_a_field_is_honoured(path: str, name: str) -> None:
    value, becomes, expected = HONOURED[path][name]
    status, answer, (query,) = post(path, {**NEEDED[path], **WITH.get(name, {}), name: value})
    assert status == 200, answer
    assert becomes(query) == expected


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [(path, name, value) for path, table in REFUSED.items() for name, values in table.items() for value in values],
)
def test_a_field_is_refused_by_name(path: str, name: str, value: Any) -> None:
    error = refusal(path, {**NEEDED[path], "tools": TOOLS, name: value} if "chat" in path else
                    {**NEEDED[path], name: value})  # fmt: skip
    assert name in error["message"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


@pytest.mark.parametrize("path", OPENAI)
def test_what_changes_nothing_may_be_there(path: str) -> None:
    assert post(path, {**NEEDED[path], **CHANGE_NOTHING[path]})[0] == 200
    assert post(path, {**NEEDED[path], "n": 2.0, "seed": 5.0})[0] == 200


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, kind in MODELS.items() for name in kind.model_fields]
)
def test_null_is_left_out(path: str, name: str) -> None:
    if name in NEEDED[path]:
        assert refusal(path, {**NEEDED[path], name: None})["param"] == name
    else:
        assert post(path, {**NEEDED[path], name: None})[0] == 200


def test_null_is_left_out_within_fields() -> None:
    for name in StreamOptions.model_fields:
        for path in MODELS:
            assert post(path, {**NEEDED[path], "stream": True, "stream_options": {name: None}})[0] == 200
    function = {"name": "f", "description": None, "strict": None, "parameters": {"default": None}}
    said = {"role": "user", "content": "x", "name": None, "tool_calls": None}
    body = {"model": "tiny", "messages": [said], "tools": [{"type": "function", "function": function}]}
    _, _, (query,) = post("/v1/chat/completions", body)
    assert json.loads(query.messages) == [{"role": "user", "content": "x"}]
    assert json.loads(query.tools)[0]["function"] == {"name": "f", "parameters": {"default": None}}


FORMS: list[tuple[dict[str, Any], pb.Constraint | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, pb.Constraint(json_schema="")),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True}}},
     pb.Constraint(json_schema="")),
    ({"structured_outputs": {"json": {"type": "null"}}}, pb.Constraint(json_schema='{"type": "null"}')),
    ({"structured_outputs": {"json": "{}", "json_object": False}}, pb.Constraint(json_schema="{}")),
    ({"structured_outputs": {"json_object": True}}, pb.Constraint(json_schema="")),
    ({"structured_outputs": {"choice": ["a", '"']}}, pb.Constraint(grammar='start: "a" | "\\""')),
    ({"structured_outputs": {"grammar": "start: x"}}, pb.Constraint(grammar="start: x")),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "constraint"), FORMS, ids=lambda part: str(part)[:60] if part else "")
def test_forms_of_answers_are_handed_on(fields: dict[str, Any], constraint: pb.Constraint | None) -> None:
    path = "/v1/chat/completions"
    status, answer, (query,) = post(path, {**NEEDED[path], **fields})
    assert status == 200, answer
    assert (query.sampling.constraint if query.sampling.HasField("constraint") else None) == constraint


F, G = ({"type": "function", "function": {"name": name}} for name in "fg")
CHOICES: list[tuple[Any, dict[str, Any], pb.ToolChoice | None]] = [
    ("none", {}, None), ("auto", {}, None), ("required", {}, pb.ToolChoice()),
    (F, {}, pb.ToolChoice(names="f", single=True)),
    ("required", {"parallel_tool_calls": False}, pb.ToolChoice(single=True)),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [F, G]}}, {}, pb.ToolChoice(names="fg")),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "fields", "wanted"), CHOICES, ids=lambda part: str(part)[:60])
def test_choices_of_tools_are_handed_on(choice: Any, fields: dict[str, Any], wanted: pb.ToolChoice | None) -> None:
    path = "/v1/chat/completions"
    status, answer, (query,) = post(path, {**NEEDED[path], "tools": [F, G], "tool_choice": choice, **fields})
    assert status == 200, answer
    assert (query.tool_choice if query.HasField("tool_choice") else None) == wanted


WRONG = [
    ({"prompt": None}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [-1]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"), ({"prompt": [[[1]]]}, "prompt"), ({"prompt": [True]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"), ({"prompt": 5}, "prompt"), ({"prompt": {}}, "prompt"),
    ({"prompt": [None]}, "prompt"),
    ({"prompt": [1 << 31]}, "prompt"), ({"prompt": [10**30]}, "prompt"), ({"prompt": ["x"] * 17}, "prompt"),
    ({"prompt": ["x"] * 9, "n": 2}, "n"), ({"n": 0}, "n"), ({"n": "2"}, "n"), ({"n": True}, "n"), ({"n": 1.5}, "n"),
    ({"n": 10**30}, "n"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": "5"}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"), ({"temperature": -1}, "temperature"), ({"temperature": []}, "temperature"),
    ({"temperature": True}, "temperature"), ({"top_p": 1.1}, "top_p"), ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"), ({"stream_options": 1}, "stream_options"), ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
    ({"stop": 5}, "stop"), ({"stop": ""}, "stop"), ({"stop": [None]}, "stop"), ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x" * 257]}, "stop"), ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias"), ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": []}, "logit_bias"),
    ({"seed": 1 << 64}, "seed"), ({"seed": "x"}, "seed"), ({"model": 5}, "model"), ({"model": None}, "model"),
    ({"user": 5}, "user"), ({"speculation": "x"}, "speculation"), ({"tempreature": 1}, "tempreature"),
    ({"structured_outputs": {}}, "structured_outputs"), ({"structured_outputs": {"regex": 5}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs"), ({"structured_outputs": 5}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": {"tag": "x"}}, "structured_outputs"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_what_is_wrong_is_named_in_the_words_of_the_api(fields: dict[str, Any], param: str) -> None:
    error = refusal("/v1/completions", {**NEEDED["/v1/completions"], **fields})
    assert error["param"] == param
    assert error["message"].startswith(param) or "at most" in error["message"]


CHAT_WRONG = [
    ({"messages": []}, "messages"), ({"messages": None}, "messages"), ({"messages": "x"}, "messages"),
    ({"messages": [5]}, "messages"), ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages"), ({"messages": [{"role": 5, "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "messages"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"), ({"tools": {}}, "tools"),
    ({"tools": [5]}, "tools"),
    ({"top_logprobs": 2}, "top_logprobs"), ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"logprobs": 5}, "logprobs"), ({"tool_choice": "sometimes"}, "tool_choice"), ({"metadata": 5}, "metadata"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": 5}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": TOOLS}}},
     "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [5]}}},
     "tool_choice"),
    ({"response_format": {"type": "json_schema"}}, "response_format"), ({"response_format": {}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"), ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "json_object", "json_schema": {"name": "x"}}}, "response_format"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), CHAT_WRONG)
def test_what_is_wrong_in_a_conversation_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal("/v1/chat/completions", {**NEEDED["/v1/chat/completions"], **fields})
    assert error["param"] == param
    assert error["message"].startswith(param)


BODIES = {
    b"": "empty", b"  ": "empty", b"{": "not JSON", b"[]": "object", b'"x"': "object", b"null": "object",
    b"5": "object",
    b"\xff\xfe": "", b"[" * 100_000: "nested", b'{"model": "\\ud800"}': "surrogate", b'{"temperature": NaN}': "NaN",
    b'{"temperature": -Infinity}': "Infinity", b'{"seed": ' + b"9" * 5000 + b"}": "digits",
    b'{"model": "tiny", "prompt": "x", "model": "y"}': "twice", b'{"model": "tiny", "prompt": "\xe9"}': "UTF-8",
    b'{"model": "tiny", "prompt": "x", "temperature": 1e400}': "temperature",
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:40]))
def test_bodies_that_are_no_json_are_said_to_be_none(body: bytes) -> None:
    assert BODIES[body] in refusal("/v1/completions", body)["message"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "", "json", "application/jsonx"])
def test_a_body_has_to_say_that_it_is_json(kind: str) -> None:
    path = "/v1/completions"
    assert "Content-Type" in refusal(path, NEEDED[path], **{"content-type": kind})["message"]
    for fine in ("application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"):
        assert post(path, NEEDED[path], **{"content-type": fine})[0] == 200


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=50)
def test_any_body_is_refused_in_words(body: bytes) -> None:
    refusal("/v1/completions", body)
