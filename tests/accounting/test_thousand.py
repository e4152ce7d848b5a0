"""A thousand accounts that compute for each other, one in ten a cheat: what honest ones know is what happened."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from swarm.accounting.account import Account, checked
from swarm.accounting.book import Book
from swarm.accounting.chain import End, Pair, drafted
from swarm.accounting.entries import bytes_of, check_entry, read_entry, sign_entry
from swarm.accounting.flow import credit, debts, owed
from swarm.errors import MalformedFrame
from swarm.net.identity import Identity
from swarm.testing.clock import run
from swarm.wire import swarm_pb2 as pb

SESSION = bytes(16)
WINDOW = 64
KINDS = ("double", "false totals", "refuses", "ring", "boasts")


@dataclass(eq=False)
class Someone:
    """One account. `kind`: honest, or how it cheats; `ring`: with whom it colludes."""

    kind: str
    identity: Identity
    account: Account
    ring: list[Someone] = field(default_factory=list)
    copy: Account | None = None

    @property
    def key(self) -> bytes:
        return self.identity.key


def crowd(peers: int, rng: random.Random) -> list[Someone]:
    found = []
    for number in range(peers):
        kind = rng.choice(KINDS) if number % 10 == 0 else "honest"
        identity = Identity(hashlib.sha256(f"peer {number}".encode()).digest())
        found.append(Someone(kind, identity, Account(identity, Book(), now=lambda: 5.0)))
    ring = [one for one in found if one.kind == "ring"]
    for one in found:
        one.ring = ring if one.kind == "ring" else []
        if one.kind == "double":
            # The same key with a second book, used for every other window.
            one.copy = Account(one.identity, Book(), now=lambda: 5.0)
    return found


class Swarm:
    """What really happened, (giver, taker) → work that was done and signed for; and what was done and was not."""

    def __init__(self, peers: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.peers = crowd(peers, self.rng)
        self.truth: Counter[tuple[bytes, bytes]] = Counter()
        self.lost: Counter[tuple[bytes, bytes]] = Counter()
        self.refused: Counter[str] = Counter()
        self.barred: set[tuple[bytes, bytes]] = set()

    async def window(self, giver: Someone, taker: Someone) -> None:
        """`giver` computes a window for `taker`, who signs in its way; one in fifty is lost by a crash of either."""
        pair = giver.key, taker.key
        if pair in self.barred:
            return
        if taker.kind == "refuses":
            # Served up to a window, once: the session ends.
            self.barred.add(pair)
            self.refused[taker.kind] += 1
            return
        try:
            taken = await self._taken(giver, taker)
            self.truth[pair] += WINDOW
            if self.rng.random() < 0.02:
                self.lost[pair] += 1
                return
            answer = check_entry(await giver.account.answer(check_entry(taken)))
            if taker.kind == "honest":
                await taker.account.answered(taken, answer)
            self.lost[pair] = 0
        except MalformedFrame:
            self.refused[taker.kind] += 1
            self.barred.add(pair)
            self.lost[pair] += 1

    async def _taken(self, giver: Someone, taker: Someone) -> pb.Entry:
        account = taker.account
        if taker.copy is not None and self.rng.random() < 0.5:
            account = taker.copy
        if taker.kind in ("false totals", "boasts") and self.rng.random() < 0.5:
            return self._forged(giver, taker)
        return await account.take(giver.key, WINDOW, SESSION)

    def _forged(self, giver: Someone, taker: Someone) -> pb.Entry:
        """A link that says that it took less than it did, or has given what it has not."""

        def sign(end: End, pair: Pair) -> pb.Entry:
            if taker.kind == "boasts":
                end, pair = End(end.number, end.digest, end.given + 10**6, end.taken), Pair(10**6, pair.taken)
            else:
                end, pair = End(end.number, end.digest, end.given, 0), Pair(pair.given, 0)
            return sign_entry(taker.identity, drafted(end, pair, giver.key, WINDOW, SESSION))

        return taker.account.book.append(taker.key, giver.key, sign)

    async def collude(self) -> None:
        """The ring signs for itself what nobody has done."""
        for one in self.peers:
            for other in one.ring[:3]:
                if one is not other:
                    taken = await one.account.take(other.key, 10**9, SESSION)
                    await other.account.answer(taken)

    async def gossip(self, asker: Someone, friends: int) -> None:
        """`asker` is shown, as a server that asks, what others have taken of those whom it owes, and proofs."""
        creditors = set(await asker.account.creditors(64))
        for other in self.rng.sample(self.peers, friends):
            book = other.account.book
            shown = [book.last(*pair) for k in creditors for pair in ((k, other.key), (other.key, k))]
            await asker.account.learn(checked(each for each in shown if each is not None))
            await asker.account.convinced([each for proof in book.proofs() for each in proof])


async def happened(peers: int, windows: int, seed: int) -> Swarm:
    swarm = Swarm(peers, seed)
    honest = [one for one in swarm.peers if one.kind == "honest"]
    # Most have a few they meet again and again, as routes do.
    near = {one: swarm.rng.sample(swarm.peers, 8) for one in honest}
    for _ in range(windows):
        one = swarm.rng.choice(honest)
        other = swarm.rng.choice(near[one])
        if one is other:
            continue
        giver, taker = (one, other) if swarm.rng.random() < 0.5 or other.kind == "refuses" else (other, one)
        await swarm.window(giver, taker)
    await swarm.collude()
    return swarm


def check_balances(swarm: Swarm) -> None:
    """What two honest accounts know of each other is what happened, to the windows of which the receipt was lost."""
    by_key = {one.key: one for one in swarm.peers}
    checked_pairs = 0
    for (giver, taker), work in swarm.truth.items():
        one, other = by_key[giver], by_key[taker]
        if one.kind != "honest" or other.kind != "honest":
            continue
        assert other.account.book.pair(taker, giver).taken == work
        assert one.account.book.pair(giver, taker).given == work - WINDOW * swarm.lost[giver, taker]
        checked_pairs += 1
    assert checked_pairs > 50
    for one in swarm.peers:
        if one.kind == "honest":
            accused = {pb.Entry.FromString(first).account for first, _ in one.account.book.proofs()}
            assert all(by_key[key].kind in ("double", "false totals", "boasts") for key in accused)


def check_cheats(swarm: Swarm, asker: Someone) -> None:
    """Nobody, and no ring, has more credit at an honest account than was really done for it, or for those it owes."""
    flows = asker.account.book.flows()
    mine = debts(asker.key, flows, [one.key for one in swarm.peers])
    ring = [one.key for one in swarm.peers if one.kind == "ring"]
    for one in swarm.peers:
        if one.kind == "honest":
            continue
        found = credit(flows, mine, one.key)
        if one.kind in ("ring",):
            done = sum(swarm.truth[key, asker.key] for key in ring)
        elif asker.account.book.cheats(one.key):
            assert one.key not in {key for pair in flows for key in pair}
            continue
        else:
            direct = swarm.truth[one.key, asker.key]
            through = sum(min(mine.left[k], swarm.truth[one.key, k]) for k in mine.left if k != one.key)
            done = direct + through
        honest_friends = sum(min(mine.left[k], owed(flows, k, one.key)) for k in mine.left if k not in ring)
        assert found <= done + (honest_friends if one.kind == "ring" else 0)


@pytest.mark.parametrize("peers", [120, pytest.param(1000, marks=pytest.mark.soak)])
def test_honest_accounts_know_what_happened_and_no_cheat_has_more_than_it_gave(peers: int) -> None:
    async def go() -> None:
        swarm = await happened(peers, 8 * peers, seed=7)
        check_balances(swarm)
        honest = [one for one in swarm.peers if one.kind == "honest"]
        for asker in swarm.rng.sample(honest, min(15, len(honest))):
            await swarm.gossip(asker, 20)
            check_cheats(swarm, asker)
        for one in swarm.peers:
            one.account.close()

    run(go())


def test_doubles_are_found_by_whoever_meets_two_that_were_cheated() -> None:
    async def go() -> None:
        swarm = Swarm(40, seed=3)
        cheat = next(one for one in swarm.peers if one.kind != "honest")
        cheat.kind, cheat.copy = "double", Account(cheat.identity, Book(), now=lambda: 5.0)
        one, two, three = [each for each in swarm.peers if each.kind == "honest"][:3]
        # Each of two books for one of two givers: neither sees anything wrong.
        first = await cheat.account.take(one.key, WINDOW, SESSION)
        second = await cheat.copy.take(two.key, WINDOW, SESSION)
        for giver, taken in ((one, first), (two, second)):
            await giver.account.answer(check_entry(taken))
            assert not giver.account.book.cheats(cheat.key)
        # A third hears of both links, from whoever has them, and can show them to everybody.
        await three.account.learn([read_entry(bytes_of(first)), read_entry(bytes_of(second))])
        assert three.account.book.cheats(cheat.key)
        await one.account.convinced([each for proof in three.account.book.proofs() for each in proof])
        with pytest.raises(MalformedFrame, match="contradicts"):
            await one.account.answer(check_entry(await cheat.account.take(one.key, WINDOW, SESSION)))

    run(go())
