"""Prompts that begin alike are computed once: how their beginnings are recognised, and which are kept. Pure.

A beginning is recognised by the hidden states that come in, from position 0 on: h_i = hash(h_{i-1}, chunk i), so that
one hash stands for all positions up to the end of its chunk. Nothing of what another hop says has to be believed. The
first hash stands for what else must agree: the span, and, unless the server shares, who asks. It is salted, so that
nobody knows a digest who was not told of it.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from swarm.types import SequenceKey, Span
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import Buffer, RowLog

DIGEST_BYTES = 32
OWNER = b""
"""In the place of a session id, in the keys of prefixes and for what is no session's; no session has an empty one."""
MOST_SEEN = 1 << 14
"""Digests remembered of what has come once and was not kept."""


def seed_of(span: Span, client: str, *, shared: bool, salt: bytes = b"") -> bytes:
    """Where the chains of a client's prompts on `span` begin; the same for all clients if they are shared. `salt`: that
    of the server, which it tells nobody."""
    whose = b"" if shared else client.encode()
    return b"%s:%d:%d:%s" % (salt, span.first, span.last, whose)


class Chain:
    """The hashes of one sequence's leading chunks. `length`: positions that it has seen; `offered`: digests that were
    offered to be kept."""

    __slots__ = ("_hash", "_missing", "chunk_bytes", "digests", "length", "offered", "row_bytes")

    def __init__(self, seed: bytes, row_bytes: int, chunk: int) -> None:
        self.digests: list[bytes] = []
        self.length = self.offered = 0
        self.row_bytes = row_bytes
        self.chunk_bytes = self._missing = row_bytes * chunk
        self._hash = blake2b(seed, digest_size=DIGEST_BYTES)

    def extend(self, rows: Buffer) -> None:
        """Go on with the next rows; a whole number of them, of chunks or not."""
        view = memoryview(rows)
        self.length += len(view) // self.row_bytes
        while len(view):
            piece, view = view[: self._missing], view[self._missing :]
            self._hash.update(piece)
            self._missing -= len(piece)
            if not self._missing:
                self._next()

    def _next(self) -> None:
        digest = self._hash.digest()
        self.digests.append(digest)
        self._hash = blake2b(digest, digest_size=DIGEST_BYTES)
        self._missing = self.chunk_bytes


class Chains:
    """The chains of one session: of those of its sequences that it has followed from position 0 on."""

    def __init__(self, seed: bytes, row_bytes: int, chunk: int) -> None:
        self._seed, self._row_bytes, self._chunk = seed, row_bytes, chunk
        self._chains: dict[int, Chain] = {}

    def __getitem__(self, sequence: int) -> Chain | None:
        return self._chains.get(sequence)

    def clear(self) -> None:
        """Follow none of them any more."""
        self._chains.clear()

    def operate(self, operations: Sequence[pb.Operation]) -> None:
        """Leave the sequences that end or begin here, whatever was followed under their ids."""
        for operation in operations:
            if operation.kind != pb.Operation.FREE:
                self._chains.pop(operation.target, None)
            if operation.kind != pb.Operation.FORK:
                self._chains.pop(operation.source, None)

    def follow(self, rows: Sequence[pb.Rows], hidden: memoryview) -> dict[int, Chain]:
        """Go on with the rows of one step; returns those of them that are followed. What is decoded token by token is
        not: a chain ends with its prompt."""
        begin, followed = 0, {}
        for row in rows:
            end = begin + row.count * self._row_bytes
            if row.start == 0:
                self._chains[row.sequence] = Chain(self._seed, self._row_bytes, self._chunk)
            chain = self._chains.get(row.sequence)
            if chain is not None:
                followed[row.sequence] = chain
                if chain.length == row.start and row.count >= self._chunk:
                    chain.extend(hidden[begin:end])
            begin = end
        return followed


@dataclass(slots=True, eq=False)
class Prefix:
    """The beginning of a prompt, computed: KV cache under `key`, and the outputs of the same positions.

    `digests`: of its chunks; `users`: how many are about to copy from it or to it; `ready`: whether it may be found.
    """

    key: SequenceKey
    digests: tuple[bytes, ...]
    outputs: RowLog
    kv_bytes: int
    users: int = 1
    ready: bool = False

    @property
    def nbytes(self) -> int:
        return self.kv_bytes + self.outputs.nbytes


@dataclass(frozen=True, slots=True)
class Hit:
    """The first `length` positions of a prompt are in `prefix`."""

    prefix: Prefix
    length: int


