"""Drafts by the model's own further block: the text of plain decoding, and most of it guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.speculation.decoding import SpeculativeDecoding
from swarm.models.speculation.mtp_drafter import MtpDrafter
from swarm.models.speculation.mtp_load import load_mtp
from swarm.speculation.pacer import Pacer
from swarm.types import Span
from tests.checkpoints import GREEDY, Served, save

FOLDER = Path(__file__).parents[3] / "models" / "tiny-mtp"
PROMPT = torch.tensor([[ord(character) for character in "A server hosts a span of "]])


class Steady(Pacer):
    """So many drafts behind each token, whatever they cost."""

    def __init__(self, drafter: Any, count: int) -> None:
        super().__init__(drafter)
        self.count = count

    def depth(self, ahead: Sequence[int]) -> int:
        return self.count


@pytest.fixture(scope="module")
def whole() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def servers() -> Iterator[Served]:
    with_two = Served(FOLDER, [Span(0, 2), Span(2, 3)])
    yield with_two
    with_two.close()


def guessing(model: Any, count: int) -> SpeculativeDecoding:
    """With `count` drafts at a time, for one text."""
    decoding = SpeculativeDecoding(MtpDrafter(load_mtp(model, open_checkpoint(FOLDER))))
    decoding.pacer = Steady(decoding.pacer.drafter, count)
    return decoding


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_trained_block_guesses_most_tokens_and_the_text_is_the_same(servers: Served, whole: Any, count: int) -> None:
    """Also where further windows go out before the first is back."""
    expected = whole.generate(PROMPT, **GREEDY, max_new_tokens=60)
    model = servers.model()
    decoding = guessing(model, count)
    assert torch.equal(model.generate(PROMPT, **GREEDY, max_new_tokens=60, custom_generate=decoding), expected)
    assert decoding.pacer.right > 0.5 * decoding.pacer.drafted
    if count == 1:
        assert 59 / decoding.windows >= 1.6, "tokens a trip"
    servers.assert_free()


def test_it_drafts_as_the_librarys_own(whole: Any) -> None:
    """The library's `use_mtp` guesses one token at a time here, too: as many of them are right."""
    decoding = guessing(whole, 1)
    plain = whole.generate(PROMPT, **GREEDY, max_new_tokens=40)
    assert torch.equal(whole.generate(PROMPT, **GREEDY, max_new_tokens=40, custom_generate=decoding), plain)
    head: Any = decoding.pacer.drafter
    with torch.no_grad():
        states = whole.model(plain).last_hidden_state[:, :-1]
        places = torch.arange(1, plain.shape[1]).unsqueeze(0)
        made = head._head.forward_layer(0, states, places, None, input_ids=plain[:, 1:])
        said = whole.lm_head(made).argmax(-1)[0].tolist()
    # Guesses of the token behind each position, had they all been made: those of the text, as far as they are right.
    right = sum(said[at] == int(plain[0, at + 2]) for at in range(PROMPT.shape[1] - 1, plain.shape[1] - 2))
    assert right >= decoding.pacer.right
    text = plain[0].tolist()
    drafter = MtpDrafter(head._head)
    drafter.see(states[0], 0)
    assert drafter.draft(text, 1).tokens == (said[-1],)
    assert drafter.draft(text, 3).tokens[0] == said[-1], "what it kept on the way was taken back"


def test_the_users_way_in_greedily_and_sampled(servers: Served, whole: Any) -> None:
    model = servers.model()
    for options in ({}, {"do_sample": True, "temperature": 0.8, "top_k": 9}):
        how = {**GREEDY, **options, "max_new_tokens": 40}
        torch.manual_seed(3)
        expected = whole.generate(PROMPT, **how)
        torch.manual_seed(3)
        assert torch.equal(model.generate(PROMPT, **how, speculation="mtp"), expected)
    servers.assert_free()


def test_two_turns_on_one_cache_and_a_padded_prompt(servers: Served, whole: Any) -> None:
    model = servers.model()
    how = {**GREEDY, "max_new_tokens": 20, "return_dict_in_generate": True}
    first = model.generate(PROMPT, **how, speculation="mtp")
    longer = torch.cat([first.sequences, PROMPT[:, :7]], dim=1)
    second = model.generate(longer, **how, speculation="mtp", past_key_values=first.past_key_values)
    assert torch.equal(second.sequences, whole.generate(longer, **{**how, "return_dict_in_generate": False}))
    ids = torch.cat([torch.zeros(1, 3, dtype=torch.long), PROMPT], dim=1)
    mask = (torch.arange(ids.shape[1]) >= 3).long().unsqueeze(0)
    padded = {"attention_mask": mask, **GREEDY, "max_new_tokens": 20}
    decoding = guessing(model, 1)
    assert torch.equal(model.generate(ids, **padded, custom_generate=decoding), whole.generate(ids, **padded))
    assert decoding.pacer.right > 0.5 * decoding.pacer.drafted
    del first, second
    servers.assert_free()


def test_checkpoints_without_such_a_block_are_told(tmp_path: Path, whole: Any) -> None:
    with pytest.raises(UnsupportedModel, match="num_mtp_layers"):
        load_mtp(whole, open_checkpoint(save(tmp_path / "llama", "llama")))
    whole.save_pretrained(tmp_path / "without")
    with pytest.raises((UnsupportedModel, BadCheckpoint), match="lack"):
        load_mtp(whole, open_checkpoint(tmp_path / "without"))
