"""Sessions with receipts on the simulated network: what both sides have signed agrees, whatever happens to either."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence

import pytest

from swarm.accounting.account import Account
from swarm.accounting.book import Book
from swarm.accounting.stream import serve_receipts
from swarm.accounting.work import QUARTERS, WINDOW
from swarm.client.paying import Payer
from swarm.client.session import Session
from swarm.config import ClientConfig
from swarm.errors import BookFailed, MissingBlocks
from swarm.net.identity import Identity
from swarm.server import receipts
from swarm.testing import World, generate, reference, run
from swarm.testing.world import PARAMETERS, SimulatedServer
from swarm.types import Span
from swarm.wire import swarm_pb2 as pb

PROMPT = list(range(7))
SPANS = {"a": Span(0, 3), "b": Span(3, 6), "c": Span(6, 9)}
TWICE = {f"{name}{i}": span for name, span in SPANS.items() for i in (1, 2)}
WINDOW_OF_3 = WINDOW * 3 * PARAMETERS // QUARTERS


def account(name: str, **options: int) -> Account:
    return Account(Identity(hashlib.sha256(name.encode()).digest()), Book(), now=lambda: 5.0, **options)


async def swarm(servers: dict[str, Span], **options: int) -> tuple[World, dict[str, Account]]:
    world, accounts = World(), {name: account(name, **options) for name in servers}
    for name, span in servers.items():
        await world.add(name, span, account=accounts[name])
    return world, accounts


def gap(taker: Account, giver: Account) -> int:
    """By how much the taker's word is ahead of the giver's."""
    return taker.book.pair(taker.key, giver.key).taken - giver.book.pair(giver.key, taker.key).given


def positions(taker: Account, giver: Account) -> float:
    """Whole positions through three blocks, as the giver has it."""
    return giver.book.pair(giver.key, taker.key).given / (3 * PARAMETERS)


def test_all_that_was_computed_is_signed_by_both_and_agrees() -> None:
    async def go() -> None:
        world, servers = await swarm(SPANS)
        me = account("me")
        session = world.session(payer=Payer(me, (PARAMETERS,) * 9))
        assert await generate(session, PROMPT, 200) == reference(PROMPT, 200)
        for server in servers.values():
            # Nobody has waited, and no more than a window is open.
            assert gap(me, server) >= 0 and positions(me, server) > 206 - 64
        await session.close()
        for server in servers.values():
            assert gap(me, server) == 0 and positions(me, server) == 206.0
            assert server.book.end(me.key).taken == me.book.end(me.key).taken or len(servers) > 1
            # Each has the other's half, of every receipt.
            theirs, mine = server.book.links(me.key, 1, 1000), me.book.links(server.key, 1, 1000)
            assert len(theirs) == len(mine) == len(server.book.links(server.key, 1, 1000)) >= 6
        assert me.statistics().taken == 3 * 206 * 3 * PARAMETERS
        # A prompt of many positions counts a quarter, and more than one round does not wait for signatures for long.
        begun = asyncio.get_running_loop().time()
        session = world.session(payer=Payer(me, (PARAMETERS,) * 9))
        assert len(await generate(session, list(range(2000)), 1)) == 1
        accounted = asyncio.get_running_loop().time() - begun
        await session.close()
        assert all(206.0 + 500.0 <= positions(me, server) <= 206.0 + 2000.0 for server in servers.values())
        assert all(gap(me, server) == 0 for server in servers.values())
        begun = asyncio.get_running_loop().time()
        session = world.session()
        assert len(await generate(session, list(range(2000)), 1)) == 1
        assert accounted < 1.1 * (asyncio.get_running_loop().time() - begun)
        await world.close()

    run(go())


def test_nobody_without_an_account_has_to_sign_and_servers_without_one_ask_nobody() -> None:
    async def go() -> None:
        world, servers = await swarm({"a": SPANS["a"], "b": SPANS["b"]})
        await world.add("c", SPANS["c"])
        stranger, me = world.session(), account("me")
        session = world.session(payer=Payer(me))
        for each in (stranger, session):
            assert await generate(each, PROMPT, 100) == reference(PROMPT, 100)
            await each.close()
        assert me.statistics().taken == 2 * 106 * 3 * PARAMETERS
        assert all(server.statistics().given == 106 * 3 * PARAMETERS for server in servers.values())
        await world.close()

    run(go())


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_at_most_a_window_is_missing(seed: int) -> None:
    """Servers die, freeze, forget and come back, at any moment; the words of both sides differ by a window at most."""

    async def go() -> None:
        rng = random.Random(seed)
        world, servers = await swarm(TWICE)
        me = account("me")
        session = world.session(payer=Payer(me, (PARAMETERS,) * 9))

        async def happening(index: int) -> None:
            if not index or rng.random() > 0.08 or session.route is None:
                return
            peer = rng.choice(session.route.hops).peer_id
            match rng.choice(["kill", "freeze", "cut", "evict", "forget"]):
                case "kill":
                    await world.kill(peer)
                    world.later(rng.uniform(0.5, 5.0), back(peer))
                case "freeze":
                    world.network.freeze(peer)
                    world.later(rng.uniform(0.5, 8.0), thaw(peer))
                case "cut":
                    world.network.hosts[peer].drop_streams(world.clients[0].peer_id)
                case "evict":
                    for each in list(world.servers[peer].handler.sessions):
                        each.evict()
                case "forget":
                    for each in list(world.servers[peer].handler.sessions):
                        world.servers[peer].handler._end(each)

        async def back(peer: str) -> None:
            await world.add(peer, TWICE[peer], account=servers[peer])

        async def thaw(peer: str) -> None:
            world.network.thaw(peer)

        assert await generate(session, PROMPT, 300, on_token=happening) == reference(PROMPT, 300)
        await session.close()
        await asyncio.sleep(60.0)
        for server in servers.values():
            assert 0 <= gap(me, server) <= WINDOW_OF_3
            assert not server.book.proofs() and not me.book.proofs() and server.statistics().refused == 0
        # Nobody has signed for more than was computed, and what was computed beyond what was signed is small.
        computed = sum(server.statistics().given for server in servers.values())
        assert computed >= (306 - 64) * 9 * PARAMETERS * 0.8
        # The next receipt makes up for what was lost.
        again = world.session(payer=Payer(me, (PARAMETERS,) * 9))
        assert await generate(again, PROMPT, 70) == reference(PROMPT, 70)
        used = [hop.peer_id for hop in again.route.hops]  # type: ignore[union-attr]
        await again.close()
        assert all(gap(me, servers[peer]) == 0 for peer in used)
        await world.close()

    run(go())


def test_a_server_stops_after_a_window_that_is_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        world, servers = await swarm(SPANS)
        me = account("me")

        async def nothing(*_: object) -> None:
            return None

        monkeypatch.setattr("swarm.client.paying.Paying.sign", nothing)
        session = world.session(ClientConfig(max_wait=30.0), payer=Payer(me))
        done: list[int] = []
        with pytest.raises(MissingBlocks):
            await generate(session, PROMPT, 200, on_token=done.append)
        # A window through the first hop; others have had what it computed.
        assert max(done) <= 64 and all(server.statistics().given == 0 for server in servers.values())
        await session.close()
        # Without an account it would have been served.
        stranger = world.session()
        assert await generate(stranger, PROMPT, 200) == reference(PROMPT, 200)
        await world.close()

    run(go())


def test_who_claims_more_than_can_be_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        world, servers = await swarm(TWICE)
        me = account("me")
        session = world.session(payer=Payer(me, (PARAMETERS,) * 9))
        await generate(session, PROMPT, 5)
        liar = session.route.hops[1].peer_id  # type: ignore[union-attr]
        greedy(world.servers[liar], monkeypatch)
        assert len(await generate(session, [1], 200)) == 200
        assert liar not in [hop.peer_id for hop in session.route.hops]  # type: ignore[union-attr]
        await session.close()
        # It did some thirty before it was found out.
        assert servers[liar].statistics().given <= 100 * 3 * PARAMETERS
        # One that says that its blocks are larger than they are is not used at all.
        greedy_world, others = await swarm({**SPANS, "b2": SPANS["b"]})
        monkeypatch.setattr(receipts.Receipts, "greeting", boasting(receipts.Receipts.greeting, others["b"]))
        session = greedy_world.session(payer=Payer(me, (PARAMETERS,) * 9))
        assert await generate(session, PROMPT, 20) == reference(PROMPT, 20)
        assert "b" not in [hop.peer_id for hop in session.route.hops]  # type: ignore[union-attr]
        await session.close()
        await world.close()
        await greedy_world.close()

    run(go())


def greedy(server: SimulatedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It claims three times what it does."""
    for session in server.handler.sessions:
        bill = session.receipts
        assert bill is not None
        monkeypatch.setattr(bill, "worked", thrice(bill.worked))


