"""Text out of a simulated swarm: token for token, or with guesses sent ahead."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence

from swarm.client.session import Session
from swarm.errors import StepVoid
from swarm.testing.exact import Arithmetic, embed, token_of
from swarm.types import Rows
from swarm.wire import swarm_pb2 as pb


async def generate(
    session: Session,
    prompt: Sequence[int],
    count: int,
    *,
    sequence: int = 0,
    on_token: Callable[[int], object] | None = None,
    arithmetic: Arithmetic | None = None,
) -> list[int]:
    """What the swarm generates after a prompt that goes on where the sequence ends.

    `on_token(i)` is called before token i is asked for; it may return a coroutine.
    """
    to_row, to_token = (arithmetic.embed, arithmetic.token_of) if arithmetic else (embed, token_of)
    base = session.length(sequence)
    tokens, sent = list(prompt), 0
    while len(tokens) < len(prompt) + count:
        if on_token is not None:
            happening = on_token(len(tokens) - len(prompt))
            if asyncio.iscoroutine(happening):
                await happening
        rows = b"".join(to_row(token, base + sent + i) for i, token in enumerate(tokens[sent:]))
        sent = len(tokens)
        (output,) = await session.step([Rows(sequence, rows, 1)])
        tokens.append(to_token(output))
    return tokens[len(prompt) :]


async def speculate(
    session: Session,
    arithmetic: Arithmetic,
    prompt: Sequence[int],
    truth: Sequence[int],
    rng: random.Random,
    *,
    on_token: Callable[[int], object] | None = None,
) -> list[int]:
    """As `generate`, with guesses sent ahead in several windows; some are wrong, and what follows them is void.

    `truth`: what has to come, of which the guesses are made.
    """
    guessing = _Guessing(session, arithmetic, prompt, truth, rng)
    try:
        while not guessing.complete:
            if on_token is not None and asyncio.iscoroutine(happening := on_token(guessing.generated)):
                await happening
            await guessing.send()
            await guessing.receive()
    finally:
        ends = await guessing.close()
    assert all(isinstance(end, list | StepVoid | asyncio.CancelledError) for end in ends), ends
    return guessing.text[len(prompt) : len(prompt) + len(truth)]


class _Guessing:
    """Windows of tokens under way, of which the first is certain and the others may be guesses."""

    def __init__(
        self, session: Session, arithmetic: Arithmetic, prompt: Sequence[int], truth: Sequence[int], rng: random.Random
    ) -> None:
        self.text = list(prompt)
        self._session, self._arithmetic, self._rng = session, arithmetic, rng
        self._begin = len(prompt)
        self._whole = [*prompt, *truth]
        self._sent: list[int] = []
        self._done = 0
        self._sequence = 0
        self._operations: list[pb.Operation] = []
        self._windows: deque[tuple[int, asyncio.Task[list[bytes]]]] = deque()
        self._void: list[asyncio.Task[list[bytes]]] = []

    @property
    def complete(self) -> bool:
        return len(self.text) >= len(self._whole)

    @property
    def generated(self) -> int:
        return len(self.text) - self._begin

    async def send(self) -> None:
        """Some more windows, up to four at a time."""
        while len(self._windows) < self._rng.randint(1, 4) and (window := self._next_window()):
            begin = len(self._sent)
            rows = b"".join(self._arithmetic.embed(token, begin + i) for i, token in enumerate(window))
            step = self._session.step([Rows(self._sequence, rows, len(window))], self._operations)
            self._windows.append((len(window), asyncio.ensure_future(step)))
            await asyncio.sleep(0)
            self._sent, self._operations = self._sent + window, []

    def _next_window(self) -> list[int]:
        begin, ahead = len(self._sent), max(len(self._sent), len(self.text))
        guessed = self._whole[ahead : ahead + self._rng.randint(0, 5)]
        return self.text[begin:] + [token + (self._rng.random() < 0.2) for token in guessed]

    async def receive(self) -> None:
        """The outputs of the first window, as far as they follow what was right."""
        count, step = self._windows.popleft()
        (outputs,) = await step
        size = self._arithmetic.row_bytes
        for index in range(count):
            self._done += 1
            if self._done < len(self.text):
                continue
            self.text.append(self._arithmetic.token_of(outputs[index * size : (index + 1) * size]))
            if self._done < len(self._sent) and self._sent[self._done] != self.text[-1]:
                self._take_back()
                break

    def _take_back(self) -> None:
        """All that was sent after what is done: a guess was wrong."""
        del self._sent[self._done :]
        self._void += [step for _, step in self._windows]
        self._windows.clear()
        source, target = self._sequence, self._sequence + 1
        move = pb.Operation(kind=pb.Operation.MOVE, source=source, target=target, length=self._done)
        self._sequence, self._operations = target, [move]

    async def close(self) -> list[list[bytes] | BaseException]:
        """End what is under way, and say how each of it ended."""
        under_way = self._void + [step for _, step in self._windows]
        for step in under_way:
            step.cancel()
        return await asyncio.gather(*under_way, return_exceptions=True)
