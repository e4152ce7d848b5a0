"""A client's side of receipts: it signs for what a hop says that it has done, where that can be.

What can be is bounded by what the client has sent along the route itself; what it is not sure of it does not sign.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from swarm.accounting.account import Account
from swarm.accounting.entries import check_accounting, check_entry, digest_of
from swarm.accounting.work import DECODE_POSITIONS, QUARTERS, WINDOW, weighed
from swarm.errors import BookFailed, MalformedFrame, Unsigned
from swarm.types import Hop, PeerId, Span
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

SLACK = 1.25
"""By which what a hop says may be more than what was counted here: where it recognises the beginning of a prompt it
passes on two steps for one, and blocks are counted in more than one way."""


MOST_UNANSWERED = 16
"""Receipts of one session that the server may still answer."""


class Payer:
    """Signs for all sessions of a client on one model. `parameters`: of each block, where that is known."""

    def __init__(self, account: Account, parameters: Sequence[int] = ()) -> None:
        self.account = account
        self.usable = True
        """Whether what is signed can be kept; else nothing is, and servers do what they do for nobody."""
        self._parameters = parameters

    def most(self, span: Span) -> int | None:
        """Parameters that these blocks have at most; None: not known."""
        if len(self._parameters) < span.last:
            return None
        return int(SLACK * sum(self._parameters[block] for block in span))


class Paying:
    """Of one session `id` at `hop`."""

    def __init__(self, payer: Payer, me: PeerId, hop: Hop, id: bytes) -> None:
        self._payer = payer
        self._account = payer.account
        self._most = payer.most(hop.span)
        self._me = me
        self._hop = hop
        self._id = id
        self._payee: bytes | None = None
        self._parameters = 0
        self._quarters = 0
        self._signed = 0
        self._unanswered: dict[bytes, pb.Entry] = {}
        self._lock = asyncio.Lock()
        self._asked = False
        """Whether all was claimed that there is."""
        self._settled = asyncio.Event()

    # ---- what was asked of the hop ----------------------------------------------------------------------------

    def sent(self, steps: Iterable[pb.Step]) -> None:
        """These steps are to be computed."""
        for step in steps:
            for row in step.rows:
                split = QUARTERS * DECODE_POSITIONS if row.count > DECODE_POSITIONS else 0
                self._quarters += weighed(row.count) + split

    def again(self, positions: int) -> None:
        """So many positions are computed once more, in steps of any length."""
        self._quarters += QUARTERS * positions

    # ---- what is signed ---------------------------------------------------------------------------------------

    def ask(self, request: pb.Open) -> None:
        """Say on whose account it is."""
        request.accounting.CopyFrom(self._account.speaks(self._id, self._me, self._hop.peer_id))

    def opened(self, reply: pb.Opened) -> None:
        """Whether the server wants receipts. Raises MalformedFrame where it does not show for whom, or its blocks
        cannot have so many parameters."""
        if not reply.HasField("accounting"):
            return
        said = reply.accounting
        payee = check_accounting(said, self._id, self._hop.peer_id, self._me)
        if not said.parameters or (self._most is not None and said.parameters > self._most):
            raise MalformedFrame(f"{said.parameters} parameters are not those of blocks {self._hop.span}")
        self._payee, self._parameters = payee, said.parameters

    async def sign(self, claim: pb.Claim) -> pb.Entry | None:
        """What is answered to a claim; None: nothing. Raises Unsigned for one that cannot be right."""
        async with self._lock:
            if self._payee is None:
                return None
            entry = await self._entry(self._payee, claim)
            self._asked |= claim.settles
            self._look()
            return entry

    async def _entry(self, payee: bytes, claim: pb.Claim) -> pb.Entry | None:
        most = (SLACK * self._quarters + WINDOW // 2) * self._parameters / QUARTERS
        if claim.total > most:
            raise Unsigned(f"it says that it has done {claim.total / max(most, 1.0):.1f} times what can be")
        work = claim.total - self._signed
        if work <= 0:
            return None
        try:
            entry = await self._account.take(payee, work, self._id)
        except BookFailed as error:
            log.warning("what servers do is not signed for any more: %s", error)
            self._payer.usable = False
            raise Unsigned("what is signed cannot be kept") from error
        self._signed = claim.total
        self._unanswered[digest_of(entry)] = entry
        while len(self._unanswered) > MOST_UNANSWERED:
            del self._unanswered[next(iter(self._unanswered))]
        return entry

    async def answered(self, entry: pb.Entry) -> None:
        """The server has signed, too; what does not fit is not kept."""
        try:
            await asyncio.to_thread(check_entry, entry)
            taken = self._unanswered.get(entry.answers)
            if taken is not None:
                await self._account.answered(taken, entry)
                del self._unanswered[entry.answers]
        except (MalformedFrame, BookFailed) as error:
            log.info("a receipt of %s is not kept: %s", self._hop.peer_id, error)
        self._look()

    @property
    def unanswered(self) -> list[pb.Entry]:
        """Receipts that may not have come."""
        return list(self._unanswered.values())

    @property
    def owes(self) -> bool:
        """Whether there may be something to sign for before the session is closed."""
        return self._payee is not None and self._quarters > 0

    def _look(self) -> None:
        if self._asked and not self._unanswered:
            self._settled.set()

    async def settled(self) -> None:
        """Wait until all is claimed, as was asked, and signed by both."""
        await self._settled.wait()
