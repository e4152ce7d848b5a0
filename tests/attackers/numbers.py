"""Blocks of real numbers for the simulated network: residual, causal, with a state that every position is in.

Unlike hashes they can be nearly right. What one block adds is about a third of what goes through it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from swarm.jobs import compute
from swarm.testing import Arithmetic, PastRunner
from swarm.types import Segment, Span
from swarm.wire.rows import Buffer

SIZE, VOCABULARY = 96, 211
Rows = npt.NDArray[np.float32]


@functools.cache
def weights(block: int) -> tuple[Rows, Rows]:
    """What a block makes of a position, and of the mean of all so far."""
    rng = np.random.default_rng(block)
    scale = 1.0 / np.sqrt(SIZE)
    one, other = (rng.standard_normal((SIZE, SIZE)).astype(np.float32) * scale for _ in range(2))
    return one, other


@functools.cache
def table(seed: int = 1000) -> Rows:
    """Embeddings, and the head."""
    return np.random.default_rng(seed).standard_normal((VOCABULARY, SIZE)).astype(np.float32)


def embed(token: int, position: int) -> bytes:
    return table()[token % VOCABULARY].tobytes()


def token_of(output: bytes) -> int:
    row = np.frombuffer(output[-4 * SIZE :], np.float32)
    return int((table(2000) @ row).argmax())


class NumbersRunner(PastRunner):
    """Computes the blocks. `noise`: what another kernel would do to each block's contribution, relative to it."""

    can_rollback = True

    def __init__(self, span: Span, noise: float = 0.0, seed: int = 0) -> None:
        self.span = span
        self.noise = noise
        self.random = np.random.default_rng([seed, span.first])
        super().__init__()
        self.computed = 0

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        rows = np.frombuffer(hidden, np.float32).reshape(-1, SIZE)
        outputs, begin = [], 0
        for segment in segments:
            outputs.append(self.through(span, segment, rows[begin : begin + segment.count]))
            begin += segment.count
        self.computed += begin
        return memoryview(np.concatenate(outputs).astype(np.float32).tobytes())

    def through(self, span: Span, segment: Segment, rows: Rows) -> Rows:
        """Through all blocks of a span."""
        for block in span:
            rows = self.block(block, segment, rows)
        return rows

    def block(self, block: int, segment: Segment, rows: Rows) -> Rows:
        """Through one block."""
        return rows + self.contribution(block, segment, rows)

    def weights(self, block: int) -> tuple[Rows, Rows]:
        """Those that it computes with."""
        return weights(block)

    def contribution(self, block: int, segment: Segment, rows: Rows) -> Rows:
        """What a block adds."""
        one, other = self.weights(block)
        sums = self.states.setdefault(segment.sequence, {}).setdefault(block, [])
        assert len(sums) == segment.start, f"{segment} does not continue {len(sums)} positions"
        added = np.empty_like(rows)
        for index, row in enumerate(rows):
            sums.append(row + sums[-1] if sums else row)
            mean = sums[-1] / np.float32(len(sums))
            added[index] = np.tanh(one @ row + 2.0 * (other @ mean)) * np.float32(0.3)
        if self.noise:
            added *= 1.0 + self.noise * self.random.standard_normal(added.shape, np.float32)
        return added

    def bytes_held(self) -> int:
        return sum(4 * SIZE * len(past) for blocks in self.states.values() for past in blocks.values())

    def reserved_bytes(self, span: Span, length: int) -> int:
        return 4 * SIZE * len(span) * length


def arithmetic() -> Arithmetic:
    """For a `World`; who makes a server wrong gives it another runner."""
    return Arithmetic(4 * SIZE, embed, token_of, NumbersRunner, "float32", SIZE)


def reference(prompt: Sequence[int], count: int, blocks: int = 9) -> list[int]:
    """What one process generates."""
    runner, tokens, start = NumbersRunner(Span(0, blocks)), list(prompt), 0
    while len(tokens) < len(prompt) + count:
        rows = b"".join(embed(token, start + i) for i, token in enumerate(tokens[start:]))
        output = compute(runner, Span(0, blocks), [Segment((b"", 0), start, len(tokens) - start)], rows)
        start = len(tokens)
        tokens.append(token_of(bytes(output)))
    return tokens[len(prompt) :]
