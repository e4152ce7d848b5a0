"""Answers of a given form, over real blocks: valid, the same whoever goes on with them, and guesses change nothing."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.client.view import View
from swarm.config import ClientConfig, GatewayConfig
from swarm.errors import InvalidInput
from swarm.gateway.constrained import compiler
from swarm.gateway.constrained.compiler import Compiler
from swarm.gateway.constrained.grammars import grammar_of
from swarm.gateway.ends_batcher import EndsBatcher
from swarm.gateway.generation import Generator
from swarm.gateway.recommended import Recommended
from swarm.models.ends.ends import Ends
from swarm.models.ends.load import load_ends
from swarm.models.texts import Texts, load_tokenizer
from swarm.models.tool_calls import calls_in
from swarm.net.loop import shared_loop
from swarm.wire import swarm_pb2 as pb
from tests.checkpoints import Served, save, spans_of
from tests.gateway.test_generation import ask, query

END = 0
TAGGED_TEMPLATE, BARE_TEMPLATE = "<tool_call>", "{{ messages }}"


class Bytes:
    """A tokenizer whose tokens are bytes of ASCII, but for one that ends a text."""

    eos_token_id = END
    all_special_ids = (END,)

    def __init__(self, chat_template: str = TAGGED_TEMPLATE) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: Any, **options: Any) -> str:
        return bytes(int(i) for i in ids if 0 < i < 128).decode()

    def apply_chat_template(self, messages: list[Any], tokenize: bool = True, **options: Any) -> Any:
        text = "".join(message["content"] for message in messages)
        return list(text.encode()) if tokenize else text


Nodes = Callable[..., Generator]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Every block twice, and a context that JSON fits into."""
    folder = save(tmp_path_factory.mktemp("long"), "llama", max_position_embeddings=1024)
    running = Served(folder, spans_of(2) * 2)
    yield running
    running.close()


@pytest.fixture(scope="module")
def nodes(servers: Served) -> Iterator[Nodes]:
    made: list[EndsBatcher] = []
    ends = Ends(load_ends(servers.folder, dtype="float32", progress=False)[0])

    def make(template: str = TAGGED_TEMPLATE, stops: Sequence[int] = (END,), **config: Any) -> Generator:
        made.append(EndsBatcher(ends))
        info, row_bytes = servers.info, 4 * servers.info.hidden_size
        view = View(servers.swarm.directory, info, info.contract("float32", row_bytes), ClientConfig(max_wait=1.0))
        recommended = Recommended({}, frozenset(stops))
        return Generator(
            servers.swarm.host, view, Texts(Bytes(template)), made[-1], recommended, GatewayConfig(**config)
        )

    yield make
    for compute in made:
        shared_loop().run(compute.close())


def formed(new: int = 200, seed: int = 1, **form: Any) -> pb.Query:
    return query([65, 66], new, temperature=1.0, seed=seed, constraint=pb.Constraint(**form))


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["bee", "ant"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def test_an_answer_keeps_to_a_schema_and_ends_with_it(nodes: Nodes, servers: Served) -> None:
    for seed in range(3):
        got = ask(nodes(), formed(seed=seed, json_schema=json.dumps(PERSON)))
        jsonschema_rs.validate(PERSON, json.loads(got.text))
        assert got.finished.reason == pb.Finished.STOP
        assert got.tokens[-1] == ord("}")
    servers.assert_free()


@pytest.mark.parametrize("stops", [(END,), ()])
def test_patterns_and_grammars(nodes: Nodes, stops: Sequence[int]) -> None:
    node = nodes(stops=stops)
    got = ask(node, formed(regex="[a-c]{3}-[0-9]+"))
    assert re.fullmatch("[a-c]{3}-[0-9]+", got.text)
    assert got.finished.reason == pb.Finished.STOP
    assert ask(node, formed(grammar='start: "yes" | "no"')).text in ("yes", "no")
    greedy = query([65], 9, constraint=pb.Constraint(regex="x[0-9]y"))
    assert re.fullmatch("x[0-9]y", ask(node, greedy).text)


def test_what_has_to_come_is_sent_ahead_and_the_text_stays_the_same(
    nodes: Nodes, servers: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = formed(json_schema=json.dumps(PERSON))
    asked.trace = True
    steps = []
    for ahead in (True, False):
        if not ahead:
            monkeypatch.setattr("swarm.gateway.constrained.constraint.Constraint.forced", lambda self, ahead: [])
        got = ask(nodes(), asked)
        steps.append((got.text, max(span.count for span in got.finished.trace)))
    assert steps[0][0] == steps[1][0]
    assert steps[0][1] * 2 < steps[1][1] == len(steps[1][0]) - 1
    asked.sampling.speculation = "ngram"
    assert ask(nodes(), asked).text == steps[0][0]
    servers.assert_free()


def test_another_node_goes_on_from_any_token(nodes: Nodes) -> None:
    asked = formed(json_schema=json.dumps(PERSON))
    right = ask(nodes(), asked)
    for known in range(0, len(right.tokens) + 1, 3):
        rest = pb.Query()
        rest.CopyFrom(asked)
        rest.generated.extend(right.tokens[:known])
        assert right.tokens[:known] + ask(nodes(), rest).tokens == right.tokens
    rest.generated[:] = [ord("x")]
    with pytest.raises(InvalidInput, match="response_format"):
        ask(nodes(), rest)


TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": {
        "type": "object", "properties": {"where": {"$ref": "#/$defs/place"}}, "required": ["where"],
        "$defs": {"place": {"enum": ["here", "there"]}}, "additionalProperties": False}}},
    {"type": "function", "function": {"name": "wait"}},
]  # fmt: skip