def thrice(worked: Callable[[Sequence[int]], None]) -> Callable[[Sequence[int]], None]:
    return lambda counts: worked([*counts, *counts, *counts])


def boasting(greeting, liar: Account):  # type: ignore[no-untyped-def]
    def told(self: receipts.Receipts, me: str) -> pb.Accounting | None:
        said = greeting(self, me)
        if self._account is liar:
            said.parameters *= 2
        return said  # type: ignore[no-any-return]

    return told


def test_a_broken_book_at_either_side_does_not_stop_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        world, servers = await swarm(SPANS)
        me = account("me")
        payer = Payer(me)
        session = world.session(payer=payer)
        assert await generate(session, PROMPT, 40) == reference(PROMPT, 40)
        servers["a"].book.close()
        more = await generate(session, [3], 100)
        me.book.close()
        assert len(more) == 100 and len(await generate(session, [4], 100)) == 100
        assert not payer.usable
        await session.close()
        with pytest.raises(BookFailed):
            me.statistics()
        await world.close()

    run(go())


async def _fill(world: World, session: Session, length: int) -> float:
    """Seconds until a prompt of so many positions is computed."""
    begun = asyncio.get_running_loop().time()
    await generate(session, list(range(length)), 1)
    return asyncio.get_running_loop().time() - begun


