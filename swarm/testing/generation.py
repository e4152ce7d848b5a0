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
    size = arithmetic.row_bytes
    whole, text, sent, done, sequence = [*prompt, *truth], list(prompt), list[int](), 0, 0
    windows: deque[tuple[int, asyncio.Task[list[bytes]]]] = deque()
    void: list[asyncio.Task[list[bytes]]] = []
    operations: list[pb.Operation] = []
    try:
        while len(text) < len(whole):
            if on_token is not None and asyncio.iscoroutine(happening := on_token(len(text) - len(prompt))):
                await happening
            while len(windows) < rng.randint(1, 4):
                begin, ahead = len(sent), max(len(sent), len(text))
                guesses = [token + (rng.random() < 0.2) for token in whole[ahead : ahead + rng.randint(0, 5)]]
                window = text[begin:] + guesses
                if not window:
                    break
                rows = b"".join(arithmetic.embed(token, begin + i) for i, token in enumerate(window))
                step = asyncio.ensure_future(session.step([Rows(sequence, rows, len(window))], operations))
                await asyncio.sleep(0)
                windows.append((len(window), step))
                sent, operations = sent + window, []
            count, step = windows.popleft()
            (outputs,) = await step
            for index in range(count):
                done += 1
                if done < len(text):
                    continue
                text.append(arithmetic.token_of(outputs[index * size : (index + 1) * size]))
                if done < len(sent) and sent[done] != text[-1]:
                    del sent[done:]
                    void += [step for _, step in windows]
                    windows.clear()
                    move = pb.Operation(kind=pb.Operation.MOVE, source=sequence, target=sequence + 1, length=done)
                    sequence, operations = sequence + 1, [move]
                    break
    finally:
        void += [step for _, step in windows]
        for step in void:
            step.cancel()
        ends = await asyncio.gather(*void, return_exceptions=True)
    assert all(isinstance(end, list | StepVoid | asyncio.CancelledError) for end in ends), ends
    return text[len(prompt) : len(whole)]
