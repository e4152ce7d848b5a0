"""What one session of a client with an account is billed for, and what that buys: its place in the queue.

Half a window before it would be a whole one the client is asked to sign; where it does not, nothing more is computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from swarm.accounting.account import Account
from swarm.accounting.entries import check_entry, digest_of
from swarm.accounting.stream import Friends
from swarm.accounting.tab import Tab
from swarm.accounting.weight import ANONYMOUS
from swarm.accounting.work import SECONDS
from swarm.errors import BookFailed, MalformedFrame, Unsigned
from swarm.tasks import Tasks
from swarm.types import PeerId
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import require

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a client has to sign when it has had a whole window."""

MOST_ANSWERS = 16
"""To receipts of one session, that are told again where they got lost."""


class Receipts:
    """Of session `id`, in which peer `client` speaks for account `payer`, on blocks with so many `parameters`.

    `tell` puts a reply on the session's control stream; `tasks` own what runs in the background.
    """

    def __init__(
        self,
        account: Account,
        friends: Friends | None,
        payer: bytes,
        client: PeerId,
        id: bytes,
        parameters: int,
        tasks: Tasks,
        tell: Callable[[pb.ControlReply], None],
    ) -> None:
        self.payer = payer
        self.weight = ANONYMOUS
        self.parameters = parameters
        self.tab = Tab(parameters)
        self._account = account
        self._friends = friends
        self._client = client
        self._id = id
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._signed = asyncio.Event()
        self._answers: dict[bytes, pb.Entry] = {}
        tasks.spawn(self._begin(), name="what an account is worth")

    @property
    def is_own(self) -> bool:
        """Whether client and server are of one account: then there is nothing to sign."""
        return self.payer == self._account.key

    def greeting(self, me: PeerId) -> pb.Accounting | None:
        """What the client is told; None: nothing is to be signed."""
        if self.is_own:
            return None
        return self._account.speaks(self._id, me, self._client, self.parameters)

    async def _begin(self) -> None:
        await self._weigh()
        if self._friends is not None and not self.is_own:
            await self._friends.meet(self._client, self.payer)
            await self._weigh()

    async def _weigh(self) -> None:
        with contextlib.suppress(BookFailed):
            self.weight = await self._account.weight_of(self.payer)

    # ---- the bill ---------------------------------------------------------------------------------------------

    def worked(self, counts: Sequence[int]) -> None:
        """A step of so many positions of each sequence was computed."""
        if self.is_own:
            return
        self.tab.add(counts)
        if self.tab.is_due:
            self.claim()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SECONDS, self.claim)

    def claim(self, *, settles: bool = False) -> None:
        """Ask to be signed for all that was done. `settles`: the client has asked what that is."""
        self._stop()
        total, signed = self.tab.claim()
        self._tell(pb.ControlReply(claim=pb.Claim(total=total, signed=signed, settles=settles)))

    def remind(self) -> None:
        """There is a new control stream: what was said on the last one may not have come."""
        if self.tab.claimed > self.tab.signed:
            self.claim()

    async def room(self) -> None:
        """Wait until more may be done. Raises Unsigned."""
        while self.tab.is_full and not self.is_own:
            self._signed.clear()
            if self.tab.is_open:
                self.claim()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._signed.wait()
            except TimeoutError:
                raise Unsigned(f"what was done on this account is not signed for, after {PATIENCE:.0f} s") from None

    async def take(self, entry: pb.Entry) -> None:
        """The client signs. Raises Unsigned where it signs something else."""
        try:
            await self._answer(entry)
        except BookFailed as error:
            # Our own trouble: what is lost is ours, and the client is served on.
            log.warning("a receipt is not kept: %s", error)
            self._take(entry.work)
        except MalformedFrame as error:
            log.info("a receipt of %s is refused: %s", self._client, error)
            raise Unsigned(f"this receipt is no good: {error}") from error

    async def _answer(self, entry: pb.Entry) -> None:
        require(entry.account == self.payer and entry.other == self._account.key, "a receipt of other accounts")
        require(entry.session == self._id and not entry.gives, "a receipt of another session")
        digest = digest_of(entry)
        if digest in self._answers:
            self._tell(pb.ControlReply(receipt=self._answers[digest]))
            return
        require(entry.work > 0 and self.tab.awaited > 0, "a receipt that nobody has asked for")
        await asyncio.to_thread(check_entry, entry)
        answer = await self._account.answer(entry)
        self._answers[digest] = answer
        while len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._take(entry.work)
        self._tell(pb.ControlReply(receipt=answer))
        await self._weigh()

    def _take(self, work: int) -> None:
        self.tab.sign(work)
        self._signed.set()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def close(self) -> None:
        """The session is over."""
        self._stop()