@pytest.mark.parametrize("template", [TAGGED_TEMPLATE, BARE_TEMPLATE])
def test_tools_are_called_where_they_have_to_be(nodes: Nodes, template: str) -> None:
    node, seen = nodes(template), set()
    for seed in range(12):
        asked = query([65], 200, temperature=50.0, seed=seed)
        asked.tools = json.dumps(TOOLS)
        asked.tool_choice.single = True
        (call,) = calls_in(ask(node, asked).text)
        seen.add((call.name, call.arguments))
    assert seen == {("look", '{"where": "here"}'), ("look", '{"where": "there"}'), ("wait", "{}")}
    asked.tool_choice.names.append("wait")
    assert [call.name for call in calls_in(ask(node, asked).text)] == ["wait"]
    either = formed(json_schema='{"const": 5}')
    either.tools = asked.tools
    said = ask(node, either).text
    assert said == "5" or calls_in(said)


UNMEETABLE: list[dict[str, Any]] = [
    {"json_schema": "{"}, {"json_schema": "[]"}, {"json_schema": "5"}, {"json_schema": "false"},
    {"json_schema": '{"enum": []}'},
    {"json_schema": '{"type": "integer", "minimum": 5, "maximum": 3}'}, {"json_schema": '{"$ref": "#"}'},
    {"json_schema": '{"$ref": "http://example.com/schema"}'}, {"json_schema": '{"type": "strin"}'},
    {"json_schema": '{"oneOf": [{"type": "integer"}, {"type": "number"}]}'}, {"json_schema": '{"not": {}}'},
    {"json_schema": '{"x-guidance": 5}'}, {"json_schema": '{"items":' * 500 + "{}" + "}" * 500},
    {"json_schema": '{"items":' * 50_000 + "{}" + "}" * 50_000}, {"json_schema": json.dumps({"const": "x" * 300_000})},
    {"json_schema": json.dumps({
        "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"properties": {f"p{i}": {}}}]} for i in range(40)}
        | {"d40": {}}, "allOf": [{"$ref": "#/$defs/d0"}] * 9})},
    {"regex": "((("}, {"regex": "(?=a)b"}, {"regex": r"[^\x00-\x{10FFFF}]"}, {"regex": r"\x{1F41D}+"},
    {"grammar": "start: nothing"}, {"grammar": 'start: start "a"'}, {"grammar": ""},
    {"grammar": "start: @other"}, {"grammar": 'root ::= "llama"'}, {"grammar": "\n" * 40_000},
]  # fmt: skip


