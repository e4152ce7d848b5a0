"""An account: a key, its book of receipts, and what others have earned with it.

One key for all processes of a user on one machine, servers and clients alike; not the key of any of their peers. A key
that is used with two books would sign two links with one number.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from swarm.accounting.book import Book, read_proof
from swarm.accounting.chain import End, Pair, drafted
from swarm.accounting.entries import digest_of, read_entry, sign_accounting, sign_entry, sign_head
from swarm.accounting.flow import Debts, Flows, credit, debts
from swarm.accounting.weight import ANONYMOUS, HIGHEST, UNIT, weight
from swarm.errors import BookFailed, InvalidInput, MalformedFrame
from swarm.net.identity import Identity, name_of
from swarm.types import PeerId
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import require

log = logging.getLogger(__name__)

T = TypeVar("T")

KEY_FILE, BOOK_FILE = "account.key", "receipts.sqlite"
FRESH = 10.0
"""Seconds for which weights are those of the same debts."""


@dataclasses.dataclass(frozen=True, slots=True)
class AccountStatistics:
    """Work given to others and taken from them, of all time; `cheats`: accounts that were found to cheat; `refused`:
    receipts of others that were not taken, by this process."""

    given: int
    taken: int
    cheats: int
    refused: int


class Account:
    """What is done for others and by them in the name of `identity`. `unit`: see `weight`; `now`: unix seconds.

    Reading and writing happen in threads; the methods that wait belong to the event loop.
    """

    def __init__(
        self, identity: Identity, book: Book, *, unit: int = UNIT, now: Callable[[], float] = time.time
    ) -> None:
        self.key = identity.key
        self.book = book
        self.refused: Counter[str] = Counter()
        self._identity = identity
        self._unit = unit
        self._now = now
        self._standing: tuple[Flows, Debts] | None = None
        self._stood_at = float("-inf")

    @classmethod
    def open(cls, folder: Path) -> Account:
        """That of a folder, made where there is none. Raises InvalidInput, BookFailed."""
        return cls(Identity.load_or_create(folder / KEY_FILE), Book(folder / BOOK_FILE))

    def __str__(self) -> str:
        return name_of(self.key)

    def close(self) -> None:
        """Let go of the book."""
        self.book.close()

    def speaks(self, session: bytes, me: PeerId, other: PeerId, parameters: int = 0) -> pb.Accounting:
        """That peer `me` speaks for this account in a session."""
        message = sign_accounting(self._identity, session, me, other)
        message.parameters = parameters
        return message

    def head(self, peer: PeerId) -> pb.Head:
        """The end of its chain, to be announced by `peer`. Raises BookFailed."""
        end = self.book.end(self.key)
        return sign_head(
            self._identity, pb.Head(number=end.number, digest=end.digest, given=end.given, taken=end.taken), peer
        )

    def statistics(self) -> AccountStatistics:
        """As of now. Raises BookFailed."""
        end = self.book.end(self.key)
        return AccountStatistics(end.given, end.taken, len(self.book.proofs()), self.refused.total())

    # ---- signing ----------------------------------------------------------------------------------------------

    async def take(self, other: bytes, work: int, session: bytes) -> pb.Entry:
        """Sign that so much was taken from `other`. Raises BookFailed."""

        def sign(end: End, pair: Pair) -> pb.Entry:
            return self._signed(drafted(end, pair, other, work, session))

        return await self._write(functools.partial(self.book.append, self.key, other, sign))

    async def answer(self, taken: pb.Entry) -> pb.Entry:
        """Keep what another has signed for, which was checked to be one's own, and sign that it was given.

        A receipt of which the answer, or which itself, never came is made up for by the next. Raises MalformedFrame
        where this account has not done what it says, or it contradicts what it said before; BookFailed.
        """
        try:
            return await self._write(functools.partial(self._answer, taken))
        except MalformedFrame as error:
            self.refused[str(error)] += 1
            raise

    def _answer(self, taken: pb.Entry) -> pb.Entry:
        other = taken.account
        mine = self.book.pair(self.key, other)
        require(taken.pair_given <= mine.taken, "it has not given so much as it says")

        def sign(end: End, pair: Pair) -> pb.Entry:
            work = max(taken.pair_taken - pair.given, 0)
            return self._signed(drafted(end, pair, other, work, taken.session, answers=digest_of(taken)))

        answer = self.book.answer(self.key, taken, sign)
        if answer is None:
            raise MalformedFrame("it has signed what contradicts this")
        return answer

    async def answered(self, taken: pb.Entry, given: pb.Entry) -> None:
        """Keep the answer to what this account has signed. Raises MalformedFrame where it is none, BookFailed."""
        require(given.account == taken.other and given.other == taken.account, "a receipt of somebody else")
        require(given.gives and given.answers == digest_of(taken), "an answer to something else")
        pair = await self._write(functools.partial(self.book.pair, self.key, given.account))
        require(given.pair_given <= pair.taken, "it has not given so much as it says")
        await self.learn([given])

    def _signed(self, entry: pb.Entry) -> pb.Entry:
        entry.time = max(int(self._now()), 0)
        return sign_entry(self._identity, entry)

    # ---- what others show -------------------------------------------------------------------------------------

    async def learn(self, entries: Sequence[pb.Entry]) -> None:
        """Keep links that others have signed, and that were checked. Raises BookFailed."""
        await self._write(functools.partial(self.book.add, entries))
        self._stood_at = float("-inf")

    async def convinced(self, shown: Sequence[bytes]) -> None:
        """Keep proofs, two links each, that prove something against accounts that are known here. Raises
        MalformedFrame, BookFailed."""
        require(len(shown) % 2 == 0, "a proof is two links")
        for one, two in zip(shown[::2], shown[1::2], strict=True):
            proof = await asyncio.to_thread(read_proof, one, two)
            if proof is not None and await self._write(functools.partial(self.book.knows, proof[0].account)):
                await self.learn(proof)

    # ---- what it buys -----------------------------------------------------------------------------------------

    async def weight_of(self, account: bytes) -> float:
        """Its share of a busy server: 1, as of anybody, to 8. Raises BookFailed."""
        if account == self.key:
            return HIGHEST
        now = asyncio.get_running_loop().time()
        if self._standing is None or now - self._stood_at > FRESH:
            self._standing, self._stood_at = await self._write(self._stand), now
        flows, mine = self._standing
        found = weight(credit(flows, mine, account), self._unit)
        return ANONYMOUS if await self._write(functools.partial(self.book.cheats, account)) else found

    def credit_of(self, account: bytes) -> int:
        """What it may still have for what it has done. Raises BookFailed."""
        return credit(*self._stand(), account)

    async def creditors(self, most: int) -> list[bytes]:
        """Whom this account owes, those most whom it owes most. Raises BookFailed."""
        _, mine = await self._write(self._stand)
        return sorted(mine.left, key=lambda each: -mine.left[each])[:most]

    def _stand(self) -> tuple[Flows, Debts]:
        flows = self.book.flows()
        met = {each for pair in flows if self.key in pair for each in pair}
        return flows, debts(self.key, flows, met)

    @staticmethod
    async def _write(work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)


def account_of(folder: str | None) -> Account | None:
    """The account of a folder; None where there is to be none, or it cannot be used, which is logged."""
    if folder is None:
        return None
    try:
        return Account.open(Path(folder))
    except (BookFailed, InvalidInput) as error:
        log.warning("nothing is accounted: %s", error)
        return None


def checked(shown: Iterable[bytes]) -> list[pb.Entry]:
    """Links out of bytes that anybody showed. Raises MalformedFrame."""
    return [read_entry(each) for each in shown]
