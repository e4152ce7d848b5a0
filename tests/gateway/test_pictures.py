"""Query nodes that take pictures: the answers of plain transformers to the same ones, by every API."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest
import torch
from transformers import AutoProcessor

from survey.images import build_seeing, question, seeing_config
from swarm.client.view import View
from swarm.config import ClientConfig, GatewayConfig
from swarm.errors import BadCheckpoint, InvalidInput, UnsupportedModel
from swarm.gateway import loading
from swarm.gateway.ends_batcher import EndsBatcher
from swarm.gateway.generation import Generator
from swarm.gateway.life import Gateway, HttpPlace
from swarm.gateway.loading import LoadedModel, load_model
from swarm.gateway.recommended import Recommended
from swarm.models.ends.ends import Ends
from swarm.models.ends.load import load_ends
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.form import Form
from swarm.models.picture_prompts import PicturePrompts
from swarm.models.pictures import open_picture
from swarm.models.texts import Texts
from swarm.net.loop import shared_loop
from swarm.types import Span
from swarm.wire import swarm_pb2 as pb
from tests.checkpoints import GREEDY, Served, make_tokenizer
from tests.cli.test_chat_images import png
from tests.gateway.test_generation import Bytes
from tests.gateway.test_life import lived
from tests.seeing import picture, save_seeing

pytestmark = pytest.mark.filterwarnings("default")
SPANS = [Span(0, 2), Span(2, 6), Span(0, 3), Span(3, 6)]
NEW = 6


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("seeing") / "llava"
    whole = save_seeing(folder)
    path = picture(folder / "picture.png")
    turned = path.with_name("turned.png")
    open_picture(path).rotate(90).save(turned)
    servers = Served(folder, SPANS[:2])
    yield SimpleNamespace(
        whole=whole, path=path, turned=turned, servers=servers, loaded=load_model(str(folder), dtype="float32")
    )
    servers.close()


def expected(seeing: SimpleNamespace, content: list[dict[str, Any]]) -> str:
    """The answer of plain transformers."""
    processor: Any = AutoProcessor.from_pretrained(seeing.servers.folder)  # type: ignore[no-untyped-call]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        made = seeing.whole.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return str(processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def asking(seeing: SimpleNamespace, loaded: LoadedModel, work: Callable[[SimpleNamespace], Any]) -> None:
    """Let `work` ask a query node through the official clients."""

    async def inside(gateway: Gateway) -> None:
        base = gateway.url.removesuffix("/v1")
        async with (
            openai.AsyncOpenAI(base_url=gateway.url, api_key="k", max_retries=0) as client,
            anthropic.AsyncAnthropic(base_url=base, api_key="k", max_retries=0) as other,
            httpx.AsyncClient(base_url=base, timeout=30) as http,
        ):
            await work(SimpleNamespace(openai=client, anthropic=other, http=http, model=loaded.info.name))

    shared_loop().run(lived(seeing.servers, loaded, inside, http=HttpPlace(port=0)))
    seeing.servers.assert_free()


async def by_chat(made: SimpleNamespace, data: bytes, text: str) -> str:
    parts = [{"type": "image_url", "image_url": {"url": data_url(data)}}, {"type": "text", "text": text}]
    messages: Any = [{"role": "user", "content": parts}]
    told = await made.openai.chat.completions.create(model=made.model, messages=messages, max_tokens=NEW, temperature=0)
    return str(told.choices[0].message.content)


async def by_responses(made: SimpleNamespace, data: bytes, text: str) -> str:
    parts = [
        {"type": "input_image", "image_url": data_url(data), "detail": "auto"},
        {"type": "input_text", "text": text},
    ]
    asked: Any = [{"role": "user", "content": parts}]
    told = await made.openai.responses.create(model=made.model, input=asked, max_output_tokens=NEW, temperature=0)
    return str(told.output_text)


async def by_messages(made: SimpleNamespace, data: bytes, text: str) -> str:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(data).decode()}
    asked: Any = [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": text}]}]
    told = await made.anthropic.messages.create(
        model=made.model, messages=asked, max_tokens=NEW, extra_body={"temperature": 0}
    )
    counted = await made.anthropic.messages.count_tokens(model=made.model, messages=asked)
    assert counted.input_tokens == told.usage.input_tokens > 16
    return str(told.content[0].text)


def test_a_picture_is_answered_to_as_plain_transformers_does_by_every_api(seeing: SimpleNamespace) -> None:
    paths = (seeing.path, seeing.turned)
    answers = [
        expected(seeing, [{"type": "image", "image": open_picture(path)}, {"type": "text", "text": "abc"}])
        for path in paths
    ]
    text = expected(seeing, [{"type": "text", "text": "abc"}])
    assert len({*answers, text}) == 3

    async def work(made: SimpleNamespace) -> None:
        for ask in (by_chat, by_responses, by_messages):
            assert [await ask(made, path.read_bytes(), "abc") for path in paths] == answers
        messages: Any = [{"role": "user", "content": "abc"}]
        told = await made.openai.chat.completions.create(
            model=made.model, messages=messages, max_tokens=NEW, temperature=0
        )
        assert told.choices[0].message.content == text

        parts = [
            {"type": "image_url", "image_url": {"url": data_url(seeing.path.read_bytes())}},
            {"type": "text", "text": "abc"},
        ]
        asked = [{"role": "user", "content": parts}]
        (node,) = await seeing.servers.swarm.directory.query_nodes(seeing.loaded.info.key)
        assert node.sees
        ask = seeing.servers.swarm.ask
        by_peer = lambda: "".join(ask(made.model, asked, max_tokens=NEW, temperature=0.0))  # noqa: E731
        assert await asyncio.to_thread(by_peer) == answers[0]

    asking(seeing, seeing.loaded, work)


def test_pictures_of_several_turns(seeing: SimpleNamespace) -> None:
    """Between turns of text, in the order in which they were shown."""
    processor: Any = AutoProcessor.from_pretrained(seeing.servers.folder)  # type: ignore[no-untyped-call]
    first, second = ({"type": "image", "image": open_picture(path)} for path in (seeing.path, seeing.turned))
    said = {"type": "text", "text": "d"}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, first]},
        {"role": "assistant", "content": [said]},
        {"role": "user", "content": [second, {"type": "text", "text": "b"}]},
    ]
    wanted = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    shown = [
        {"type": "image_url", "image_url": {"url": data_url(path.read_bytes())}}
        for path in (seeing.path, seeing.turned)
    ]
    asked = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, shown[0]]},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": [shown[1], {"type": "text", "text": "b"}]},
    ]
    made = seeing.loaded.pictures.prompt(asked)
    assert made.tokens == wanted["input_ids"][0].tolist()
    assert made.pictures.keys() == {"pixel_values"}
    assert torch.equal(made.pictures["pixel_values"], wanted["pixel_values"])


WRONG = {
    "address": ("https://192.168.0.1/bee.png", "nothing is fetched here"),
    "file": ("file:///etc/passwd", "nothing is fetched here"),
    "no base64": ("data:image/png,abc", "not base64"),
    "broken base64": ("data:image/png;base64,a*b", "not base64"),
    "bomb": (data_url(png(60_000, 60_000, bytes(1 << 10))), "more than 40 million pixels"),
    "text": (data_url(b"no picture"), "it is no picture"),
    "nothing": ("data:image/png;base64,", "it is no picture"),
}


def test_what_is_no_picture_is_refused_by_name(seeing: SimpleNamespace) -> None:
    async def refusal(made: SimpleNamespace, parts: list[Any], role: str = "user") -> str:
        messages = [{"role": role, "content": parts}, {"role": "user", "content": "a"}]
        answer = await made.http.post("/v1/chat/completions", json={"model": made.model, "messages": messages})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
        return str(answer.json()["error"]["message"])

    async def work(made: SimpleNamespace) -> None:
        for url, words in WRONG.values():
            said = await refusal(made, [{"type": "image_url", "image_url": {"url": url}}])
            assert said.startswith("messages[0].content[0]")
            assert words in said
        good = {"type": "image_url", "image_url": {"url": data_url(seeing.path.read_bytes())}}
        assert "pictures are for users" in await refusal(made, [good], "system")
        assert "at most 16" in await refusal(made, [good] * 17)
        # A template that has a word for pictures is not to be talked into another number of them.
        assert "refuse" in await refusal(made, [good, {"type": "text", "text": "<image>"}])
        large = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (5 << 20)}}
        assert "it is no picture" in await refusal(made, [large])
        large["image_url"] = {"url": "data:image/png;base64," + "A" * (17 << 20)}
        body = {"model": made.model, "messages": [{"role": "user", "content": [large]}]}
        assert (await made.http.post("/v1/chat/completions", json=body)).status_code == 413

    asking(seeing, seeing.loaded, work)


def test_a_model_of_text_alone_says_so(seeing: SimpleNamespace) -> None:
    loaded = LoadedModel(seeing.loaded.info, seeing.loaded.texts, seeing.loaded.ends, seeing.loaded.recommended, "none")

    async def work(made: SimpleNamespace) -> None:
        for ask, error in ((by_chat, openai.BadRequestError), (by_messages, anthropic.BadRequestError)):
            with pytest.raises(error, match="this model reads text alone"):
                await ask(made, seeing.path.read_bytes(), "a")

    asking(seeing, loaded, work)


# ---- other ways to place pieces of a picture, and lost servers ---------------------------------------------------


class Looks(Bytes):
    """In place of a processor: all conversations are the question of the survey."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self._inputs = inputs

    def apply_chat_template(self, messages: list[Any], tokenize: bool = True, **options: Any) -> Any:
        if tokenize:
            return dict(self._inputs)
        return "".join(part.get("text", "") for message in messages for part in message["content"])


