"""Texts as vectors: those of plain transformers, through OpenAI's own client."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from openai.types.embedding_create_params import EmbeddingCreateParams

from swarm.errors import ContextTooLong, InvalidInput, MissingBlocks, ServerBusy
from swarm.gateway.generation import Generator
from swarm.gateway.openai.embeddings import EmbeddingRequest
from swarm.net.loop import shared_loop
from swarm.wire import swarm_pb2 as pb
from tests.checkpoints import Served, prompt
from tests.gateway.scripted import Scripted
from tests.gateway.test_agents import asking
from tests.gateway.test_fields import post
from tests.gateway.test_generation import KINDS, nodes

__all__ = ["nodes"]
PATH = "/v1/embeddings"


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_plain_transformers(
    nodes: Callable[..., Generator], served: Callable[[str, int], Served], whole: Callable[[str], Any], kind: str
) -> None:
    texts = [prompt(length, length) for length in (1, 9, 30)]
    node = nodes(kind, capacity=1)
    queries = [pb.Query(tokens=pb.Tokens(ids=text[0].tolist())) for text in texts]
    for pooling in ("mean", "last"):
        for text, made in zip(texts, shared_loop().run(node.embed(queries, pooling)), strict=True):
            with torch.no_grad():
                states = whole(kind).base_model(text).last_hidden_state[0]
            pooled = states.mean(dim=0) if pooling == "mean" else states[-1]
            expected = pooled / pooled.norm()
            assert made.tokens == text.shape[1]
            torch.testing.assert_close(torch.tensor(made.vector), expected, atol=1e-4, rtol=1e-3)
    served(kind, 2).assert_free()


def test_what_has_no_vector_is_refused_and_the_node_is_free_again(
    nodes: Callable[..., Generator], served: Callable[[str, int], Served]
) -> None:
    node = nodes("llama", capacity=1)
    long = pb.Query(tokens=pb.Tokens(ids=[1] * 49))
    for queries, error in (([long], ContextTooLong), ([pb.Query(text="")], InvalidInput)):
        with pytest.raises(error):
            shared_loop().run(node.embed(queries, "mean"))
    assert node.running == 0

    async def full() -> None:
        with node._counted(), pytest.raises(ServerBusy):
            await node.embed([pb.Query(text="a")], "mean")

    shared_loop().run(full())
    served("llama", 2).assert_free()


def test_the_official_client_reads_them() -> None:
    async def work(made: SimpleNamespace) -> None:
        create: Any = made.openai.embeddings.create
        told = await create(model="tiny", input=["a", "b"])
        assert [each.index for each in told.data] == [0, 1]
        assert told.data[0].embedding == pytest.approx([0.6, 0.8])
        assert (told.usage.prompt_tokens, told.usage.total_tokens) == (6, 6)
        assert [query.text for query in answerer.asked] == ["a", "b"]
        last = await create(model="tiny", input=[1, 2], encoding_format="float", extra_body={"pooling": "last"})
        assert last.data[0].embedding == [0.6, -0.8]
        for error, status in ((ServerBusy("full", 1.0), 429), (MissingBlocks("gone", [(0, 1)]), 503)):
            answerer.error = error
            with pytest.raises(openai.APIStatusError) as raised:
                await create(model="tiny", input="a")
            assert raised.value.status_code == status

    answerer = Scripted()
    asking(answerer, work)


def test_every_field_is_honoured_or_refused() -> None:
    assert {*EmbeddingRequest.model_fields} == {*EmbeddingCreateParams.__annotations__} | {"pooling"}
    body = {"model": "tiny", "input": "x"}
    assert post(PATH, {**body, "user": "me", "dimensions": None})[0] == 200
    assert post(PATH, {**body, "input": ["x"] * 256})[0] == 200
    wrong: list[dict[str, Any]] = [
        {"dimensions": 2}, {"input": []}, {"input": [""] * 257}, {"input": [[1], []]}, {"input": 5}, {"input": None},
        {"pooling": "max"}, {"encoding_format": "int8"}, {"n": 2}, {"user": 5},
    ]  # fmt: skip
    for fields in wrong:
        status, answer, asked = post(PATH, {**body, **fields})
        assert (status, asked) == (400, []), answer
        assert next(iter(fields)) in answer["error"]["message"]
