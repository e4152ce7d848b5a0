"""Receipts on request: what this peer answers to everybody, and what it asks of others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable

from swarm.accounting.account import Account, checked
from swarm.accounting.entries import KEY_BYTES, MOST_BYTES
from swarm.errors import BookFailed, SwarmError
from swarm.net.base import Host, Stream
from swarm.types import PeerId
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import require

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds for a question, and for its answer."""
REQUEST = 4096
MOST_LINKS = 256
"""In one answer."""
MOST_OTHERS = 64
"""Of whom one asks at a time."""
REPLY = MOST_LINKS * (MOST_BYTES + 8)
AGAIN = 60.0
"""Seconds until somebody is asked again who his friends are."""
MOST_ASKED = 4096
"""Of whom it is known when they were asked."""


async def serve_receipts(host: Host, account: Account) -> None:
    """Answer what comes in over `host`."""

    async def answer(stream: Stream) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                request = messages.decode(pb.ReceiptsRequest, await stream.receive(REQUEST))
                reply = await asyncio.to_thread(answer_of, account, request)
                await stream.send(reply.SerializeToString())
        except TimeoutError:
            return
        except BookFailed as error:
            log.warning("no receipts are shown: %s", error)

    await host.serve(messages.RECEIPTS_PROTOCOL, answer)


def answer_of(account: Account, request: pb.ReceiptsRequest) -> pb.ReceiptsReply:
    """What a request is answered with. Raises MalformedFrame, BookFailed."""
    book = account.book
    match request.WhichOneof("kind"):
        case "between":
            one, others = request.between.account, request.between.others
            require(len(others) <= MOST_OTHERS, "so many are not told of at a time")
            require(all(len(each) == KEY_BYTES for each in (one, *others)), "this is no account")
            found = [book.last(*pair) for other in others for pair in ((one, other), (other, one))]
            return pb.ReceiptsReply(entries=[each for each in found if each is not None])
        case "links":
            whose = request.links.account or account.key
            return pb.ReceiptsReply(entries=book.links(whose, request.links.first, MOST_LINKS))
        case _:
            proofs = book.proofs(MOST_LINKS // 2)
            return pb.ReceiptsReply(entries=[each for proof in proofs for each in proof])


async def ask(host: Host, peer: PeerId, request: pb.ReceiptsRequest) -> list[bytes]:
    """What a peer answers, not checked yet. Raises SwarmError, TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        stream = await host.open_stream(peer, messages.RECEIPTS_PROTOCOL)
        try:
            await stream.send(request.SerializeToString())
            reply = messages.decode(pb.ReceiptsReply, await stream.receive(REPLY))
            require(len(reply.entries) <= MOST_LINKS, "more links than anybody asks for")
            return list(reply.entries)
        finally:
            stream.close()


def of_friends(links: Iterable[pb.Entry], payer: bytes, others: Collection[bytes]) -> list[pb.Entry]:
    """What others admit to have of `payer`, and it of those: one each. Anybody can make up an account, and links of it;
    nobody can make up those of accounts that have done something here."""
    theirs = {link.account: link for link in links if link.account in others and link.other == payer and not link.gives}
    mine = {link.other: link for link in links if link.account == payer and link.other in theirs and not link.gives}
    return [*theirs.values(), *mine.values()]


class Friends:
    """Finds out what those who come have done for those whom this account owes."""

    def __init__(self, host: Host, account: Account) -> None:
        self._host = host
        self._account = account
        self._asked: dict[bytes, float] = {}

    async def meet(self, peer: PeerId, payer: bytes) -> None:
        """Ask a peer who speaks for `payer`, unless it was asked of late. What it does not tell is to its own harm."""
        now = asyncio.get_running_loop().time()
        if now - self._asked.pop(payer, float("-inf")) < AGAIN:
            return
        self._asked[payer] = now
        while len(self._asked) > MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        try:
            others = [each for each in await self._account.creditors(MOST_OTHERS) if each != payer]
            if not others:
                return
            request = pb.ReceiptsRequest(between=pb.Between(account=payer, others=others))
            links = await asyncio.to_thread(checked, await ask(self._host, peer, request))
            await self._account.learn(of_friends(links, payer, others))
            shown = await ask(self._host, peer, pb.ReceiptsRequest(proven=pb.Proven()))
            await self._account.convinced(shown)
        except (SwarmError, TimeoutError) as error:
            log.debug("%s shows no receipts: %s", peer, error)
