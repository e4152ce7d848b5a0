"""A session's prompts: which of them begin as one before, and what is kept of them for those to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from swarm.jobs import Change, Kind
from swarm.server.budget import CacheBudget
from swarm.server.ledger import Ledger
from swarm.server.prefixes import Chain, Chains, Hit, Prefix, PrefixCache, split
from swarm.types import SequenceKey
from swarm.wire import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class Found:
    """Of new rows, which are followed (`chains`, by sequence), and what the prefix cache has of them (`hits`)."""

    chains: Mapping[int, Chain] = field(default_factory=dict)
    hits: Mapping[int, Hit] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adopted:
    """Rows that need not be computed: copies of KV cache to be made, and the outputs. `over` is called when the copies
    are made, or never will be."""

    rows: Sequence[pb.Rows]
    copies: Sequence[Change]
    output: bytes
    over: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is to be kept of a prompt: a copy to be made; then `done` and, in any case, `over`."""

    copy: Change
    done: Callable[[], None]
    over: Callable[[], None]


class Prompts:
    """The prompts of the session `id`, and the prefix cache that it shares. `enabled`: whether any are looked at."""

    def __init__(
        self, id: bytes, chains: Chains, prefixes: PrefixCache, budget: CacheBudget, ledger: Ledger, *, enabled: bool
    ) -> None:
        self._id = id
        self._chains = chains
        self._prefixes = prefixes
        self._budget = budget
        self._ledger = ledger
        self._enabled = enabled

    def clear(self) -> None:
        """Follow none of them any more."""
        self._chains.clear()

    def follow(self, operations: Sequence[pb.Operation], rows: Sequence[pb.Rows], hidden: memoryview) -> Found:
        """Go on with what a step brings. What is found in the cache stays there until it is adopted and over."""
        self._chains.operate(operations)
        if not self._enabled:
            return Found()
        chains, hits = self._chains.follow(rows, hidden), {}
        for row in rows:
            chain = chains.get(row.sequence)
            hit = self._prefixes.borrow(chain, row.start) if chain is not None else None
            if hit is not None:
                hits[row.sequence] = hit
        return Found(chains, hits)

    def adopt(
        self, found: Found, rows: Sequence[pb.Rows], hidden: memoryview
    ) -> tuple[Adopted, Sequence[pb.Rows], memoryview]:
        """What the cache has of rows, those that remain to be computed, and the hidden states of these."""
        hits = found.hits
        covered, rest, hidden = split(rows, hidden, hits, self._ledger.row_bytes)
        reads = (hits[row.sequence].prefix.outputs.read(row.start, row.start + row.count) for row in covered)
        copies = [Change(Kind.FORK, hit.prefix.key, (self._id, seq), hit.length) for seq, hit in hits.items()]

        def over() -> None:
            for hit in hits.values():
                self._prefixes.give_back(hit.prefix)

        return Adopted(covered, copies, b"".join(reads), over), rest, hidden

    def keep(self, found: Found, rows: Sequence[pb.Rows]) -> tuple[list[Kept], list[pb.Kept]]:
        """What of the prompts that were followed is to be kept, now that these rows of them are computed; and what
        their client may be told of that, and of what is kept already."""
        keeps, told = [], []
        for row in rows:
            if row.sequence in found.chains and self._may_offer(row, found.chains[row.sequence]):
                digest, positions = self._prefixes.held(found.chains[row.sequence])
                key, prefix = self._offer(row, found.chains[row.sequence])
                if prefix is not None:
                    keeps.append(self._kept(key, prefix))
                    digest, positions = prefix.digests[-1], prefix.outputs.last
                if positions:
                    told.append(pb.Kept(sequence=row.sequence, positions=positions, digest=digest))
        return keeps, told

    def _may_offer(self, row: pb.Rows, chain: Chain) -> bool:
        """Whether nothing more of a prompt is on its way, and there is more than at the last look."""
        sequence, ledger = row.sequence, self._ledger
        # The copy is made after whatever is queued by now: nothing of that may change what is under this id.
        idle = self._chains[sequence] is chain and ledger.received.get(sequence) == row.start + row.count
        return idle and not ledger.history[sequence].first and chain.offered != len(chain.digests)

    def _offer(self, row: pb.Rows, chain: Chain) -> tuple[SequenceKey, Prefix | None]:
        """A prefix of what has been computed of a prompt, if it is worth one."""
        chain.offered = len(chain.digests)
        key, ledger = (self._id, row.sequence), self._ledger
        history = ledger.history[row.sequence]
        return key, self._prefixes.begin(key, chain, history, ledger.cost, self._budget.prefix_room)

    def _kept(self, key: SequenceKey, prefix: Prefix) -> Kept:
        copy = Change(Kind.FORK, key, prefix.key, prefix.outputs.last)
        return Kept(copy, lambda: self._prefixes.finish(prefix), lambda: self._prefixes.give_back(prefix))
