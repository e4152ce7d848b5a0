"""How a text was begun, so that it can be begun again as if nothing had been."""

from __future__ import annotations

import logging
from typing import Any

import torch

from swarm.errors import Refuted

log = logging.getLogger(__name__)


class Beginning:
    """Of a call of `generate` with these options, in which the streamer is replaced by one that can begin again."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._own_cache = options.get("past_key_values") is not None
        self._random = torch.get_rng_state()
        self._devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self._streamer: Patched | None = None
        if options.get("streamer") is not None:
            options["streamer"] = self._streamer = Patched(options["streamer"])

    def again(self, refuted: Refuted) -> None:
        """Begin again. Raises `refuted` where the caller's own cache holds what is not right."""
        if self._own_cache:
            raise refuted
        log.warning("%s: generating anew", refuted.message)
        torch.set_rng_state(self._random)
        if self._devices:
            torch.cuda.set_rng_state_all(self._devices)
        if self._streamer is not None:
            self._streamer.again()

    def done(self) -> None:
        """What came is right, as far as anybody looked."""
        if self._streamer is not None:
            self._streamer.done()


class Patched:
    """A streamer that may be given the same once more, of which it passes on what is new: what is out is out."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._given: list[torch.Tensor] = []
        self._place = 0

    def again(self) -> None:
        """All comes once more, from the beginning."""
        self._place = 0

    def put(self, value: torch.Tensor) -> None:
        """Tokens, as transformers gives them."""
        known = self._place < len(self._given)
        if known and not torch.equal(self._given[self._place], value):
            log.warning("of what was streamed, %d tokens were not right", len(self._given) - self._place)
            del self._given[self._place :]
            known = False
        self._place += 1
        if not known:
            self._given.append(value.clone())
            self._streamer.put(value)

    def end(self) -> None:
        """The text is over, unless it is begun again."""

    def done(self) -> None:
        """It is over."""
        self._streamer.end()
