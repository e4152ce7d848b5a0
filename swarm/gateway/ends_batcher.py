"""The one thread of a query node that computes: whatever is ready of all queries goes through it together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarm.errors import InvalidInput
from swarm.gateway.sampling import Sampler, logprobs

if TYPE_CHECKING:
    import torch

    from swarm.models.ends.ends import Ends, Seen
    from swarm.models.picture_prompts import Prompt


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """The next token of a sequence, and if asked for its log-probability and those of the most likely tokens. `last`:
    nothing may follow, by the form that is asked for."""

    token: int
    logprob: float = 0.0
    top: Sequence[tuple[int, float]] = ()
    last: bool = False


@dataclass(frozen=True, slots=True)
class Choose:
    """What the last block gave for consecutive positions of a sequence.

    `position`: of the token that the first row chooses; `drafts`: what was sent behind each row. The tokens are chosen
    in turn as long as they are the drafts, and taken by the sampler. `alternatives`: how many to tell of each; None:
    no log-probabilities.
    """

    rows: Sequence[bytes]
    sampler: Sampler
    position: int
    drafts: Sequence[int] = ()
    alternatives: int | None = None


@dataclass(frozen=True, slots=True)
class Embed:
    """Tokens of a sequence to be embedded, the first of which has position `start`."""

    tokens: Sequence[int]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """Hidden states for the first block: of a text, or of the last one of `choices`."""

    hidden: bytes
    choices: Sequence[ChosenToken] = ()


@dataclass(slots=True, eq=False)
class _Work:
    ask: Choose | Embed
    done: asyncio.Future[Done] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class EndsBatcher:
    """Embeds prompts and chooses tokens; what comes in while a pass runs goes together into the next one."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ends")
        self._waiting: list[_Work] = []
        self._task: asyncio.Task[None] | None = None

    async def embed(self, text: Embed) -> bytes:
        """Hidden states of tokens for the first block."""
        return (await self._submit(text)).hidden

    async def choose(self, ask: Choose) -> Done:
        """The next tokens of a sequence: one, and one more for each draft that was right."""
        return await self._submit(ask)

    async def see(self, prompt: Prompt) -> Seen:
        """See `Ends.see`."""
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._thread, self.ends.see, prompt.tokens, prompt.pictures)

    async def pool(self, rows: bytes, count: int) -> list[float]:
        """See `Ends.pooled`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.ends.pooled, rows, count)

    async def _submit(self, ask: Choose | Embed) -> Done:
        work = _Work(ask)
        self._waiting.append(work)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ends")
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
                if isinstance(result, InvalidInput):
                    self._fail([work], result)
                elif not work.done.done():
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


def compute(ends: Ends, asks: Sequence[Choose | Embed]) -> list[Done | InvalidInput]:
    """One pass over all: the head, the choices, and the embeddings of what was chosen and of texts.

    Where an answer cannot go on as is asked, that is its own affair.
    """
    chosen = iter(choose(ends, [ask for ask in asks if isinstance(ask, Choose)]))
    choices = [next(chosen) if isinstance(ask, Choose) else [] for ask in asks]
    texts = [
        _last(ask, each) if isinstance(ask, Choose) else ask
        for ask, each in zip(asks, choices, strict=True)
        if not isinstance(each, InvalidInput)
    ]
    hidden = iter(ends.embed([text.tokens for text in texts], [text.start for text in texts]) if texts else ())
    return [each if isinstance(each, InvalidInput) else Done(next(hidden), each) for each in choices]


def _last(ask: Choose, choices: Sequence[ChosenToken]) -> Embed:
    return Embed([choices[-1].token], ask.position + len(choices) - 1)


def choose(ends: Ends, asks: Sequence[Choose]) -> list[list[ChosenToken] | InvalidInput]:
    """The next tokens of each, or why there are none."""
    if not asks:
        return []
    logits = ends.logits([row for ask in asks for row in ask.rows])
    best = logits.argmax(dim=-1).tolist()
    results: list[list[ChosenToken] | InvalidInput] = []
    first = 0
    for ask in asks:
        last = first + len(ask.rows)
        try:
            results.append(_in_turn(ask, logits[first:last], best[first:last]))
        except InvalidInput as error:
            results.append(error)
        first = last
    return results


def _in_turn(ask: Choose, logits: torch.Tensor, best: Sequence[int]) -> list[ChosenToken]:
    choices: list[ChosenToken] = []
    for index, scores in enumerate(logits):
        token = best[index] if ask.sampler.plain else ask.sampler.choose(scores)
        ask.sampler.take(token)
        logprob, top = (0.0, []) if ask.alternatives is None else logprobs(scores, token, ask.alternatives)
        choices.append(ChosenToken(token, logprob, top, ask.sampler.over))
        if choices[-1].last or index >= len(ask.drafts) or ask.drafts[index] != token:
            break
    return choices
