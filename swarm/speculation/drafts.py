"""Drafts of the next tokens, to be verified by the model itself: what they are, and those out of the text so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

LONGEST = 5
SHORTEST = 2
"""Tokens at the end of the text that are looked up in the text before."""


@dataclass(frozen=True, slots=True)
class Draft:
    """`tokens` that may follow. `kind`: drafts of one kind are right about equally often, and are counted together."""

    tokens: tuple[int, ...] = ()
    kind: int = 0


class Drafter(Protocol):
    """Where drafts come from. One text at a time."""

    def learn(self, text: Sequence[int]) -> None:
        """Take in the text that is certain; it only grows."""

    def kind(self, text: Sequence[int]) -> int | None:
        """Of which kind a draft for this text would be; None if there is none. Costs next to nothing."""

    def draft(self, text: Sequence[int], count: int) -> Draft:
        """At most `count` tokens that may follow `text`."""


@runtime_checkable
class StatesDrafter(Drafter, Protocol):
    """One that drafts from what the model ended with at each position."""

    def see(self, states: Any, position: int) -> None:
        """Hidden states `[count, hidden_size]` behind the model's last norm, of the next positions that are certain,
        from `position` on: where it is first called, the text begins for it."""


class NgramDrafter:
    """What followed the last few tokens when they stood in the text before (prompt lookup).

    The source of the idea: A. Saxena, "Prompt Lookup Decoding", 2023.
    """

    def __init__(self, longest: int = LONGEST, shortest: int = SHORTEST) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._followers: dict[tuple[int, ...], int] = {}
        self._known: list[int] = []

    def learn(self, text: Sequence[int]) -> None:
        """Note every run of tokens of the text, which is certain from now on, and where it ended."""
        for end in range(len(self._known), len(text)):
            self._known.append(text[end])
            # The run that ends here has no follower yet; the one that ended before is followed by this token.
            for size in self._sizes:
                if end >= size:
                    self._followers[tuple(self._known[end - size : end])] = end

    def kind(self, text: Sequence[int]) -> int | None:
        """How many tokens were found again."""
        return next((size for size in self._sizes if self._found(text, size) is not None), None)

    def draft(self, text: Sequence[int], count: int) -> Draft:
        """What followed; a source that reaches the end of the text goes on in the draft itself, as a loop does."""
        size = self.kind(text)
        begin = self._found(text, size) if size is not None else None
        if size is None or begin is None:
            return Draft()
        tokens = self._known[begin : begin + count]
        while len(tokens) < count:
            tokens += tokens[: count - len(tokens)]
        return Draft(tuple(tokens), size)

    def _found(self, text: Sequence[int], size: int) -> int | None:
        """The index behind the last place where the end of the text stood before."""
        return self._followers.get(tuple(text[-size:])) if len(text) >= size else None
