"""Conversations in OpenAI's shape reach a template in the shape that it wants, whole, or are refused in words."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import InvalidInput
from swarm.models.chat import ChatTemplate, plain_messages
from tests.checkpoints import make_tokenizer

CALLS = """{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} ARGUMENTS</call>{% endfor %}"""
LOOP = "{% for m in messages %}{{ m.role }}: CONTENT" + CALLS + "{{ '\\n' }}{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}>{% endif %}"
TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"


class Tokenizer:
    """transformers' own templating, and ids that are characters."""

    def __init__(self, template: str) -> None:
        self.inner = make_tokenizer()
        self.chat_template = self.inner.chat_template = template

    def apply_chat_template(
        self, messages: Any, tokenize: bool = True, return_dict: bool = False, **options: Any
    ) -> Any:
        text = str(self.inner.apply_chat_template(messages, tokenize=False, **options))
        return [ord(letter) for letter in text] if tokenize else text


def template(content: str = "{{ m.content or '' }}", arguments: str = "{{ c.function.arguments | tojson }}") -> str:
    return TOOLS + LOOP.replace("CONTENT", content).replace("ARGUMENTS", arguments) + ASSISTANT


def render(messages: Any, how: str | None = None, tools: Any = ()) -> str:
    return "".join(map(chr, ChatTemplate(Tokenizer(how or template())).ids(messages, tools)))


def call(arguments: Any = '{"a": 2, "b": null}', **more: Any) -> dict[str, Any]:
    return {"id": "x", "type": "function", "function": {"name": "add", "arguments": arguments}, **more}


ASKED: Any = {"role": "user", "content": "What is it?"}


def history(arguments: Any, **message: Any) -> list[Any]:
    calling = {"role": "assistant", "content": None, "tool_calls": [call(arguments)], **message}
    return [ASKED, calling, {"role": "tool", "tool_call_id": "x", "content": "5"}]


@pytest.mark.parametrize(
    "arguments",
    [
        "{{ c.function.arguments | tojson }}",
        "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}",
        "{% for k in c.function.arguments %}{{ k }}={{ c.function.arguments[k] }}{% endfor %}",
    ],
)
def test_arguments_are_objects_for_templates(arguments: str) -> None:
    how = template(arguments=arguments)
    assert render(history('{"a": 2, "b": null}'), how) == render(history({"a": 2, "b": None}), how)
    expected = Tokenizer(how).apply_chat_template(
        history({"a": 2, "b": None}), tokenize=False, add_generation_prompt=True
    )
    assert render(history('{"a": 2, "b": null}'), how) == expected


def test_a_template_that_adds_arguments_to_text_gets_text() -> None:
    how = template(arguments="{{ '<' + c.function.arguments + '>' }}")
    assert '<{"a": 2, "b": null}>' in render(history('{"a": 2, "b": null}'), how)


def test_a_template_that_adds_to_contents_gets_text() -> None:
    assert "assistant: !<call>" in render(history("{}"), template(content="{{ m.content + '!' }}"))


def test_a_template_of_parts_gets_parts() -> None:
    how = template(content="{% for part in m.content %}{{ part.text }}{% endfor %}")
    assert render([ASKED], how) == "user: What is it?\n>"


@pytest.mark.parametrize("arguments", ["", " ", None, "{}", {}])
def test_no_arguments_are_no_arguments(arguments: Any) -> None:
    assert "<call>add {}</call>" in render(history(arguments))


@pytest.mark.parametrize("arguments", ["{", "[1]", "5", '"x"', "null", 5, [1], "[" * 100_000])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    with pytest.raises(InvalidInput, match=r"messages\[1\]\.tool_calls\[0\]\.function\.arguments") as refused:
        render(history(arguments))
    assert refused.value.field == "messages"


def test_a_template_of_short_ids_gets_short_ids_that_match() -> None:
    how = template(
        content="""{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}
        {{- raise_exception("ids have nine letters") }}{% endif %}({{ c.id }}){% endfor %}
        {%- if m.role == "tool" %}({{ m.tool_call_id }}){% endif %}{{ m.content or '' }}"""
    )
    said = history("{}")
    text = render(said, how)
    ids = re.findall(r"\((\w{9})\)", text)
    assert len(ids) == 2
    assert ids[0] == ids[1]
    said[1]["tool_calls"][0]["id"] = said[2]["tool_call_id"] = "abcDEF123"
    assert render(said, how).count("(abcDEF123)") == 2