def node_of(servers: Served, ends: Ends, inputs: dict[str, Any], **config: Any) -> Generator:
    info = servers.info
    view = View(servers.swarm.directory, info, info.contract("float32", 4 * info.hidden_size), ClientConfig())
    return Generator(
        servers.swarm.host,
        view,
        Texts(Bytes()),
        EndsBatcher(ends),
        Recommended({}, frozenset()),
        GatewayConfig(**config),
        pictures=PicturePrompts(Looks(inputs)),
    )


async def tokens_of(
    node: Generator, asked: pb.Query, on_token: Callable[[int], None] = lambda count: None
) -> list[int]:
    got = list(asked.generated)
    async for reply in node.answer(asked):
        if reply.delta.tokens:
            got += reply.delta.tokens
            on_token(len(got))
    return got


@pytest.mark.parametrize("speculation", ["none", "ngram"])
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "mistral3", "smolvlm", "qwen3_5"])
def test_an_answer_goes_on_when_a_server_dies_and_at_another_node(kind: str, speculation: str, tmp_path: Path) -> None:
    whole = build_seeing(seeing_config(kind))
    whole.save_pretrained(tmp_path)
    inputs = question(whole)
    wanted = whole.generate(**inputs, **GREEDY, max_new_tokens=10)[0, inputs["input_ids"].shape[1] :].tolist()
    servers = Served(tmp_path, SPANS)
    node = node_of(
        servers,
        Ends(load_ends(open_checkpoint(tmp_path).read_as(Form.SEEING), dtype="float32", progress=False)[0]),
        inputs,
    )
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture(tmp_path / "a.png").read_bytes())}}]
    messages = json.dumps([{"role": "user", "content": [*parts, {"type": "text", "text": "a"}]}])
    sampling = pb.Sampling(max_tokens=10, speculation=speculation)
    asked = pb.Query(id=bytes(16), messages=messages, sampling=sampling)

    async def main() -> None:
        half = pb.Query(id=bytes(16), messages=messages, sampling=sampling, generated=wanted[:4])
        assert await tokens_of(node, half) == wanted
        kill = lambda count: servers.network.kill("server0") if count == 4 else None  # noqa: E731
        assert await tokens_of(node, asked, kill) == wanted
        await node._ends.close()

    shared_loop().run(main())
    servers.close()


