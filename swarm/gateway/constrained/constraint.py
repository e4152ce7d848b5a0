"""What one answer must look like, as far as it has come: llguidance's matcher, and what is asked of it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from swarm.errors import InvalidInput

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Constraint:
    """Of one answer. For one thread at a time; each call is bounded by the limits that its matcher was made with.

    `endless`: nothing ends the model's texts; then the answer is over as soon as it may be.
    """

    def __init__(self, matcher: LLMatcher, *, endless: bool = False) -> None:
        self._matcher = matcher
        self._endless = endless

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped() or (self._endless and self._matcher.is_accepting())

    def allowed(self) -> torch.Tensor:
        """The token ids that may come next, ascending. Raises InvalidInput where none may, or it became too complex."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        tokens = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        if not len(tokens):
            raise InvalidInput("no token of this model goes on in the form that is asked for")
        return torch.from_numpy(tokens)

    def take(self, token: int) -> None:
        """This one is the next. Raises InvalidInput for one that may not be."""
        if not self._matcher.consume_token(token):
            self._check()
            raise InvalidInput(f"token {token} is not of the form that is asked for")

    def forced(self, ahead: Sequence[int]) -> list[int]:
        """What must follow behind `ahead`, tokens that come next; as far as it is known."""
        taken = self._matcher.try_consume_tokens(list(ahead))
        forced = list(self._matcher.compute_ff_tokens()) if taken == len(ahead) else []
        self._matcher.rollback(taken)
        return forced

    def fitting(self, ahead: Sequence[int]) -> int:
        """How many of the tokens `ahead` may come next, one after the other."""
        return int(self._matcher.validate_tokens(list(ahead)))

    def _check(self) -> None:
        if self._matcher.is_error():
            words = words_of(self._matcher)
            raise InvalidInput(f"the answer cannot go on in the form that is asked for: {words}")


def words_of(matcher: LLMatcher) -> str:
    """What is the matter with it. Where a bound of its own is met, llguidance says no more than where."""
    words = str(matcher.get_error()).partition("\n<")[0]
    return "it is too large" if words.startswith("panic") else words
