"""Every field of /v1/responses and /v1/messages as the official packages declare them: honoured, a hint, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import message_create_params as messages
from openai.types.responses import response_create_params as responses

from swarm.gateway.anthropic import contents
from swarm.gateway.anthropic import requests as anthropic
from swarm.gateway.http.sampling import SamplingFields
from swarm.gateway.responses import items
from swarm.gateway.responses import requests as responding
from swarm.wire import swarm_pb2 as pb
from tests.gateway.test_fields import post

OURS = {*SamplingFields.model_fields}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
NEEDED: dict[str, dict[str, Any]] = {
    RESPONSES: {"model": "tiny", "input": "x"},
    MESSAGES: {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]},
}
MODELS: dict[str, Any] = {RESPONSES: responding.ResponseRequest, MESSAGES: anthropic.MessageRequest}
BETA = {"context_management", "mcp_servers"}
"""Of a beta of Anthropic's that agents use."""
OFFICIAL = {
    RESPONSES: {*responses.ResponseCreateParamsNonStreaming.__annotations__} | OURS | {"stop"},
    MESSAGES: {*messages.MessageCreateParamsNonStreaming.__annotations__} | OURS | BETA,
}
HINTS: dict[str, dict[str, Any]] = {
    RESPONSES: {
        "reasoning": {"effort": "low", "summary": "auto"}, "metadata": {"a": "b"}, "prompt_cache_key": "k",
        "safety_identifier": "me", "user": "me", "include": ["reasoning.encrypted_content"],
        "text": {"verbosity": "low"}, "store": False, "service_tier": "auto", "truncation": "disabled",
        "background": False, "parallel_tool_calls": True,
    },
    MESSAGES: {
        "thinking": {"type": "adaptive"}, "metadata": {"user_id": "me"}, "output_config": {"effort": "low"},
        "cache_control": {"type": "ephemeral"}, "service_tier": "auto", "speed": "standard", "mcp_servers": [],
        "context_management": {"edits": []}, "inference_geo": "us", "diagnostics": {},
    },
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    RESPONSES: {
        "access_programs": {}, "background": True, "background_options": {}, "context_management": [{}],
        "conversation": "c", "image": {"id": "x"}, "max_tool_calls": 3, "moderation": {"model": "m"},
        "previous_response_id": "r", "prompt": {"id": "p"}, "prompt_cache_options": {"mode": "implicit"},
        "prompt_cache_retention": "24h", "service_tier": "flex", "store": True, "truncation": "auto",
        "stream_options": {"include_obfuscation": True},
    },
    MESSAGES: {"container": "c", "mcp_servers": [{}], "service_tier": "fast", "speed": "fast"},
}  # fmt: skip


@pytest.mark.parametrize("path", OFFICIAL)
def test_no_field_is_forgotten(path: str) -> None:
    assert {*MODELS[path].model_fields} == OFFICIAL[path]


@pytest.mark.parametrize("path", HINTS)
def test_hints_and_what_changes_nothing_may_be_there(path: str) -> None:
    status, answer, _ = post(path, {**NEEDED[path], **HINTS[path]})
    assert status == 200, answer
    assert post(path, {**NEEDED[path], **dict.fromkeys({*MODELS[path].model_fields} - {*NEEDED[path]})})[0] == 200


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, fields in REFUSED.items() for name in fields])
def test_a_field_is_refused_by_name(path: str, name: str) -> None:
    status, answer, asked = post(path, {**NEEDED[path], name: REFUSED[path][name]})
    assert (status, asked) == (400, [])
    assert name in answer["error"]["message"]


def test_what_is_honoured_reaches_the_query() -> None:
    ours = {"temperature": 0.5, "top_p": 0.25, "top_k": 5, "min_p": 0.125, "seed": 9, "speculation": "ngram",
            "logit_bias": {"7": -100}, "repetition_penalty": 1.5, "ignore_eos": True}  # fmt: skip
    more = {RESPONSES: {"max_output_tokens": 3, "stop": "a"}, MESSAGES: {"stop_sequences": ["a"]}}
    for path, fields in more.items():
        status, answer, (query,) = post(path, {**NEEDED[path], **ours, **fields})
        assert status == 200, answer
        sampling = query.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 5, 0.125)
        assert (sampling.seed, sampling.max_tokens, list(sampling.stop)) == (9, 3, ["a"])
        assert (sampling.speculation, sampling.repetition_penalty, sampling.ignore_eos) == ("ngram", 1.5, True)
        assert [(bias.token, bias.value) for bias in sampling.bias] == [(7, -100)]


ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
CHOICES: list[tuple[str, Any, pb.ToolChoice | None]] = [
    (RESPONSES, "auto", None),
    (RESPONSES, "none", None),
    (RESPONSES, "required", pb.ToolChoice()),
    (RESPONSES, {"type": "function", "name": "f"}, pb.ToolChoice(names=["f"], single=True)),
    (RESPONSES, ALLOWED, pb.ToolChoice(names=["f"])),
    (MESSAGES, {"type": "auto"}, None),
    (MESSAGES, {"type": "none"}, None),
    (MESSAGES, {"type": "any"}, pb.ToolChoice()),
    (MESSAGES, {"type": "any", "disable_parallel_tool_use": True}, pb.ToolChoice(single=True)),
    (MESSAGES, {"type": "tool", "name": "f"}, pb.ToolChoice(names=["f"], single=True)),
]