def test_a_model_that_also_is_one_of_text_sees_where_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_seeing(seeing_config("qwen3_5"))
    whole.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    blind = load_model(str(tmp_path), dtype="float32")
    assert blind.pictures is None
    assert "visual" not in "".join(name for name, _ in blind.ends.model.named_parameters())
    with pytest.raises((BadCheckpoint, InvalidInput)):
        load_model(str(tmp_path), dtype="float32", images=True)
    monkeypatch.setattr(loading, "processor_of", lambda checkpoint: Looks(question(whole)))
    sees = load_model(str(tmp_path), dtype="float32", images=True)
    assert sees.pictures is not None
    assert "visual" in "".join(name for name, _ in sees.ends.model.named_parameters())
    # Servers know no difference.
    assert sees.contract == blind.contract
    whole.config.text_config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="has no model that sees"):
        load_model(str(tmp_path), dtype="float32", images=True)


@pytest.mark.parametrize(("kind", "why"), [("qwen3_vl", "outputs of blocks 0:2"), ("llava", "the processor of")])
def test_a_model_that_cannot_be_shown_pictures_reads_text_and_the_log_says_why(
    kind: str, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_seeing(seeing_config(kind)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    caplog.set_level("WARNING", "swarm.gateway.loading")
    assert load_model(str(tmp_path), dtype="float32").pictures is None
    assert "reads text alone here" in caplog.text
    assert why in caplog.text
    with pytest.raises((BadCheckpoint, InvalidInput)):
        load_model(str(tmp_path), dtype="float32", images=True)


def test_where_a_picture_is_seen_as_a_whole_it_is_refused(tmp_path: Path) -> None:
    whole = build_seeing(seeing_config("gemma3"))
    whole.save_pretrained(tmp_path)
    ends = Ends(load_ends(open_checkpoint(tmp_path).read_as(Form.SEEING), dtype="float32", progress=False)[0])
    inputs = question(whole)
    ids = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask", None)
    with pytest.raises(InvalidInput, match=r"^images: Gemma3TextModel sees them as a whole"):
        ends.see(ids, inputs)
    assert len(ends.embed([[5, 6]], [0])) == 1
