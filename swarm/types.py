"""The nouns of the swarm as plain, frozen data. No I/O, no behaviour beyond arithmetic and parsing."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field

from swarm.contract import UNQUANTIZED, Contract
from swarm.coordinates import Coordinate
from swarm.errors import InvalidInput
from swarm.span import Span as Span

PeerId = str
"""A libp2p peer id in base58 (the hash of the peer's public key)."""

SequenceKey = tuple[bytes, int]
"""(session id, sequence id): one row of one session's state. A sequence id is never used twice in a session."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Matrices of a client beside linear layers of the blocks, as the file that they came in, and its sha256."""

    digest: bytes
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Segment:
    """`count` consecutive positions of one sequence, from absolute position `start`, inside a row of tokens.

    `places`: where they stand, as in `Rows`; none: as they are counted. `adapter`: what the client adds beside linear
    layers. `rollback`: the sequence is to be able to go back to before them.
    """

    sequence: SequenceKey
    start: int
    count: int
    places: bytes = b""
    adapter: Adapter | None = None
    rollback: bool = False

    def part(self, first: int, count: int) -> Segment:
        """`count` positions from its position `first` on."""
        size = len(self.places) // self.count
        places = self.places[first * size : (first + count) * size]
        return Segment(self.sequence, self.start + first, count, places, self.adapter, self.rollback)


@dataclass(frozen=True, slots=True)
class Rows:
    """New positions of one sequence: their hidden states as bytes, and how many of the last outputs are wanted.

    `places`: where they stand, little-endian int32, one a position, or several, all of one position behind each other;
    none where they are counted from 0 on.
    """

    sequence: int
    hidden: bytes
    want: int
    places: bytes = b""


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

    def contract(
        self, dtype: str, row_bytes: int = 0, quantization: str = UNQUANTIZED, numbers: int | None = None
    ) -> Contract:
        """The whole model, with any weights, computed in these numbers; `numbers`: how many a position has between two
        blocks, where not its hidden size."""
        return Contract(
            self.key,
            Span(0, self.blocks),
            dtype=dtype,
            quantization=quantization,
            hidden_size=self.hidden_size if numbers is None else numbers,
            row_bytes=row_bytes,
        )


def is_called(name: str, asked: str) -> bool:
    """Whether a model's name is meant: the whole of it, or what follows its last slash.

    A name without a slash, that of a folder, is also meant by longer ones that end so.
    """
    return asked in (name, _last(name)) or ("/" not in name and _last(asked) == name)


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


LONGEST_NAME = 256
"""Characters of a name that records hold."""


def check_name(name: str) -> str:
    """A name that its peer shows to others, as it was given. Raises InvalidInput for one that others cannot show."""
    if len(name) > LONGEST_NAME:
        raise InvalidInput(f"the name {printable(name[:LONGEST_NAME])}... has more than {LONGEST_NAME} characters")
    if not name.isprintable():
        raise InvalidInput(f"the name {name!a} has characters that nobody can show; use letters and plain signs")
    return name


def printable(text: str) -> str:
    """What a stranger wrote, fit for a terminal: characters that steer one, or that nobody can see, as `?`."""
    return text if text.isprintable() else "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


@dataclass(frozen=True, slots=True)
class EndsRecord:
    """That a server has the ends of its model. `fingerprint`: the first 8 bytes of the sha256 of their numbers;
    `head_ms`: of the head for one row."""

    fingerprint: bytes
    vocabulary: int
    head_ms: float


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One server's announcement, as read from the directory after its signature was checked.

    `contract`: what it computes, of each fingerprint the first 8 bytes; `addresses`: multiaddrs with or without
    /p2p/; `free_tokens`: positions of KV cache that are free for the whole span; `decode_ms`: milliseconds per block
    for one decode step; `prefill_rate`: positions per second through one block, in a pass of
    `prefill_positions` (0: not said); `queue`: steps waiting; `training`: whether it gives gradients;
    `ends`: what it has of the model beside blocks, None: nothing;
    `coordinate`: where it is, None: not said; `near`: round trips in ms that it measured, by the `digest` of the
    peer, to servers that can follow it; `account`: the end of its account's chain, not checked, empty where it has
    none; `signed`: the
    record as it was signed, to be shown to others; `expires`: unix seconds.
    """

    peer_id: PeerId
    contract: Contract
    state: ServerState = ServerState.ONLINE
    addresses: tuple[str, ...] = ()
    free_tokens: int = 0
    decode_ms: float = 1.0
    prefill_rate: float = 1000.0
    prefill_positions: int = 0
    queue: int = 0
    relayed: bool = False
    codecs: tuple[str, ...] = ("raw",)
    version: str = ""
    name: str = ""
    instance: int = 0
    training: bool = False
    ends: EndsRecord | None = None
    expires: float = 0.0
    coordinate: Coordinate | None = None
    near: tuple[tuple[bytes, float], ...] = ()
    account: bytes = field(default=b"", repr=False)
    signed: bytes = field(default=b"", repr=False)

    @property
    def model(self) -> str:
        """The key of the model."""
        return self.contract.model

    @property
    def span(self) -> Span:
        """The blocks that it hosts."""
        return self.contract.span

    @property
    def fingerprints(self) -> tuple[bytes, ...]:
        """For each block of the span the first 8 bytes of the sha256 of its tensors."""
        return self.contract.fingerprints


DIGEST_BYTES = 8


def digest(peer_id: PeerId) -> bytes:
    """What stands for a peer where there is little room."""
    return hashlib.sha256(peer_id.encode()).digest()[:DIGEST_BYTES]


MAX_NEAR = 8
"""Servers whose round trips a record tells."""
HopKey = tuple[PeerId, Span]


@dataclass(frozen=True, slots=True)
class Hop:
    """One server's part of a route: the blocks `span` computed at `server`."""

    server: ServerRecord
    span: Span

    @property
    def peer_id(self) -> PeerId:
        return self.server.peer_id

    @property
    def key(self) -> HopKey:
        """Which hop of a route it is, whatever its server's record says by now."""
        return self.server.peer_id, self.span


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
