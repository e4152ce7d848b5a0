"""The one thread of a query node that computes: whatever is ready of all queries goes through it together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from swarm.gateway.sampling import Sampler, logprobs

if TYPE_CHECKING:
    from swarm.models.ends import Ends


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of a sequence, its hidden states for the first block, and if asked for its log-probability and
    those of the most likely tokens."""

    token: int
    hidden: bytes
    logprob: float = 0.0
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """What the last block gave for a sequence's last position. `alternatives`: how many to tell; None: no logprobs."""

    row: bytes
    sampler: Sampler
    position: int
    alternatives: int | None = None


@dataclass(slots=True, eq=False)
class _Work:
    ask: Ask | Sequence[int]
    done: asyncio.Future[Choice | bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Compute:
    """Embeds prompts and chooses tokens; what comes in while a pass runs goes together into the next one."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ends")
        self._waiting: list[_Work] = []
        self._task: asyncio.Task[None] | None = None

    async def embed(self, tokens: Sequence[int]) -> bytes:
        """Hidden states of a prompt for the first block."""
        hidden = await self._submit(_Work(tokens))
        assert isinstance(hidden, bytes)
        return hidden

    async def choose(self, ask: Ask) -> Choice:
        """The next token of a sequence."""
        choice = await self._submit(_Work(ask))
        assert isinstance(choice, Choice)
        return choice

    async def _submit(self, work: _Work) -> Choice | bytes:
        self._waiting.append(work)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="compute")
        return await work.done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            works, self._waiting = self._waiting, []
            try:
                results = await loop.run_in_executor(self._thread, compute, self.ends, [work.ask for work in works])
            except Exception as error:
                self._fail(works, error)
                continue
            for work, result in zip(works, results, strict=True):
                if not work.done.done():
                    work.done.set_result(result)
        self._task = None

    @staticmethod
    def _fail(works: Sequence[_Work], error: Exception) -> None:
        for work in works:
            if not work.done.done():
                work.done.set_exception(error)

    async def close(self) -> None:
        """Let the pass that runs end; nothing may wait any more."""
        if self._task is not None:
            await self._task
        self._thread.shutdown()


def compute(ends: Ends, asks: Sequence[Ask | Sequence[int]]) -> list[Choice | bytes]:
    """One pass over all: the head, the choices, and the embeddings of what was chosen and of prompts."""
    chosen = iter(choose(ends, [ask for ask in asks if isinstance(ask, Ask)]))
    choices = [next(chosen) if isinstance(ask, Ask) else None for ask in asks]
    texts, starts = [], []
    for ask, choice in zip(asks, choices, strict=True):
        texts.append([choice.token] if choice is not None else list(cast(Sequence[int], ask)))
        starts.append(ask.position if isinstance(ask, Ask) else 0)
    hidden = ends.embed(texts, starts)
    pairs = zip(choices, hidden, strict=True)
    return [states if choice is None else replace(choice, hidden=states) for choice, states in pairs]


def choose(ends: Ends, asks: Sequence[Ask]) -> list[Choice]:
    """The next tokens, without their hidden states yet."""
    if not asks:
        return []
    logits, choices = ends.logits([ask.row for ask in asks]), []
    best = logits.argmax(dim=-1).tolist()
    for ask, scores, first in zip(asks, logits, best, strict=True):
        token = first if ask.sampler.settings.plain else ask.sampler.choose(scores)
        told = (0.0, ()) if ask.alternatives is None else logprobs(scores, token, ask.alternatives)
        choices.append(Choice(token, b"", *told))
    return choices
