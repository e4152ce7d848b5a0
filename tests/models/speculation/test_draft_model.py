"""A smaller model's guesses are its own greedy text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swarm.errors import InvalidInput
from swarm.models.speculation.draft_model import ModelDrafter
from tests.checkpoints import GREEDY, prompt, reference, save


def test_a_draft_model_goes_on_as_it_would_by_itself(tmp_path: Path) -> None:
    model = reference(save(tmp_path, "llama"))
    drafter = ModelDrafter(model, model.config.vocab_size)
    ids = prompt(7)
    whole = model.generate(ids, **GREEDY, max_new_tokens=8)[0].tolist()
    assert list(drafter.draft(whole[:7], 3).tokens) == whole[7:10]
    assert list(drafter.draft(whole[:10], 5).tokens) == whole[10:15], "it keeps what it has computed"
    other = [*whole[:8], 9, 9]
    expected = model.generate(torch.tensor([other]), **GREEDY, max_new_tokens=3)[0].tolist()
    assert list(drafter.draft(other, 3).tokens) == expected[10:], "and forgets what turned out otherwise"
    assert list(drafter.draft(other, 3).tokens) == expected[10:]


def test_a_draft_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="share"):
        ModelDrafter(reference(save(tmp_path, "llama")), 50_000)