def test_who_has_given_waits_less_than_half_and_strangers_still_finish() -> None:
    async def go() -> None:
        world, accounts = await swarm({"a": Span(0, 9)}, unit=1)
        friend = account("friend")
        owner = accounts["a"]
        # The server's owner has had something of the friend.
        taken = await owner.take(friend.key, 10**9, bytes(16))
        await friend.answer(taken)
        strangers = [world.session() for _ in range(12)]
        crowd = [asyncio.ensure_future(_fill(world, each, 1500)) for each in strangers]
        known = world.session(payer=Payer(friend))
        waited = await _fill(world, known, 1500)
        others = await asyncio.gather(*crowd)
        assert waited < 0.5 * min(others) and max(others) < 60.0
        nobody = account("nobody")
        crowd = [asyncio.ensure_future(_fill(world, each, 1500)) for each in strangers]
        same = await _fill(world, world.session(payer=Payer(nobody)), 1500)
        assert same > 0.8 * min(await asyncio.gather(*crowd))
        await world.close()

    run(go())


def test_a_friend_of_a_friend_is_asked_who_he_is() -> None:
    async def go() -> None:
        world, accounts = await swarm({"a": Span(0, 9)}, unit=1)
        friend, his = account("friend"), account("his")
        owner = accounts["a"]
        await friend.answer(await owner.take(friend.key, 10**9, bytes(16)))
        owed = await friend.take(his.key, 10**6, bytes(16))
        await friend.answered(owed, await his.answer(owed))
        session = world.session(payer=Payer(his))
        await serve_receipts(world.clients[-1], his)
        await generate(session, PROMPT, 20)
        (served,) = world.servers["a"].handler.sessions
        assert served.receipts is not None and served.receipts.weight == 8.0
        await session.close()
        await world.close()

    run(go())


def test_who_is_served_by_himself_signs_nothing_and_waits_for_nobody() -> None:
    async def go() -> None:
        world, accounts = await swarm({"a": Span(0, 9)})
        session = world.session(payer=Payer(accounts["a"]))
        assert await generate(session, PROMPT, 200) == reference(PROMPT, 200)
        (served,) = world.servers["a"].handler.sessions
        assert served.receipts is not None and served.receipts.weight == 8.0
        await session.close()
        assert len(accounts["a"].book) == 0
        await world.close()

    run(go())


def test_receipts_that_are_lost_with_a_control_stream_come_with_the_next() -> None:
    async def go() -> None:
        world, servers = await swarm(SPANS)
        me = account("me")
        session = world.session(payer=Payer(me, (PARAMETERS,) * 9))

        async def happening(index: int) -> None:
            if index % 16 == 15:
                # Just when a claim is under way, or what answers it.
                await asyncio.sleep(0.001 * (index % 7))
                world.network.hosts["b"].drop_streams(world.clients[0].peer_id)

        assert await generate(session, PROMPT, 250, on_token=happening) == reference(PROMPT, 250)
        (served,) = world.servers["b"].handler.sessions
        assert served.receipts is not None
        await session.close()
        assert gap(me, servers["b"]) == 0 and served.receipts.tab.signed == served.receipts.tab.computed
        assert servers["b"].statistics().refused == 0
        await world.close()

    run(go())


def test_who_floods_a_server_with_receipts_is_refused() -> None:
    async def go() -> None:
        world, servers = await swarm({"a": Span(0, 9)})
        me = account("me")
        session = world.session(payer=Payer(me))
        await generate(session, PROMPT, 5)
        (link,) = session._lane.epochs.links
        for _ in range(20):
            entry = await me.take(servers["a"].key, 1, link.session)
            await link._control.say(pb.ControlRequest(receipt=entry))
        await asyncio.sleep(1.0)
        assert len(servers["a"].book) == 0
        assert len(await generate(session, [3], 5)) == 5
        await session.close()
        await world.close()

    run(go())