@pytest.mark.parametrize("form", UNMEETABLE, ids=lambda form: next(iter(form.values()))[:40])
def test_what_cannot_be_met_is_refused_before_any_work(nodes: Nodes, form: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as raised:
        ask(nodes(), formed(**form))
    assert raised.value.field == ("response_format" if "json_schema" in form else "structured_outputs")


def test_what_takes_too_long_to_prepare_is_refused(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "PATIENCE", 0.0)
    with pytest.raises(InvalidInput, match="takes too long"):
        ask(nodes(), formed(grammar="start: " + " ".join('%json {"type":"object"}' for _ in range(100))))


def test_senseless_choices_are_refused(nodes: Nodes) -> None:
    asked = formed(regex="a")
    asked.sampling.ignore_eos = True
    with pytest.raises(InvalidInput, match="ignore_eos"):
        ask(nodes(), asked)
    asked = formed(regex="a")
    asked.tools = json.dumps(TOOLS)
    with pytest.raises(InvalidInput, match="not both"):
        ask(nodes(), asked)
    asked = query([65], 9)
    asked.tool_choice.single = True
    with pytest.raises(InvalidInput, match="no tools"):
        ask(nodes(), asked)
    asked.tools = json.dumps(TOOLS)
    asked.tool_choice.names.append("run")
    with pytest.raises(InvalidInput, match="look, wait"):
        ask(nodes(), asked)


def test_what_becomes_too_much_on_its_way_ends_that_answer_alone(nodes: Nodes, servers: Served) -> None:
    """It is no more than a pattern that is very long; what its states cost is only known when they are come to."""
    node = nodes()
    with pytest.raises(InvalidInput, match="cannot go on"):
        ask(node, formed(regex="x?(a{1000}){1000}", new=40))
    assert ask(node, formed(regex="ab")).text == "ab"
    servers.assert_free()


# ---- schemas by chance --------------------------------------------------------------------------------------------

KEYS = st.text("abcdef", min_size=1, max_size=3)
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(0, 4).map(lambda n: {"type": "string", "maxLength": n}),
    st.tuples(st.integers(-9, 9), st.integers(0, 90)).map(
        lambda at: {"type": "integer", "minimum": at[0], "maximum": at[0] + at[1]}
    ),
    st.lists(st.one_of(KEYS, st.integers(-99, 99), st.booleans(), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    KEYS.map(lambda text: {"const": text}),
)


def _object(drawn: tuple[dict[str, Any], set[int]]) -> dict[str, Any]:
    properties, left_out = drawn
    required = [key for place, key in enumerate(properties) if place not in left_out]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lengths = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return st.one_of(
        st.tuples(st.dictionaries(KEYS, inner, max_size=3), st.sets(st.integers(0, 2))).map(_object),
        st.tuples(inner, lengths).map(
            lambda of: {"type": "array", "items": of[0], "minItems": of[1][0], "maxItems": sum(of[1])}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    )


SCHEMAS = st.recursive(LEAVES, _deeper, max_leaves=8)


async def disturbed(node: Generator, asked: pb.Query, servers: Served, at: int) -> tuple[str, bool]:
    """The text of an answer whose route loses its last server behind token `at`, and whether that came."""
    text, told, lost = "", 0, ""
    async with aclosing(node.answer(asked)) as replies:
        async for reply in replies:
            if reply.WhichOneof("kind") == "route":
                last = reply.route.hops[-1].peer_id
            text += reply.delta.text
            told += len(reply.delta.tokens)
            if told > at and not lost:
                lost = last
                servers.network.cut("client", lost, silent=False)
    if lost:
        servers.network.mend("client", lost)
    return text, bool(lost)


def answers_to(nodes: Nodes, servers: Served, schema: Any, seed: int, speculation: str, at: int | None) -> None:
    asked = formed(400, seed, json_schema=json.dumps(schema))
    asked.sampling.speculation = speculation
    got = ask(nodes(), asked)
    assert got.finished.reason == pb.Finished.STOP
    jsonschema_rs.validate(schema, json.loads(got.text))
    if at is not None:
        assert shared_loop().run(disturbed(nodes(), asked, servers, at))[0] == got.text


SPECULATIONS = st.sampled_from(["none", "ngram"])


@given(SCHEMAS, st.integers(0, 1 << 60), SPECULATIONS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_to_schemas_by_chance_are_valid(
    nodes: Nodes, servers: Served, schema: Any, seed: int, speculation: str
) -> None:
    answers_to(nodes, servers, schema, seed, speculation, None)


@pytest.mark.soak
@given(SCHEMAS, st.integers(0, 1 << 60), SPECULATIONS, st.sampled_from([*[None] * 9, 0, 1, 3, 10]))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_answers_to_many_schemas_are_valid_whoever_is_lost(
    nodes: Nodes, servers: Served, schema: Any, seed: int, speculation: str, at: int | None
) -> None:
    answers_to(nodes, servers, schema, seed, speculation, at)


def test_a_server_that_is_lost_changes_nothing(nodes: Nodes, servers: Served) -> None:
    asked = formed(json_schema=json.dumps(PERSON))
    assert shared_loop().run(disturbed(nodes(), asked, servers, 5)) == (ask(nodes(), asked).text, True)


TINY = Path(__file__).parents[2] / "models" / "tiny-llama"


@given(SCHEMAS, st.integers(0, 1 << 60))
@settings(max_examples=20, deadline=None)
def test_tokens_of_several_bytes_keep_to_schemas_and_what_is_forced_comes(schema: Any, seed: int) -> None:
    texts, chance = Texts(load_tokenizer(str(TINY))), random.Random(seed)
    vocabulary, end = len(texts.tokenizer), texts.tokenizer.eos_token_id
    grammar = grammar_of(pb.Constraint(json_schema=json.dumps(schema)), [], None, texts.tool_style)
    assert grammar is not None
    constraint = asyncio.run(Compiler(texts, vocabulary, [end]).compile(*grammar, []))
    tokens: list[int] = []
    while not constraint.over:
        forced, allowed = constraint.forced([]), constraint.allowed().tolist()
        assert allowed == sorted(allowed)
        if forced:
            assert allowed == forced[:1]
            assert constraint.fitting(forced) == len(forced)
        tokens.append(chance.choice(allowed))
        constraint.take(tokens[-1])
    jsonschema_rs.validate(schema, json.loads(texts.decode([token for token in tokens if token != end])))
