"""Where the head is: in memory, on disk, or on a grid."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm.client.model import DistributedModelForCausalLM
from swarm.errors import BadCheckpoint, InvalidInput, NotEnoughMemory
from swarm.models.ends.load import load_ends
from swarm.models.linear.head import QuantizedHead
from swarm.models.linear.schemes import quantize
from swarm.models.linear.unread import UnreadWeight
from swarm.models.loading import weights
from swarm.types import Span
from tests.checkpoints import GREEDY, Served, prompt, reference, save, settled
from tests.ggufs import write

NEW = 8
HALVES = [Span(0, 3), Span(3, 6)]


def is_unread(module: Any) -> bool:
    return isinstance(module.weight, UnreadWeight) and module.weight.is_unread


@pytest.mark.parametrize("head", ["memory", "disk", "int8", "int4"])
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("gpt2", True)])
def test_the_text_is_that_of_plain_transformers_with_these_numbers(
    tmp_path: Path, kind: str, tied: bool, head: str
) -> None:
    # Stored in half as many bytes as are computed with, as under quantized blocks.
    folder = save(tmp_path, kind, torch.bfloat16, tie_word_embeddings=tied)
    whole = reference(folder)
    if head in ("int8", "int4"):
        table, old = whole.get_input_embeddings().weight, whole.get_output_embeddings()
        old.weight = torch.nn.Parameter(quantize(old.weight.detach(), head).dense(), requires_grad=False)
        assert old.weight is not table
    inputs, expected = settled(whole, lambda seed: {"input_ids": prompt(9, seed)}, NEW)
    served = Served(folder, HALVES)
    model = DistributedModelForCausalLM.from_pretrained(
        folder, swarm=served.swarm, dtype="float32", head=head, progress=False
    )
    assert torch.equal(model.generate(**inputs, **GREEDY, max_new_tokens=NEW), expected)
    assert is_unread(model.get_input_embeddings()) == (head != "memory" or not tied)
    assert model.dtype == torch.float32
    assert model.num_parameters() == reference(folder).num_parameters()
    twin = copy.deepcopy(model)
    assert torch.equal(twin.generate(**inputs, **GREEDY, max_new_tokens=NEW), expected)
    for each in (model, twin):
        assert is_unread(each.get_output_embeddings()) == (head != "memory")
    if head in ("memory", "disk"):
        model.resize_token_embeddings(model.config.vocab_size + 5)
        assert model(prompt(4)).logits.shape[-1] == model.config.vocab_size
    else:
        with pytest.raises(InvalidInput, match="head='memory'"):
            model.resize_token_embeddings(model.config.vocab_size + 5)
        model.tie_weights()
        assert isinstance(model.get_output_embeddings(), QuantizedHead)


def test_a_file_of_quantized_weights_keeps_its_head_on_its_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    plain, _ = load_ends(path, head="memory", progress=False)
    model, _ = load_ends(path, progress=False)
    assert isinstance(model.get_output_embeddings(), QuantizedHead)
    assert is_unread(model.get_input_embeddings())
    ids, hidden = torch.tensor([[3, 5, 4, 3]]), torch.randn(2, plain.config.hidden_size)
    assert torch.equal(model.get_input_embeddings()(ids), plain.get_input_embeddings()(ids))
    with torch.no_grad():
        right = plain.get_output_embeddings()(hidden)
        got = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
    assert torch.equal(model.get_output_embeddings().weight[:], plain.get_output_embeddings().weight)


def test_files_that_change_while_they_are_used_are_an_error(tmp_path: Path) -> None:
    model, _ = load_ends(save(tmp_path, "llama+untied"), head="disk", progress=False)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    for use in (lambda: table(torch.tensor([3])), lambda: head(torch.zeros(1, table.embedding_dim))):
        with pytest.raises(BadCheckpoint, match="has changed since the model was loaded"):
            use()
    file.unlink()
    with pytest.raises(BadCheckpoint, match="has changed"):
        table(torch.tensor([3]))


def test_what_does_not_fit_is_said_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path, "llama+untied")
    with caplog.at_level(logging.INFO, "swarm"):
        load_ends(folder, progress=False)
    assert "of memory for the head" in caplog.text
    monkeypatch.setattr(weights, "available_memory", lambda device: 1000)
    with pytest.raises(NotEnoughMemory, match="1000 B may be taken"):
        load_ends(folder, progress=False)
    monkeypatch.setattr(weights, "available_memory", lambda device: 80 << 20)
    load_ends(folder, head="memory", progress=False)


def test_a_head_is_put_nowhere_else_than_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="only on a CPU"):
        load_ends(save(tmp_path, "llama"), head="int8", device="meta", progress=False)