@pytest.mark.parametrize(("path", "choice", "wanted"), CHOICES, ids=lambda part: str(part)[:60])
def test_choices_of_tools(path: str, choice: Any, wanted: pb.ToolChoice | None) -> None:
    tools = [FUNCTION] if path == RESPONSES else [TOOL]
    status, answer, (query,) = post(path, {**NEEDED[path], "tools": tools, "tool_choice": choice})
    assert status == 200, answer
    assert (query.tool_choice if query.HasField("tool_choice") else None) == wanted
    assert bool(query.tools) == ("none" not in str(choice))


def said(*content: Any, role: str = "user") -> list[Any]:
    return [{"role": role, "content": list(content)}]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (RESPONSES, {"input": []}, "input"),
    (RESPONSES, {"input": 5}, "input"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    (RESPONSES, {"input": [{"role": "user"}]}, "input"),
    (RESPONSES, {"input": [{"type": 5}]}, "input[0]"),
    (RESPONSES, {"input": [{"type": "function_call", "name": "f"}]}, "call_id"),
    (RESPONSES, {"input": said({"type": "input_file", "file_id": "x"})}, "input_file"),
    (RESPONSES, {"tools": [{"type": "web_search"}]}, "web_search"),
    (RESPONSES, {"tool_choice": "required"}, "tool_choice"),
    (RESPONSES, {"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text"),
    (RESPONSES, {"include": ["file_search_call.results"]}, "include"),
    (RESPONSES, {"max_tokens": 3}, "max_tokens"),
    (MESSAGES, {"messages": []}, "messages"),
    (MESSAGES, {"messages": [{"role": "tool", "content": "x"}]}, "role"),
    (MESSAGES, {"messages": said({"type": "document"})}, "document"),
    (MESSAGES, {"messages": [{"role": "user", "content": 5}]}, "content"),
    (MESSAGES, {"messages": said(5)}, "content[0]"),
    (MESSAGES, {"messages": said({"type": "tool_result"})}, "tool_use_id"),
    (MESSAGES, {"messages": said({"type": "tool_use", "id": "x"}, role="assistant")}, "tool_use"),
    (MESSAGES, {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "assistant"),
    (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
    (MESSAGES, {"tools": [{"name": "f"}]}, "input_schema"),
    (MESSAGES, {"tool_choice": {"type": "any"}}, "tool_choice"),
    (MESSAGES, {"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
    (MESSAGES, {"max_tokens": None}, "max_tokens"),
    (MESSAGES, {"system": 5}, "system"),
    (MESSAGES, {"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
]


@pytest.mark.parametrize(("path", "fields", "named"), WRONG, ids=lambda part: str(part)[:60])
def test_what_is_wrong_is_named(path: str, fields: dict[str, Any], named: str) -> None:
    status, answer, asked = post(path, {**NEEDED[path], **fields})
    assert (status, asked) == (400, []), answer
    assert named in answer["error"]["message"]
    assert not any(word in answer["error"]["message"] for word in ("pydantic", "dict[", "list[", ".str"))


def test_items_become_messages() -> None:
    conversation = [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "d"}]},
    ]
    call = lambda key, name: {"id": key, "type": "function", "function": {"name": name, "arguments": "{}"}}  # noqa: E731
    calls = [call("1", "f"), call("2", "g")]
    assert items.messages_of("Look.", conversation) == [
        {"role": "system", "content": "Look.\n\nBe brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}], "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "d"}]},
    ]
    assert items.messages_of(None, conversation[4:5]) == [{"role": "assistant", "tool_calls": calls[:1]}]
    image = {"type": "input_image", "image_url": "https://example.org/bee.png", "detail": "low"}
    (told,) = items.contents_of([image])
    assert told == {"type": "image_url", "image_url": {"url": "https://example.org/bee.png", "detail": "low"}}


def test_blocks_become_messages() -> None:
    text = lambda said: {"type": "text", "text": said, "cache_control": {"type": "ephemeral"}}  # noqa: E731
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    turns = [
        *said(text("a"), text("b")),
        *said(thought, text("c"), use, role="assistant"),
        *said(text("e"), {"type": "tool_result", "tool_use_id": "1", "content": [text("d")]}),
        *said(role="assistant"),
        *said({"type": "tool_result", "tool_use_id": "2"}),
    ]
    part = lambda said: {"type": "text", "text": said}  # noqa: E731
    function = {"name": "f", "arguments": {"x": 1}}
    assert contents.messages_of([text("s"), text("t")], turns) == [
        {"role": "system", "content": "s\n\nt"},
        {"role": "user", "content": [part("a"), part("b")]},
        {"role": "assistant", "content": "c", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": [part("d")]},
        {"role": "user", "content": [part("e")]},
        {"role": "assistant", "content": ""},
        {"role": "tool", "tool_call_id": "2", "content": ""},
    ]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    ((told,),) = (message["content"] for message in contents.messages_of(None, said(image)))
    assert told == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