def test_results_have_the_name_of_their_call() -> None:
    how = template(content="{{ m.name }}|{{ m.content }}")
    assert "tool: add|5" in render(history("{}"), how)
    old = [
        ASKED,
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "add", "content": "5"},
    ]
    assert '<call>add {"a": 1}</call>\ntool: add|5' in render(old, how)
    plain = plain_messages(old)
    assert plain[2]["tool_call_id"] == plain[1]["tool_calls"][0]["id"]


def test_parts_of_text_are_text_and_a_refusal_is_what_was_said() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    said = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": None, "refusal": "So."},
        {"role": "user", "content": [], "name": None},
    ]
    assert render(said) == "user: one two\nassistant: No.\nuser: Why?\nassistant: So.\nuser: \n>"


IMAGE = {"type": "image_url", "image_url": {"url": "https://x"}}
WRONG: list[tuple[Any, str]] = [
    ([], "at least one"),
    ([5], r"messages\[0\]"),
    ([{"content": "x"}], r"messages\[0\]\.role"),
    ([{"role": None, "content": "x"}], r"messages\[0\]\.role"),
    ([ASKED, {"role": "user"}], r"messages\[1\]\.content"),
    ([{"role": "assistant", "content": None}], r"messages\[0\]\.content"),
    ([{"role": "user", "content": 5}], r"messages\[0\]\.content"),
    ([{"role": "user", "content": {"type": "text"}}], r"messages\[0\]\.content"),
    ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\]"),
    ([{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}], r"content\[1\] is of type image_url"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "input_audio"),
    ([{"role": "user", "content": [{"type": "file", "file": {}}]}], "of type file"),
    ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text"),
    ([{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}], "refusal"),
    ([{"role": "assistant", "audio": {"id": "x"}}], "audio"),
    ([{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}], "custom"),
    ([{"role": "assistant", "tool_calls": [{"type": "function"}]}], r"tool_calls\[0\]\.function"),
    ([{"role": "assistant", "tool_calls": "x"}], "tool_calls"),
    ([{"role": "assistant", "tool_calls": [5]}], r"tool_calls\[0\]"),
]


@pytest.mark.parametrize(("messages", "words"), WRONG)
def test_what_is_wrong_is_named(messages: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        render(messages)
    assert refused.value.field == "messages"


FIXED = """{% for m in messages if m.role in ('system', 'user', 'assistant') %}{{ m.role }}: {{ m.content }}{{ '\n' }}
{%- endfor %}>"""


def test_developers_speak_as_the_system_where_a_template_knows_none() -> None:
    said = [{"role": "developer", "content": "Be brief."}, ASKED]
    assert render(said, FIXED) == render([{**said[0], "role": "system"}, ASKED], FIXED)
    assert render(said) == render([{**said[0], "role": "system"}, ASKED])
    assert render(said, "{# developer #}" + template()).startswith("developer: Be brief.")


@pytest.mark.parametrize("role", ["tool", "critic", "function"])
def test_a_message_that_a_template_leaves_out_is_refused(role: str) -> None:
    for said in (
        [ASKED, {"role": role, "content": "What is it?", "name": "x"}],
        [{"role": role, "content": "y"}, ASKED],
    ):
        with pytest.raises(InvalidInput, match="does not reach the model"):
            render(said, FIXED)


def test_calls_that_a_template_leaves_out_are_refused_and_tools_are_not() -> None:
    with pytest.raises(InvalidInput, match=r"messages\[1\].*does not reach"):
        render(history('{"a": 2}'), FIXED.replace("'assistant'", "'assistant', 'tool'"))
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    assert "[add]" in render([ASKED], tools=[tool])
    assert render([ASKED], FIXED, [tool]) == render([ASKED], FIXED)
    for wrong in ({"type": "custom", "custom": {}}, {"type": "function"}, {"function": {"name": "x"}}, 5):
        with pytest.raises(InvalidInput, match=r"tools\[0\]"):
            render([ASKED], tools=[wrong])


def test_what_a_template_raises_is_told() -> None:
    how = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + FIXED
    with pytest.raises(InvalidInput, match="System role not supported"):
        render([{"role": "system", "content": "x"}, ASKED], how)
    assert render([ASKED], how)


def test_thoughts_that_a_template_cuts_off_are_its_affair() -> None:
    how = "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}{% endfor %}>"
    said = [ASKED, {"role": "assistant", "content": "<think>hm</think>Yes."}, ASKED]
    assert "hm" not in render(said, how)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(max_size=3)
    | st.sampled_from(["text", "function", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "refusal"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=3), st.lists(JSON, max_size=2))
def test_anything_is_rendered_or_refused(messages: Any, tools: Any) -> None:
    try:
        render(json.loads(json.dumps(messages)), tools=tools)
    except InvalidInput as error:
        assert error.field in ("messages", "tools")
