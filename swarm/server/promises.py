"""What a session has sent, signed window by window, where its client wants that.

Kept by what was computed and not by what was accepted: what is never computed is never promised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from swarm.contract import Contract
from swarm.net.commitments import sign
from swarm.server.manifest import Changes
from swarm.wire import merkle
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import DIGEST, contract_message
from swarm.wire.promises import beginning, extended, leaf, row_digest
from swarm.wire.rows import Buffer, RowLog

if TYPE_CHECKING:
    from swarm.net.identity import Identity

WINDOW = 64
"""Positions sent after which a window is signed ..."""
WINDOW_SECONDS = 5.0
"""... or so long after its first."""

Chains = Mapping[tuple[int, int], bytes]
"""By sequence and position: the hashes of all inputs up to there, or of that one."""
NO_CHAINS: Chains = {}


class Promises:
    """Of one session. `contract`: on its span; `tell` hears of each window that is signed."""

    def __init__(
        self, identity: Identity, session: bytes, contract: Contract, tell: Callable[[pb.Commitment], None]
    ) -> None:
        self._identity = identity
        self._session = session
        self._contract = contract_message(contract)
        self._row_bytes = contract.row_bytes
        self._tell = tell
        self._trails: dict[int, RowLog] = {}
        self._leaves: list[bytes] = []
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    # ---- what came in -----------------------------------------------------------------------------------------

    def taken(self, rows: Iterable[pb.Rows], hidden: memoryview) -> Chains:
        """The hash of each input."""
        found, begin, size = {}, 0, self._row_bytes
        for row in rows:
            for position in range(row.start, row.start + row.count):
                found[row.sequence, position] = row_digest(hidden[begin : begin + size])
                begin += size
        return found

    def computed(self, operations: Iterable[pb.Operation], rows: Sequence[pb.Rows], taken: Chains) -> Chains:
        """These are done. Returns the chains up to each position of the rows."""
        self._operate(operations)
        for row in rows:
            trail = self._trails.setdefault(row.sequence, RowLog(DIGEST))
            if trail.last != row.start:
                # Of a sequence of which not all is known nothing is promised.
                del self._trails[row.sequence]
                continue
            chain = trail.read(row.start - 1, row.start) if row.start else beginning(self._session)
            chains = []
            for position in range(row.start, row.start + row.count):
                chain = extended(chain, taken[row.sequence, position])
                chains.append(chain)
            trail.append(b"".join(chains))
        return self.chains(rows)

    def chains(self, rows: Iterable[pb.Rows]) -> Chains:
        """Of what is held of these."""
        found = {}
        for row in rows:
            trail = self._trails.get(row.sequence)
            if trail is None or not trail.first <= row.start <= row.start + row.count <= trail.last:
                continue
            read = trail.read(row.start, row.start + row.count)
            for index in range(row.count):
                found[row.sequence, row.start + index] = read[index * DIGEST : (index + 1) * DIGEST]
        return found

    def change(self, changes: Changes) -> None:
        """The sequences were changed."""
        self._operate(changes.operations)
        for sequence, length in changes.truncations:
            if sequence in self._trails:
                self._trails[sequence].truncate(length)

    def _operate(self, operations: Iterable[pb.Operation]) -> None:
        for operation in operations:
            source = self._trails.get(operation.source)
            if operation.kind != pb.Operation.FREE:
                if source is not None:
                    self._trails[operation.target] = source.fork(operation.length)
                else:
                    self._trails.pop(operation.target, None)
            if operation.kind != pb.Operation.FORK:
                self._trails.pop(operation.source, None)

    def forget(self) -> None:
        """Nothing is held any more."""
        self._trails.clear()

    # ---- what went out ----------------------------------------------------------------------------------------

    def gave(self, rows: Iterable[pb.Rows], hidden: Buffer, chains: Chains) -> None:
        """These outputs were sent, as they are."""
        view, begin, size = memoryview(hidden), 0, self._row_bytes
        for row in rows:
            for position in range(row.start, row.start + row.count):
                chain = chains.get((row.sequence, position))
                if chain is not None:
                    self._leaves.append(leaf(self._session, position, chain, view[begin : begin + size]))
                begin += size
        if len(self._leaves) >= WINDOW:
            self.close()
        elif self._leaves and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WINDOW_SECONDS, self.close)

    def close(self) -> None:
        """Sign the window that is open, if anything is in it."""
        self.end()
        if not self._leaves:
            return
        promise = pb.Promise(
            session=self._session,
            number=self._number,
            contract=self._contract,
            leaves=len(self._leaves),
            root=merkle.root(self._leaves),
            time=time.time(),
        )
        self._leaves = []
        self._number += 1
        self._tell(sign(self._identity, promise))

    def end(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
