"""Queries answered over real blocks: the same tokens as plain transformers, whoever goes on with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.client.view import View
from swarm.config import ClientConfig, GatewayConfig
from swarm.errors import ContextTooLong, InvalidInput, MissingBlocks, ServerBusy
from swarm.gateway import generation
from swarm.gateway.ends_batcher import EndsBatcher
from swarm.gateway.generation import Generator
from swarm.gateway.recommended import Recommended
from swarm.models.ends.ends import Ends
from swarm.models.ends.load import load_ends
from swarm.models.texts import Texts
from swarm.net.loop import shared_loop
from swarm.speculation.pacer import MOST
from swarm.types import ServerRecord
from swarm.wire import swarm_pb2 as pb
from tests.checkpoints import Served, prompt, settled
from tests.drafting import Prophet, Reckless

Serve = Callable[[str, int], Served]
KINDS = ("llama", "gemma2+untied", "gpt2", "bloom+untied", "qwen3_moe")


class Bytes:
    """A tokenizer whose tokens are bytes."""

    chat_template = "yes"
    eos_token_id = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: Any, **options: Any) -> str:
        return bytes(int(i) % 128 for i in ids).decode()

    def apply_chat_template(self, messages: list[Any], tokenize: bool = True, **options: Any) -> Any:
        text = "".join(message["content"] for message in messages)
        return list(text.encode()) if tokenize else text


@pytest.fixture(scope="module")
def nodes(served: Serve) -> Iterator[Callable[..., Generator]]:
    made: list[EndsBatcher] = []
    ends: dict[str, Ends] = {}

    def make(kind: str, recommended: Recommended | None = None, **config: Any) -> Generator:
        servers = served(kind, 2)
        if kind not in ends:
            ends[kind] = Ends(load_ends(servers.folder, dtype="float32", progress=False)[0])
        made.append(EndsBatcher(ends[kind]))
        info, row_bytes = servers.info, 4 * servers.info.hidden_size
        view = View(servers.swarm.directory, info, info.contract("float32", row_bytes), ClientConfig(max_wait=1.0))
        recommended = recommended or Recommended({}, frozenset())
        return Generator(servers.swarm.host, view, Texts(Bytes()), made[-1], recommended, GatewayConfig(**config))

    yield make
    for compute in made:
        shared_loop().run(compute.close())


def query(ids: Any, new: int = 8, **sampling: Any) -> pb.Query:
    return pb.Query(id=bytes(16), tokens=pb.Tokens(ids=ids), sampling=pb.Sampling(max_tokens=new, **sampling))


async def collect(node: Generator, asked: pb.Query) -> SimpleNamespace:
    """All that is answered: tokens, text, logprobs, routes, and how it ended."""
    got = SimpleNamespace(tokens=[], text="", logprobs=[], routes=[], waiting=[], finished=None, accepted=None)
    async with aclosing(node.answer(asked)) as replies:
        async for reply in replies:
            kind = reply.WhichOneof("kind")
            if kind == "delta":
                got.tokens += reply.delta.tokens
                got.text += reply.delta.text
                got.logprobs += reply.delta.logprobs
            elif kind in ("route", "waiting"):
                getattr(got, "routes" if kind == "route" else "waiting").append(getattr(reply, kind))
            else:
                setattr(got, str(kind), getattr(reply, str(kind)))
    return got


def ask(node: Generator, asked: pb.Query) -> SimpleNamespace:
    return shared_loop().run(collect(node, asked))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_those_of_plain_transformers(
    nodes: Callable[..., Generator], served: Serve, whole: Callable[[str], Any], kind: str
) -> None:
    inputs, expected = settled(whole(kind), lambda seed: {"input_ids": prompt(9, seed)}, 8)
    ids = inputs["input_ids"][0].tolist()
    got = ask(nodes(kind), query(ids))
    assert got.tokens == expected[0].tolist()[len(ids) :]
    assert (got.finished.reason, got.finished.prompt_tokens, got.finished.completion_tokens) == (1, 9, 8)
    assert [(hop.first, hop.last) for hop in got.routes[0].hops] == [
        (h.contract.span.first, h.contract.span.last) for h in served(kind, 2).hosted
    ]
    served(kind, 2).assert_free()


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_are_each_as_alone(nodes: Callable[..., Generator], served: Serve, kind: str) -> None:
    node = nodes(kind)
    asked = [query(prompt(3 + n, n)[0].tolist(), 6, temperature=1.0, seed=n) for n in range(6)]
    alone = [ask(node, each).tokens for each in asked]

    async def together() -> list[list[int]]:
        return [got.tokens for got in await asyncio.gather(*(collect(node, each) for each in asked))]

    assert shared_loop().run(together()) == alone
    assert len({tuple(tokens) for tokens in alone}) == 6
    served(kind, 2).assert_free()


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.9, "seed": 7}, {"temperature": 1.2, "top_p": 0.9, "seed": 1}]
)
def test_another_node_goes_on_from_any_token(nodes: Callable[..., Generator], sampling: dict[str, Any]) -> None:
    ids = prompt(7, 3)[0].tolist()
    options = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, **sampling}
    right = ask(nodes("llama"), query(ids, 10, **options))
    for known in range(11):
        asked = query(ids, 10, **options)
        asked.generated.extend(right.tokens[:known])
        asked.sent_bytes = max(known - 1, 0)
        got = ask(nodes("llama"), asked)
        assert right.tokens[:known] + got.tokens == right.tokens
        assert right.text[: asked.sent_bytes] + got.text == right.text
        assert got.finished.completion_tokens == 10


SAMPLINGS = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.9, "seed": 7, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "top_k": 20},
]


def guessing(monkeypatch: pytest.MonkeyPatch, text: Sequence[int], wrong: Sequence[int], depth: int = MOST) -> Reckless:
    """From now on queries are answered with guesses at this text, some of which are wrong."""
    pacer = Reckless(Prophet(text, wrong), depth)
    monkeypatch.setattr(generation, "pacer_of", lambda speculation: pacer)
    return pacer


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("wrong", [(), (12,), (20, 21, 33), range(60)])
def test_guesses_change_nothing_but_the_time(
    nodes: Callable[..., Generator],
    served: Serve,
    monkeypatch: pytest.MonkeyPatch,
    sampling: dict[str, Any],
    wrong: Sequence[int],
) -> None:
    ids = prompt(9, 4)[0].tolist()
    options = {"logprobs": True, "top_logprobs": 2, **sampling}
    plain = ask(nodes("llama"), query(ids, 40, **options))
    pacer = guessing(monkeypatch, ids + plain.tokens, wrong)
    got = ask(nodes("llama"), query(ids, 40, **options))
    assert (got.tokens, got.text) == (plain.tokens, plain.text)
    assert [each.logprob for each in got.logprobs] == pytest.approx([each.logprob for each in plain.logprobs], abs=1e-3)
    assert got.finished.completion_tokens == 40
    missed = sum(9 < place < 48 for place in wrong)
    assert pacer.drafted - pacer.right == missed
    assert pacer.right == 38 - missed
    served("llama", 2).assert_free()


@given(st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_goes_on_and_ends_as_it_does_without_guesses(
    nodes: Callable[..., Generator], served: Serve, data: st.DataObject
) -> None:
    ids = prompt(9, 4)[0].tolist()
    known, most = data.draw(st.integers(0, 6)), data.draw(st.integers(7, 30))
    options = data.draw(st.sampled_from(SAMPLINGS))
    plain = ask(nodes("llama"), query(ids, most, **options))
    stops = [plain.text[at : at + 2] for at in data.draw(st.lists(st.integers(8, max(8, most - 2)), max_size=1))]
    stops = [stop for stop in stops if stop]
    asked = query(ids, most, stop=stops, **options)
    right = ask(nodes("llama"), asked)
    asked.generated.extend(right.tokens[:known])
    wrong = data.draw(st.lists(st.integers(9, 9 + most), max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        guessing(patch, ids + plain.tokens, wrong, data.draw(st.integers(0, MOST)))
        got = ask(nodes("llama"), asked)
    assert right.tokens[:known] + got.tokens == right.tokens
    assert got.text == right.text
    assert got.finished.reason == right.finished.reason
    served("llama", 2).assert_free()


@pytest.mark.parametrize("kind", [*KINDS, "qwen3_next"])
def test_guesses_out_of_the_text_itself(nodes: Callable[..., Generator], served: Serve, kind: str) -> None:
    """Greedy text of a random model falls into a loop; blocks with a running state go back."""
    node, ids = nodes(kind), prompt(9, 4)[0].tolist()
    plain = ask(node, query(ids, 30))
    assert ask(node, query(ids, 30, speculation="ngram")).tokens == plain.tokens
    assert ask(nodes(kind, speculation="ngram"), query(ids, 30)).tokens == plain.tokens
    assert ask(nodes(kind, speculation="ngram"), query(ids, 30, speculation="none")).tokens == plain.tokens
    served(kind, 2).assert_free()


def test_who_leaves_with_guesses_on_their_way_frees_every_hop(
    nodes: Callable[..., Generator], served: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt(9, 4)[0].tolist()
    guessing(monkeypatch, ids + ask(nodes("llama"), query(ids, 40)).tokens, (14, 25))
    node = nodes("llama")

    async def main() -> None:
        async with aclosing(node.answer(query(ids, 40))) as replies:
            told = 0
            async for reply in replies:
                told += reply.WhichOneof("kind") == "delta"
                if told == 3:
                    break

    shared_loop().run(main())
    assert node.running == 0
    served("llama", 2).assert_free()


def test_a_trace_tells_where_the_time_went_hop_by_hop(nodes: Callable[..., Generator], served: Serve) -> None:
    asked = query(prompt(20, 3)[0].tolist(), 6)
    asked.trace = True
    trace = ask(nodes("llama"), asked).finished.trace
    hops = {host.peer_id for host in served("llama", 2).hosts}
    for phase, least in {"prefill": 1, "decode": 5}.items():
        spans = [span for span in trace if span.name.endswith(phase)]
        assert {(span.peer_id, span.name) for span in spans} == {
            ("", f"compute {phase}"),
            ("", f"wire {phase}"),
            *((hop, f"{what} {phase}") for hop in hops for what in ("queue", "compute")),
        }
        assert all(span.count >= least for span in spans if span.peer_id)
        assert all(span.seconds > 0 for span in spans if "wire" not in span.name)
        assert [span.start for span in spans] == sorted(span.start for span in spans)
    assert ask(nodes("llama"), query([1, 2])).finished.trace == []


def test_logprobs_are_those_of_the_model(nodes: Callable[..., Generator], whole: Callable[[str], Any]) -> None:
    ids = prompt(7, 3)[0].tolist()
    got = ask(nodes("llama"), query(ids, 4, logprobs=True, top_logprobs=3))
    with torch.no_grad():
        logits = whole("llama")(torch.tensor([ids + got.tokens])).logits[0, len(ids) - 1 : -1]
    shares = torch.log_softmax(logits, -1)
    for place, told in enumerate(got.logprobs):
        assert told.token == got.tokens[place] == told.top[0].token
        assert told.logprob == pytest.approx(float(shares[place, told.token]), abs=1e-3)
        assert [t.token for t in told.top] == shares[place].topk(3).indices.tolist()


def test_a_stop_text_ends_the_answer_before_it(nodes: Callable[..., Generator]) -> None:
    ids = prompt(7, 3)[0].tolist()
    whole_text = ask(nodes("llama"), query(ids, 12)).text
    stop = whole_text[5:7]
    got = ask(nodes("llama"), query(ids, 12, stop=[stop, "never"]))
    assert got.text == whole_text[: whole_text.index(stop)]
    assert got.finished.reason == pb.Finished.STOP


def test_an_end_token_ends_it_unless_it_is_to_be_ignored(nodes: Callable[..., Generator]) -> None:
    ids = prompt(7, 3)[0].tolist()
    tokens = ask(nodes("llama"), query(ids, 6)).tokens
    node = nodes("llama", Recommended({}, frozenset({tokens[2]})))
    got = ask(node, query(ids, 6))
    assert got.tokens == tokens[: tokens.index(tokens[2]) + 1]
    assert got.finished.reason == pb.Finished.STOP
    assert ask(node, query(ids, 6, ignore_eos=True)).tokens == tokens


def test_messages_go_through_the_template_and_are_checked(nodes: Callable[..., Generator]) -> None:
    node = nodes("llama")
    asked = query([1], 3)
    asked.messages = json.dumps([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}])
    assert ask(node, asked).accepted.prompt_tokens == 3
    for wrong in ("", "{", "{}", "[1]", "[]", '[{"content": "no role"}]', "[" * 100_000):
        asked.messages = wrong
        with pytest.raises(InvalidInput):
            ask(node, asked)


@pytest.mark.parametrize(
    "change",
    [
        {"id": b"short"},
        {"model": "another"},
        {"tokens": pb.Tokens()},
        {"tokens": pb.Tokens(ids=[1 << 30])},
        {"generated": [1 << 30]},
        {"generated": [1] * 9},
        {"sampling": pb.Sampling(temperature=-1.0)},
        {"sampling": pb.Sampling(temperature=float("nan"))},
        {"sampling": pb.Sampling(top_p=2.0)},
        {"sampling": pb.Sampling(stop=[""])},
        {"sampling": pb.Sampling(speculation="clairvoyance")},
        {"sampling": pb.Sampling(stop=["x"] * 17)},
        {"sampling": pb.Sampling(bias=[pb.Bias(token=1 << 30, value=1)])},
    ],
)
def test_senseless_queries_are_refused(nodes: Callable[..., Generator], change: dict[str, Any]) -> None:
    asked = query([1, 2, 3])
    fresh = pb.Query(**change)
    for name in change:
        asked.ClearField(name)  # type: ignore[arg-type]
    asked.MergeFrom(fresh)
    with pytest.raises(InvalidInput):
        ask(nodes("llama"), asked)


def test_what_does_not_fit_into_the_context_is_refused_before_any_work(nodes: Callable[..., Generator]) -> None:
    node = nodes("llama")
    context = node.model.context_length
    assert context is not None
    with pytest.raises(ContextTooLong):
        ask(node, query([1] * (context + 1), 1))
    with pytest.raises(ContextTooLong):
        ask(node, query([1, 2], context))
    assert ask(node, query([1] * context, 1)).finished.completion_tokens == 1


def test_a_full_node_says_when_to_come_again(nodes: Callable[..., Generator], served: Serve) -> None:
    node = nodes("llama", capacity=1, retry_after=3.0)

    async def main() -> None:
        async with aclosing(node.answer(query([1, 2], 40))) as first:
            await anext(first)
            with pytest.raises(ServerBusy) as busy:
                await collect(node, query([1, 2]))
            assert busy.value.retry_after == 3.0
            assert node.running == 1
        assert node.running == 0
        await collect(node, query([1, 2]))

    shared_loop().run(main())
    served("llama", 2).assert_free()


def test_who_leaves_in_the_middle_frees_every_hop(nodes: Callable[..., Generator], served: Serve) -> None:
    node = nodes("llama")

    async def main() -> None:
        async with aclosing(node.answer(query([1, 2], 40))) as replies:
            async for reply in replies:
                if reply.WhichOneof("kind") == "delta":
                    break

    shared_loop().run(main())
    assert node.running == 0
    served("llama", 2).assert_free()


def test_blocks_are_looked_for_again_before_they_are_called_missing(
    nodes: Callable[..., Generator], served: Serve
) -> None:
    records = served("llama", 2).network.records
    early, late = nodes("llama"), nodes("llama")

    async def look(node: Generator) -> tuple[Any, Any]:
        seen = node.missing, await node.look()
        return tuple(None if missing is None else missing.blocks for missing in seen)

    last = early.model.blocks
    everything = ((0, last),)
    assert shared_loop().run(look(early)) == (everything, None)
    assert shared_loop().run(look(early)) == (None, None)
    keys = [key for key, record in records.items() if record.span.first > 0 and record.model == late.model.key]
    taken = {key: records.pop(key) for key in keys}
    try:
        first = min(record.span.first for record in taken.values())
        assert shared_loop().run(look(late)) == (everything, ((first, last),))
    finally:
        records.update(taken)


def test_missing_blocks_are_said_and_waited_for(nodes: Callable[..., Generator], served: Serve) -> None:
    node, records = nodes("llama"), served("llama", 2).network.records
    taken: dict[Any, ServerRecord] = {}

    async def main() -> SimpleNamespace:
        return await collect(node, query([1, 2], 3))

    key = next(key for key, record in records.items() if record.span.first > 0 and record.model == node.model.key)
    taken[key] = records.pop(key)
    try:
        with pytest.raises(MissingBlocks, match=str(taken[key].span.first)):
            shared_loop().run(main())
    finally:
        records.update(taken)
    assert len(ask(nodes("llama"), query([1, 2], 3)).tokens) == 3
