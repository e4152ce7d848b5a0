"""A client without head and embeddings: the text is that of plain transformers, whatever becomes of who has them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from swarm.config import REMOTE
from swarm.errors import InvalidInput, MissingBlocks
from swarm.models.linear.elsewhere import RemoteHead, asking
from swarm.models.linear.unread import UnreadWeight
from tests.checkpoints import GREEDY, Served, left_padded, prompt, reference, save, settled, spans_of

NEW = 8
NAMES = ("server0", "server1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("ends"), "llama+untied")


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    # Whoever has the ends can be lost without a block.
    servers = Served(folder, [*spans_of(2), *spans_of(2)], ends=NAMES)
    yield servers
    servers.close()


def asked(served: Served) -> dict[str, int]:
    """Rows that went through each server's head."""
    return {
        host.peer_id: 0 if h.ends is None else h.ends.rows for host, h in zip(served.hosts, served.hosted, strict=True)
    }


@pytest.mark.parametrize(
    ("kind", "tied", "embeddings"),
    [
        ("llama", False, None),
        ("llama", True, None),
        ("llama", True, REMOTE),
        ("gpt2", True, REMOTE),
        ("gemma2", True, REMOTE),  # scaled embeddings, and a cap on the logits
    ],
)
def test_the_text_is_that_of_plain_transformers(tmp_path: Path, kind: str, tied: bool, embeddings: str | None) -> None:
    whole = reference(save(tmp_path, kind, tie_word_embeddings=tied))
    served = Served(tmp_path, spans_of(1), ends=NAMES)
    try:
        model, ids = served.model(head=REMOTE, embeddings=embeddings), prompt(9)
        assert isinstance(model.get_output_embeddings(), RemoteHead)
        assert isinstance(model.get_input_embeddings().weight, UnreadWeight)
        assert model.num_parameters() == whole.num_parameters()
        with torch.no_grad():
            right = whole(ids).logits
            torch.testing.assert_close(model(ids).logits, right, rtol=1e-4, atol=1e-4)
            with asking(1):
                some = model(ids).logits
        assert torch.equal(some.argmax(-1), right.argmax(-1))
        if kind == "gemma2":
            return  # its text is decided by ties
        inputs, expected = settled(whole, lambda seed: {"input_ids": prompt(9, seed)}, NEW)
        for each in (model, copy.deepcopy(model)):
            assert torch.equal(each.generate(**inputs, **GREEDY, max_new_tokens=NEW), expected)
    finally:
        served.close()


def test_all_ways_to_generate(served: Served, folder: Path) -> None:
    whole, model = reference(folder), served.model(head=REMOTE, embeddings=REMOTE)
    ids = prompt(9, 1)
    ways: list[dict[str, Any]] = [
        {"do_sample": True, "top_k": 12, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": True},
        {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
        {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "output_scores": True, "output_logits": True, "return_dict_in_generate": True},
    ]
    for way in ways:
        found = []
        for each in (whole, model):
            torch.manual_seed(5)
            text = each.generate(ids, **way, pad_token_id=0, eos_token_id=None, max_new_tokens=NEW)
            if not isinstance(text, torch.Tensor):
                assert torch.isfinite(text.scores[0]).all()
                torch.testing.assert_close(text.logits[0], whole(ids).logits[:, -1], rtol=1e-4, atol=1e-4)
                text = text.sequences
            found.append(text)
        assert torch.equal(*found), way
    torch.manual_seed(5)
    guessed = model.generate(
        ids, do_sample=True, top_k=12, pad_token_id=0, eos_token_id=None, max_new_tokens=NEW, speculation="ngram"
    )
    torch.manual_seed(5)
    plain = whole.generate(ids, do_sample=True, top_k=12, pad_token_id=0, eos_token_id=None, max_new_tokens=NEW)
    assert torch.equal(guessed, plain)
    batch = left_padded([5, 9])
    texts = [each.generate(**batch, **GREEDY, max_new_tokens=NEW) for each in (whole, model)]
    assert torch.equal(*texts)


def test_loss_over_all_logits_and_no_gradients(served: Served, folder: Path) -> None:
    whole, model = reference(folder), served.model(head=REMOTE)
    ids = prompt(40, 2)
    with torch.no_grad():
        assert float(model(ids, labels=ids).loss) == pytest.approx(float(whole(ids, labels=ids).loss), rel=1e-5)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with pytest.raises(InvalidInput, match="no gradients flow"):
        model(inputs_embeds=embedded)


def test_who_has_the_head_is_killed_between_two_tokens(served: Served, folder: Path) -> None:
    whole = reference(folder)
    inputs, expected = settled(whole, lambda seed: {"input_ids": prompt(9, seed)}, 24)
    model = served.model(head=REMOTE, embeddings=REMOTE)
    heard = []
    model.remote_blocks.on_notice = heard.append
    cache = DynamicCache()
    begun = model.generate(**inputs, **GREEDY, max_new_tokens=8, past_key_values=cache)
    first = model.remote_blocks.head.server.peer_id
    served.kill(first)
    text = model.generate(begun, **GREEDY, max_new_tokens=16, past_key_values=cache)
    assert torch.equal(text, expected)
    assert model.remote_blocks.head.server.peer_id != first
    assert all(asked(served).get(name, 0) > 4 for name in NAMES)
    kinds = [notice.kind for notice in heard if "head@" in notice.text]
    assert kinds[0] == "route" and set(kinds[1:]) == {"rerouted"}


def test_many_threads_share_the_servers_of_the_head(served: Served, folder: Path) -> None:
    whole, model = reference(folder), served.model(head=REMOTE)
    texts: dict[int, torch.Tensor] = {}

    def generate(seed: int) -> None:
        texts[seed] = model.generate(prompt(6, seed), **GREEDY, max_new_tokens=NEW)

    threads = [threading.Thread(target=generate, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, text in texts.items():
        assert torch.equal(text, whole.generate(prompt(6, seed), **GREEDY, max_new_tokens=NEW))
    assert len(texts) == 12


def test_nobody_serves_them(folder: Path) -> None:
    servers = Served(folder, spans_of(1))
    try:
        model = servers.model(head=REMOTE, max_wait=0.2)
        with pytest.raises(MissingBlocks, match="nobody serves the head in float32"):
            model.generate(prompt(4), **GREEDY, max_new_tokens=2)
    finally:
        servers.close()


def test_what_cannot_be_had_is_refused_by_name(served: Served) -> None:
    with pytest.raises(InvalidInput, match="goes with head='remote'"):
        served.model(embeddings=REMOTE)
    with pytest.raises(InvalidInput, match="there is remote"):
        served.model(head=REMOTE, embeddings="disk")
    with pytest.raises(InvalidInput, match="nobody audits"):
        served.model(head=REMOTE, audits=True)
    model = served.model(head=REMOTE, embeddings=REMOTE)
    for look in (
        lambda: model.get_output_embeddings().weight[0, 0].item(),
        lambda: model.get_input_embeddings().weight.sum(),
        lambda: model.resize_token_embeddings(200),
    ):
        with pytest.raises(InvalidInput):
            look()
