"""What a server promises when it signs what it has sent. docs/protocol.md describes it. Pure.

A leaf says: at this position of a sequence that began with these inputs, this was sent. It holds a chain of hashes
over the inputs and not the inputs, so that nothing that came before can be left out or put in.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from swarm.wire.rows import Buffer

CONTEXT = b"swarm-commitment:"


def beginning(session: bytes) -> bytes:
    """The chain before position 0."""
    return sha256(b"swarm-inputs:" + session).digest()


def row_digest(row: Buffer) -> bytes:
    """Of one position's hidden state, as it is computed with: a codec's, after decoding."""
    return sha256(row).digest()


def extended(chain: bytes, digest: bytes) -> bytes:
    """The chain with one more position, whose `row_digest` this is."""
    return sha256(chain + digest).digest()


def chained(session: bytes, inputs: Buffer, row_bytes: int) -> Iterator[bytes]:
    """The chain up to each position of these inputs, which begin at position 0."""
    chain, view = beginning(session), memoryview(inputs)
    for begin in range(0, len(view), row_bytes):
        chain = extended(chain, row_digest(view[begin : begin + row_bytes]))
        yield chain


def leaf(session: bytes, position: int, chain: bytes, output: Buffer) -> bytes:
    """That `output` was sent for a position; `chain`: up to and with its input."""
    return sha256(session + position.to_bytes(8, "little") + chain + row_digest(output)).digest()
