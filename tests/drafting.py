"""Drafters and pacers that tests have in hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from survey.configs import VOCABULARY
from swarm.speculation.drafts import Draft
from swarm.speculation.pacer import MOST, Pacer


class Prophet:
    """Knows the text that will come, and is wrong where it is told to be."""

    def __init__(self, text: Sequence[int], wrong: Sequence[int] = (), vocabulary: int = VOCABULARY) -> None:
        self.text = list(text)
        self.wrong = set(wrong)
        self.vocabulary = vocabulary

    def learn(self, text: Sequence[int]) -> None:
        """It knows already."""

    def kind(self, text: Sequence[int]) -> int | None:
        return 0

    def draft(self, text: Sequence[int], count: int) -> Draft:
        after = range(len(text), min(len(text) + count, len(self.text)))
        return Draft(tuple((self.text[i] + (i in self.wrong)) % self.vocabulary for i in after))


class Reckless(Pacer):
    """Always sends as much as it may, so that many windows are on their way at once."""

    def __init__(self, drafter: Any, depth: int = MOST) -> None:
        super().__init__(drafter)
        self.always = depth

    def depth(self, ahead: Sequence[int]) -> int:
        return self.always
