"""What random weights cannot show: a real model's texts, how often guesses are right, and what 8 bits lose of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from swarm.errors import InvalidInput
from swarm.jobs import Forward
from swarm.models.linear.grid import as_dense
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.weights import load_part
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.models.texts import Answer, Texts, load_tokenizer
from swarm.speculation.drafts import NgramDrafter
from swarm.types import Segment, Span
from tests.checkpoints import Served

pytestmark = pytest.mark.realmodel

QUESTION = [{"role": "user", "content": "What is gravity?"}]
TOKENS = 96
SPANS = (Span(0, 10), Span(10, 20), Span(20, 30))
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": TOKENS}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Paris"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def texts(real_model: Path) -> Texts:
    return Texts(load_tokenizer(str(real_model)))


@pytest.fixture(scope="module")
def local(real_model: Path) -> Any:
    """Plain transformers."""
    return AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def asked(texts: Texts) -> torch.Tensor:
    return torch.tensor([texts.conversation(QUESTION)])


@pytest.fixture(scope="module")
def said(local: Any, asked: torch.Tensor) -> torch.Tensor:
    """The question and plain transformers' answer."""
    return generate(local, asked)


@pytest.fixture(scope="module")
def servers(real_model: Path) -> Iterator[Served]:
    running = Served(real_model, SPANS, codecs=("raw", "int8"))
    yield running
    running.close()


def generate(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    return model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, **options)


def answer_of(said: torch.Tensor, asked: torch.Tensor) -> list[int]:
    return list(said[0, asked.shape[1] :].tolist())


@pytest.mark.parametrize("speculation", ["none", "ngram"])
def test_three_servers_say_what_one_process_says(
    servers: Served, asked: torch.Tensor, said: torch.Tensor, speculation: str
) -> None:
    options = {} if speculation == "none" else {"speculation": speculation}
    assert torch.equal(generate(servers.model(), asked, **options), said)


def test_it_answers_and_knows_where_to_end(texts: Texts, local: Any, asked: torch.Tensor, said: torch.Tensor) -> None:
    answer = answer_of(said, asked)
    assert texts.decode(answer).startswith("Gravity is a fundamental concept in physics")
    assert len(answer) < TOKENS and answer[-1] == local.generation_config.eos_token_id


def test_pieces_of_an_answer_make_its_text(texts: Texts, asked: torch.Tensor, said: torch.Tensor) -> None:
    answer, shown = answer_of(said, asked), Answer(texts, asked[0].tolist(), [])
    pieces = [shown.add(token) for token in answer]
    assert "".join(pieces) + shown.end() == texts.decode(answer)
    assert sum(map(bool, pieces)) > 0.9 * len(answer), "they come with their tokens"


@pytest.mark.parametrize("stop", ["objects on", "curvature of", ". I", "ics"])
def test_a_stop_text_ends_an_answer_wherever_tokens_are_cut(
    texts: Texts, asked: torch.Tensor, said: torch.Tensor, stop: str
) -> None:
    answer, shown, text = answer_of(said, asked), Answer(texts, asked[0].tolist(), [stop]), ""
    for token in answer:
        text += shown.add(token)
        if shown.stopped:
            break
    assert shown.stopped
    assert text == texts.decode(answer).partition(stop)[0]


def test_a_conversation_is_written_as_the_authors_template_says(texts: Texts) -> None:
    brief = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    right = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts.tokenizer.decode(texts.conversation(brief)) == right
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "gravity?"}]}]
    assert texts.conversation(parts) == texts.conversation(QUESTION)


def test_tools_that_the_template_does_not_know_are_not_seen_as_in_plain_transformers(texts: Texts) -> None:
    plain = texts.tokenizer.apply_chat_template(QUESTION, tools=[TOOL], add_generation_prompt=True, return_dict=False)
    assert texts.conversation(QUESTION, [TOOL]) == list(plain) == texts.conversation(QUESTION)


def test_calls_that_the_template_would_drop_are_refused(texts: Texts) -> None:
    called = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    with pytest.raises(InvalidInput, match="template"):
        texts.conversation([*called, {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}], [TOOL])


def test_guesses_are_right_where_a_text_repeats_itself(texts: Texts, local: Any) -> None:
    said_twice = "The bees of the old garden carry honey home before the rain begins to fall on the hill. " * 2
    begun = torch.tensor([texts.tokenizer(said_twice).input_ids])
    ids, drafter, right, drafted = generate(local, begun)[0].tolist(), NgramDrafter(), 0, 0
    at = begun.shape[1]
    while at < len(ids):
        drafter.learn(ids[:at])
        draft = drafter.draft(ids[:at], 4).tokens
        correct = next((n for n, token in enumerate(draft) if ids[at + n : at + n + 1] != [token]), len(draft))
        right, drafted, at = right + correct, drafted + len(draft), at + correct + 1
    assert right / drafted > 0.8, (right, drafted)


def test_int8_on_the_way_keeps_nearly_every_best_token(servers: Served, local: Any, said: torch.Tensor) -> None:
    with torch.inference_mode():
        exact, coarse = local(said).logits, servers.model(codec="int8")(said).logits
    same = (exact.argmax(-1) == coarse.argmax(-1)).float().mean()
    off = ((exact - coarse).norm() / exact.norm()).item()
    assert same > 0.95
    assert 1e-5 < off < 0.05, "and it did travel as 8-bit integers"


def test_blocks_of_the_file_take_what_they_take_in_it(real_file: Path, local: Any) -> None:
    """And are the numbers of the dequantized model, to the bit."""
    checkpoint = open_checkpoint(real_file)
    loaded = load_part(checkpoint, Span(7, 9), ends=False, dtype=torch.float32, quantization="file", progress=False)
    layers = [module for module in loaded.model.modules() if isinstance(module, QuantizedLinear)]
    held = sum(layer.nbytes for layer in layers) + sum(each.nbytes for each in loaded.model.parameters())
    names = [name for name in checkpoint.tensors.names() if re.search(r"layers\.[78]\.", name)]
    assert len(layers) == 14 and held <= 1.15 * sum(map(checkpoint.tensors.nbytes, names))
    right = local.state_dict()
    assert all(torch.equal(as_dense(checkpoint.tensors.read(name)).float(), right[name]) for name in names)


@pytest.mark.parametrize(("quantization", "limit"), [("int8", 0.005), ("int4", 0.05)])
def test_quantized_blocks_cost_little_on_real_text(
    real_model: Path, local: Any, quantization: str, limit: float
) -> None:
    """Nats a token more, on prose that the model has not seen. The weights were on a grid of four bits before."""
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(real_model)(page, return_tensors="pt").input_ids[:, :400]
    span = load_span(real_model, Span(0, 30), quantization=quantization, progress=False)
    model = copy.deepcopy(local)
    model.model.layers = nn.ModuleList([_Blocks(span)])
    with torch.inference_mode():
        losses = [float(each(ids, labels=ids, use_cache=False).loss) for each in (local, model)]
    assert abs(losses[1] - losses[0]) < limit


class _Blocks(nn.Module):
    """All blocks of a span as one."""

    attention_type = "full_attention"

    def __init__(self, span: SpanModel) -> None:
        super().__init__()
        self.span = span

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A new sequence."""
        job = Forward(self.span.span, [Segment((b"loss", 0), 0, hidden.shape[1])], hidden[0])
        return self.span.run(job).unsqueeze(0)