class PrefixCache:
    """Beginnings of prompts, the least recently used first. `free` frees a key's KV cache.

    One prefix serves all prompts that agree with any number of its chunks. A prompt that goes on where a prefix ends
    takes its place. One that leaves it, of which most is held already, is kept when its rest has come from a second
    sequence: many questions to one long text do not each keep that text.
    """

    def __init__(self, chunk: int, free: Callable[[SequenceKey], None]) -> None:
        self.chunk = chunk
        self._free = free
        self._prefixes: dict[SequenceKey, Prefix] = {}
        self._holders: dict[bytes, dict[SequenceKey, Prefix]] = {}
        self._seen: dict[bytes, SequenceKey] = {}
        self._numbers = itertools.count()
        self.hits = self.positions = 0
        """How often a prompt began as one before, and how many positions that saved."""

    @property
    def kv_bytes(self) -> int:
        """Of all prefixes, also of those that are being copied."""
        return sum(prefix.kv_bytes for prefix in self._prefixes.values())

    @property
    def nbytes(self) -> int:
        """KV caches and outputs."""
        return sum(prefix.nbytes for prefix in self._prefixes.values())

    # ---- use --------------------------------------------------------------------------------------------------

    def borrow(self, chain: Chain, beyond: int) -> Hit | None:
        """The longest beginning of a prompt that is held, if it reaches beyond position `beyond`. The prefix stays
        until it is given back."""
        prefix, chunks = self._find(chain.digests, beyond // self.chunk)
        if prefix is None:
            return None
        self._touch(prefix)
        self.hits += 1
        self.positions += chunks * self.chunk - beyond
        prefix.users += 1
        return Hit(prefix, chunks * self.chunk)

    def held(self, chain: Chain) -> tuple[bytes, int]:
        """The digest of the longest beginning of a prompt that is held, and its positions: 0, if none is."""
        _, chunks = self._find(chain.digests)
        return (chain.digests[chunks - 1] if chunks else b""), chunks * self.chunk

    def holds(self, digest: bytes) -> int:
        """Positions of the beginning that this digest stands for; 0: it is not held."""
        for prefix in self._holders.get(digest, {}).values():
            return (prefix.digests.index(digest) + 1) * self.chunk
        return 0

    def give_back(self, prefix: Prefix) -> None:
        """A copy is over, or will not be made."""
        prefix.users -= 1
        if prefix.key in self._prefixes:
            if not (prefix.ready or prefix.users):
                self._drop(prefix)
        elif not prefix.users:
            self._free(prefix.key)

    def _find(self, digests: Sequence[bytes], beyond: int = 0) -> tuple[Prefix | None, int]:
        """A prefix that holds most of these chunks, at least one more than `beyond`, and how many it holds."""
        for count in range(len(digests), beyond, -1):
            for prefix in self._holders.get(digests[count - 1], {}).values():
                return prefix, count
        return None, 0

    def _touch(self, prefix: Prefix) -> None:
        self._prefixes[prefix.key] = self._prefixes.pop(prefix.key)

    # ---- keeping ----------------------------------------------------------------------------------------------

    def begin(
        self, who: SequenceKey, chain: Chain, outputs: RowLog, cost: Callable[[int], int], room: int
    ) -> Prefix | None:
        """A prefix of `who`'s prompt, to be filled by a copy of its KV cache; None: there is nothing to be kept.

        `outputs`: from position 0 on; `cost`: bytes of KV cache for so many positions; `room`: bytes that all
        prefixes together may take. Then comes `finish` when it is filled, and in any case `give_back`.
        """
        prefix, held = self._find(chain.digests)
        if prefix is not None:
            self._touch(prefix)
        whole = prefix is not None and held == len(prefix.digests)
        chunks = self._worth(who, chain.digests, 0 if whole else held)
        size = lambda chunks: cost(chunks * self.chunk) + chunks * self.chunk * outputs.row_bytes  # noqa: E731
        chunks = bisect.bisect_right(range(chunks + 1), room, key=size) - 1
        if chunks <= held:
            return None
        length, key = chunks * self.chunk, (OWNER, next(self._numbers))
        prefix = Prefix(key, tuple(chain.digests[:chunks]), outputs.fork(length), cost(length))
        self.shrink(room - prefix.nbytes)
        self._prefixes[key] = prefix
        return prefix

    def _worth(self, who: SequenceKey, digests: Sequence[bytes], held: int) -> int:
        """How many chunks are worth a prefix of their own, where another has `held` of them and goes on otherwise."""
        if 2 * held < len(digests):
            return len(digests)
        twice = 0
        for count, digest in enumerate(digests[held:], held + 1):
            if self._seen.setdefault(digest, who) != who:
                twice = count
        while len(self._seen) > MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        return twice

    def finish(self, prefix: Prefix) -> None:
        """The KV cache is there: from now on it can be found, and one that it goes on from is not needed any more."""
        if prefix.key not in self._prefixes:
            return
        held, count = self._find(prefix.digests)
        if count == len(prefix.digests):
            # Somebody else was faster.
            self._drop(prefix)
            return
        prefix.ready = True
        for digest in prefix.digests:
            self._holders.setdefault(digest, {})[prefix.key] = prefix
        if held is not None and count == len(held.digests):
            self._drop(held)

    # ---- letting go -------------------------------------------------------------------------------------------

    def shrink(self, limit: int) -> None:
        """Let go of the least recently used until all together take at most `limit` bytes."""
        excess = self.nbytes - max(limit, 0)
        for prefix in list(self._prefixes.values()):
            if excess <= 0:
                return
            excess -= prefix.nbytes
            self._drop(prefix)

    def clear(self) -> None:
        """Let go of everything."""
        self.shrink(0)
        self._seen.clear()

    def _drop(self, prefix: Prefix) -> None:
        del self._prefixes[prefix.key]
        for digest in prefix.digests if prefix.ready else ():
            holders = self._holders[digest]
            del holders[prefix.key]
            if not holders:
                del self._holders[digest]
        if not prefix.users:
            self._free(prefix.key)


def split(
    rows: Sequence[pb.Rows], hidden: memoryview, hits: Mapping[int, Hit], row_bytes: int
) -> tuple[list[pb.Rows], list[pb.Rows], memoryview]:
    """The rows of a step that hits cover, those that remain to be computed, and the hidden states of these."""
    covered, rest, pieces, begin = [], [], [], 0
    for row in rows:
        end = begin + row.count * row_bytes
        known = max(hits[row.sequence].length - row.start, 0) if row.sequence in hits else 0
        left = row.count - known
        if known:
            want = max(row.want - left, 0)
            covered.append(pb.Rows(sequence=row.sequence, start=row.start, count=known, want=want))
        if left:
            want = min(row.want, left)
            rest.append(pb.Rows(sequence=row.sequence, start=row.start + known, count=left, want=want))
            pieces.append(hidden[begin + known * row_bytes : end])
        begin = end
    return covered, rest, pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
