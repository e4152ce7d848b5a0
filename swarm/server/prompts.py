"""A session's prompts: which of them begin as one before, and what is kept of them for those to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from swarm.jobs import Change, Kind
from swarm.server.budget import CacheBudget
from swarm.server.ledger import Ledger
from swarm.server.prefixes import Chain, Chains, Hit, Prefix, PrefixCache, split
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

    def keep(self, found: Found, rows: Sequence[pb.Rows]) -> list[Kept]:
        """What of the prompts that were followed is to be kept, now that these rows of them are computed."""
        offers = [self._offer(row, found.chains[row.sequence]) for row in rows if row.sequence in found.chains]
        return [self._kept(key, prefix) for key, prefix in filter(None, offers)]

    def _offer(self, row: pb.Rows, chain: Chain) -> tuple[tuple[bytes, int], Prefix] | None:
        """A prefix of what has been computed of a prompt, when nothing more of it is on its way."""
        sequence, ledger = row.sequence, self._ledger
        # The copy is made after whatever is queued by now: nothing of that may change what is under this id.
        idle = self._chains[sequence] is chain and ledger.received.get(sequence) == row.start + row.count
        history = ledger.history[sequence]
        if not idle or history.first or chain.offered == len(chain.digests):
            return None
        chain.offered = len(chain.digests)
        key = (self._id, sequence)
        prefix = self._prefixes.begin(key, chain, history, ledger.cost, self._budget.prefix_room)
        return None if prefix is None else (key, prefix)

    def _kept(self, key: tuple[bytes, int], prefix: Prefix) -> Kept:
        copy = Change(Kind.FORK, key, prefix.key, prefix.outputs.last)
        return Kept(copy, lambda: self._prefixes.finish(prefix), lambda: self._prefixes.give_back(prefix))
