"""The nouns of the swarm as plain, frozen data. No I/O, no behaviour beyond arithmetic and parsing."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from swarm.errors import InvalidInput

PeerId = str
"""A libp2p peer id in base58 (the hash of the peer's public key)."""

SequenceKey = tuple[bytes, int]
"""(session id, sequence id): one row of one session's state. A sequence id is never used twice in a session."""

_SPAN = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of blocks, `first` ≤ block < `last`, written `first:last`."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise InvalidInput(
                f"span {self.first}:{self.last} is empty or negative; write it as first:last, e.g. 10:20"
            )

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read `10:20`. Raises InvalidInput on anything else."""
        match = _SPAN.fullmatch(text.strip())
        if match is None:
            raise InvalidInput(f"{text!r} is not a span; write it as first:last, e.g. 10:20 for blocks 10 to 19")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))

    def __contains__(self, block: int) -> bool:
        return self.first <= block < self.last

    def covers(self, other: Span) -> bool:
        """Whether every block of `other` is in this span."""
        return self.first <= other.first and other.last <= self.last


@dataclass(frozen=True, slots=True)
class Segment:
    """`count` consecutive positions of one sequence, from absolute position `start`, inside a row of tokens."""

    sequence: SequenceKey
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Rows:
    """New positions of one sequence: their hidden states as bytes, and how many of the last outputs are wanted."""

    sequence: int
    hidden: bytes
    want: int


class ServerState(enum.Enum):
    """What a server says of itself in the directory."""

    JOINING = "joining"
    ONLINE = "online"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a peer must know of a model to route over it. `key` is its identity, `name` only a label.

    `key`: hex digest of (resolved commit or content) and config.
    """

    key: str
    name: str
    blocks: int
    hidden_size: int
    context_length: int | None = None


def is_called(name: str, asked: str) -> bool:
    """Whether a model's name is meant: the whole of it, or what follows its last slash."""
    return asked in (name, name.rstrip("/").rpartition("/")[2])


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One server's announcement, as read from the directory after its signature was checked.

    `fingerprints`: for each block of the span the first 8 bytes of the sha256 of its tensors.
    `addresses`: multiaddrs with or without /p2p/; `free_tokens`: positions of KV cache that are free for the whole
    span; `decode_ms`: milliseconds per block for one decode step; `prefill_rate`: positions per second through one
    block; `queue`: steps waiting; `signed`: the record as it was signed, to be shown to others; `expires`: unix
    seconds.
    """

    peer_id: PeerId
    model: str
    span: Span
    fingerprints: tuple[bytes, ...]
    state: ServerState = ServerState.ONLINE
    addresses: tuple[str, ...] = ()
    dtype: str = "float32"
    free_tokens: int = 0
    decode_ms: float = 1.0
    prefill_rate: float = 1000.0
    queue: int = 0
    relayed: bool = False
    codecs: tuple[str, ...] = ("raw",)
    quantization: str = "none"
    version: str = ""
    name: str = ""
    expires: float = 0.0
    signed: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Hop:
    """One server's part of a route: the blocks `span` computed at `server`."""

    server: ServerRecord
    span: Span

    @property
    def peer_id(self) -> PeerId:
        return self.server.peer_id


@dataclass(frozen=True, slots=True)
class Route:
    """A chain of hops that covers every block of `span` once, in order.

    `relayed_links`: indices i such that what hop i computes goes to hop i + 1 through the client.
    """

    hops: tuple[Hop, ...]
    relayed_links: frozenset[int] = frozenset()
    cost_ms: float = 0.0

    @property
    def span(self) -> Span:
        return Span(self.hops[0].span.first, self.hops[-1].span.last)

    def __str__(self) -> str:
        return " → ".join(f"{hop.span}@{hop.peer_id[-6:]}" for hop in self.hops)
