"""How a host over p2pd is reached: it finds out, carries for others or is carried for, and says so in its addresses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import base58
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from swarm.config import ForwardConfig
from swarm.errors import SwarmError
from swarm.net.addresses import is_public
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.net.forwarding import observers
from swarm.net.forwarding.circuits import HOP_PROTOCOL
from swarm.net.forwarding.forwarder import Forwarder
from swarm.net.forwarding.reach import (
    AUTONAT_PROTOCOL,
    FORWARDER_PROTOCOL,
    FRAME_LIMIT,
    Reach,
    dial_me,
    judged,
    moved,
    read_seen,
    to_try,
    translated,
    was_dialled,
)
from swarm.net.forwarding.tether import Tether
from swarm.net.hivemind.callers import Caller
from swarm.net.lists import Lists
from swarm.types import PeerId
from swarm.wire.framing import read_frame, write_frame

if TYPE_CHECKING:
    from swarm.net.hivemind.directory import HivemindDirectory
    from swarm.net.hivemind.host import HivemindHost

log = logging.getLogger(__name__)

ASKED = 4
"""Initial peers that are asked how we are reached."""
LEARN = 30.0
"""Seconds between two looks into the directory for forwarders; while there are none, `LEARN_SOON`."""
LEARN_SOON = 3.0
_LOOKS = 10
"""So often at most a peer looks that soon for others that see it, or that others can be told of."""
RETURNS, _POLL = 4.0, 0.2
"""Seconds for a peer whose connections were dropped to connect again; it looks every two."""
OBSERVED = 2.0
"""Seconds for a connection over QUIC to be made to who is to see us."""


@dataclass(frozen=True, slots=True)
class Found:
    """Who can dial this peer; `confirmed`: the addresses at which others did; `public`: whom everybody can dial."""

    reach: Reach
    confirmed: tuple[str, ...] = ()
    public: observers.Public = field(default_factory=dict)


class Reachability:
    """`found`: as far as it was found out. `forwarder`: where this peer is one; `tether`: where it needs some."""

    def __init__(self, host: HivemindHost) -> None:
        self.found = Found(Reach.PUBLIC if host.config.public else Reach.UNKNOWN)
        self.forwarder: Forwarder | None = None
        self.tether: Tether | None = None
        self._host = host
        self._public: dict[PeerId, Sequence[str]] = {}
        self._renew = asyncio.Event()

    # ---- finding out ------------------------------------------------------------------------------------------

    async def find_out(self) -> Found:
        """Ask the initial peers how they see this one and, if others have to dial it, whether they can.

        Raises DaemonFailed.
        """
        peers = list(dict.fromkeys(address.rpartition("/p2p/")[2] for address in self._host.joined))[:ASKED]
        answers = await asyncio.gather(*map(self._seen_by, peers))
        seen = [answer.address for answer in answers if answer is not None]
        public: dict[PeerId, Sequence[str]] = {}
        for answer in answers:
            public.update(observers.told(answer.others) if answer is not None else ())
        if not self._host.config.dialled:
            return Found(translated(seen, self._host.visible), public=public)
        dialled: list[bytes | bool | None] = []
        if any(map(is_public, seen)):
            both = zip(peers, answers, strict=True)
            dialled = list(await asyncio.gather(*(self._dialled_by(peer, one.address) for peer, one in both if one)))
        reach = judged(seen, dialled)
        confirmed = {str(Multiaddr(address)) for address in dialled if isinstance(address, bytes)}
        told = {
            Reach.PUBLIC: "everybody can dial this peer",
            Reach.LOCAL: "this peer, and those that it joined through, are on a local network",
            Reach.NAT: "nobody can dial this peer, it is behind NAT or a firewall: others reach it through forwarders",
            Reach.UNKNOWN: "whether others can dial this peer nobody could say",
        }[reach]
        log.info("%s (seen from %s)", told, ", ".join(sorted(set(seen))) or "nowhere")
        if reach is Reach.NAT and self._host.config.announce_maddrs:
            log.warning(
                "nobody reaches this peer at %s: is the port forwarded?", ", ".join(self._host.config.announce_maddrs)
            )
        return Found(reach, tuple(sorted(confirmed)), public)

    async def _seen_by(self, peer_id: PeerId) -> pb.Seen | None:
        with contextlib.suppress(SwarmError, TimeoutError):
            async with asyncio.timeout(self._host.config.dial_back):
                return (await self.ask(peer_id))[0]
        return None

    async def _dialled_by(self, peer_id: PeerId, seen: str) -> bytes | bool | None:
        """Whether a peer reaches us by a connection of its own, within `dial_back` seconds."""
        host = self._host
        tried = [*to_try(host.visible, seen), *host.config.announce_maddrs]
        if not tried:
            return False
        writer = None
        try:
            async with asyncio.timeout(host.config.dial_back):
                reader, writer = await host.open_raw(base58.b58decode(peer_id), AUTONAT_PROTOCOL)
                me = base58.b58decode(host.peer_id)
                write_frame(writer, dial_me(me, [Multiaddr(address).to_bytes() for address in tried]))
                return was_dialled(await read_frame(reader, FRAME_LIMIT))
        except TimeoutError:
            return False
        except SwarmError as error:
            log.debug("%s did not try to dial this peer: %s", peer_id, error)
            return None
        finally:
            if writer is not None:
                writer.transport.abort()

    # ---- being a forwarder ------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Carry for others where everybody reaches this peer, if it is to; hold on to forwarders where it needs them.

        Raises DaemonFailed.
        """
        host, limits = self._host, self._host.config.forward
        known: dict[PeerId, list[str]] = {}
        for address in host.config.initial_peers:
            known.setdefault(address.rpartition("/p2p/")[2], []).append(address)
        if self.found.reach is Reach.NAT:
            self._learn({**known, **self.found.public})
            await self._be_seen(again=True)
        if self.found.reach is Reach.PUBLIC:
            self.forwarder = Forwarder(
                _Door(host),
                limits or ForwardConfig(),
                lambda: [_raw(address) for address in host.addresses],
                _Blocked(limits or ForwardConfig(), host.guard.lists),
            )
            # Refuses, lest go-libp2p's relay answer.
            self.forwarder.leaving = limits is None
            await host.serve_raw(HOP_PROTOCOL, self._hop)
            await host.serve_raw(FORWARDER_PROTOCOL, self._tell)
        elif host.config.dialled and self.found.reach in (Reach.NAT, Reach.UNKNOWN):
            config = host.config
            self.tether = Tether(self, host.peer_id, config.forwarders, config.redial, host.compose_addresses)
            self.tether.learn(known)
            await self.tether.look()

    async def _hop(self, caller: Caller, reader: StreamReader, writer: StreamWriter) -> None:
        assert self.forwarder is not None
        await self.forwarder.serve(caller.peer_id, reader, writer)

    async def _tell(self, caller: Caller, reader: StreamReader, writer: StreamWriter) -> None:
        """Where we see a peer, and whether we would carry for it."""
        assert self.forwarder is not None
        try:
            async with asyncio.timeout(self.forwarder.limits.handshake):
                await read_frame(reader, 0)
                busy = self.forwarder
                public = {self._host.peer_id: self._record(busy).addresses, **self._public}
                seen = pb.Seen(
                    address=caller.address, circuits=busy.circuits, most=busy.most, others=observers.telling(public)
                )
                write_frame(writer, seen.SerializeToString())
                await reader.read(1)
        except (SwarmError, OSError, TimeoutError) as error:
            log.debug("%s asked how it is seen, and left: %s", caller.peer_id, error)
        finally:
            writer.transport.abort()

    def retire(self) -> None:
        """Open no new circuits, and say so: this peer is about to leave."""
        if self.forwarder is not None:
            self.forwarder.leaving = True
            self._renew.set()

    # ---- being seen -------------------------------------------------------------------------------------------

    def _learn(self, public: observers.Public) -> None:
        for peer_id, addresses in public.items():
            if peer_id != self._host.peer_id and (peer_id in self._public or len(self._public) < observers.MOST):
                self._public[peer_id] = addresses

    async def _be_seen(self, *, again: bool) -> None:
        """Connect to so many over QUIC that a hole can be punched, if there are so many. `again`: nothing goes over
        the connections that there are yet, they may be made anew. Raises DaemonFailed."""
        links = await self._host.daemon.connections()
        connections = [(base58.b58encode(peer).decode(), address) for peer, address in links]
        dials = observers.lacking(connections, self._public)
        joined: dict[PeerId, list[str]] = {}
        for address in self._host.joined:
            joined.setdefault(address.rpartition("/p2p/")[2], []).append(address)

        async def dial(peer_id: PeerId, addresses: Sequence[str]) -> None:
            before = joined.get(peer_id, ()) if peer_id in dials.again else ()
            if before:
                await self._host.daemon.disconnect(base58.b58decode(peer_id))
            try:
                async with asyncio.timeout(OBSERVED):
                    await self._host.dial(peer_id, addresses)
            except (SwarmError, TimeoutError) as error:
                log.debug("%s does not see this peer: %s", peer_id, error)
                if before:
                    await self._host.dial(peer_id, before)

        await asyncio.gather(
            *(dial(*each) for each in dials.fresh.items()),
            *(dial(*each) for each in dials.again.items() if again and each[0] in joined),
            return_exceptions=True,
        )

    # ---- being carried for ------------------------------------------------------------------------------------

    async def connected(self) -> set[PeerId]:
        """As in `Line`."""
        links = await self._host.daemon.connections()
        return {base58.b58encode(peer).decode() for peer, address in links if "/p2p-circuit" not in address}

    async def dial(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        """As in `Line`."""
        await self._host.dial(peer_id, addresses)

    async def ask(self, peer_id: PeerId) -> tuple[pb.Seen, float]:
        """As in `Line`."""
        began = time.monotonic()
        reader, writer = await self._host.open_raw(base58.b58decode(peer_id), FORWARDER_PROTOCOL)
        try:
            write_frame(writer, b"")
            return read_seen(await read_frame(reader, FRAME_LIMIT)), time.monotonic() - began
        finally:
            writer.transport.abort()

    def addresses(self, visible: Sequence[str]) -> list[str]:
        """What others should dial, of what p2pd believes to have, what was confirmed, and the circuits there are."""
        announced = self._host.config.announce_maddrs
        direct = [address for address in visible if "/p2p-circuit" not in address]
        if self.found.reach is Reach.NAT:
            direct = [address for address in direct if not is_public(address)]
        elif self.found.reach is Reach.PUBLIC:
            direct = list(dict.fromkeys([*self.found.confirmed, *direct]))
        elif self.tether is None or not self.tether.through:
            direct = list(visible)
        return [*(announced or direct), *(self.tether.addresses if self.tether is not None else ())]

    # ---- the directory ----------------------------------------------------------------------------------------

    async def keep_known(self, directory: HivemindDirectory) -> None:
        """Tell the directory of this forwarder, and learn from it of others, until cancelled."""
        forwards = self.forwarder is not None and self._host.config.forward is not None
        announced_at, looks = -math.inf, 0
        while forwards or self.tether is not None or self.found.reach is Reach.NAT:
            now, enough = asyncio.get_running_loop().time(), False
            try:
                if forwards and self.forwarder is not None and now >= announced_at + self._host.config.record_renewal:
                    announced_at = now
                    await directory.announce_forwarder(self._record(self.forwarder))
                enough = await self._look_for_forwarders(directory)
                looks += 1
                enough = enough or (self.tether is None and looks >= _LOOKS)
            except SwarmError as error:
                log.debug("the directory was not asked, or told, of forwarders: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LEARN if enough else LEARN_SOON, self._host.config.record_renewal)):
                    await self._renew.wait()
                    announced_at = -math.inf
            self._renew.clear()

    async def _look_for_forwarders(self, directory: HivemindDirectory) -> bool:
        """Take over what the directory knows of them; whether that is enough. Raises NetworkError."""
        found = await directory.forwarders()
        addresses = {peer: one.addresses for peer, one in found.items()}
        self._learn(addresses)
        if self.found.reach is Reach.NAT:
            await self._be_seen(again=False)
        if self.tether is None:
            return len(self._public) >= observers.WANTED
        self.tether.learn(addresses, frozenset(peer for peer, one in found.items() if one.circuits >= one.most))
        return len(self.tether.through) >= self._host.config.forwarders

    def _record(self, forwarder: Forwarder) -> pb.Forwarder:
        addresses = [address for address in self._host.addresses if "/p2p-circuit" not in address]
        public = [address for address in addresses if is_public(address)]
        return pb.Forwarder(
            addresses=(public or addresses)[:4],
            circuits=forwarder.circuits,
            most=forwarder.most,
            rate=forwarder.limits.rate,
        )


class _Blocked(Container[PeerId]):
    """Peers that nothing is carried for or to: those that the operator named for this, and whoever is not served."""

    def __init__(self, limits: ForwardConfig, lists: Lists) -> None:
        self._named = frozenset(limits.blocked)
        self._lists = lists

    def __contains__(self, peer_id: object) -> bool:
        now = asyncio.get_running_loop().time()
        return peer_id in self._named or not self._lists.admits(str(peer_id), now)


class _Door:
    """What a forwarder needs of a host over p2pd."""

    def __init__(self, host: HivemindHost) -> None:
        self._host = host

    async def is_connected(self, peer: bytes) -> bool:
        addresses = await self._addresses_of(peer)
        if moved(addresses):
            # p2pd might go on with the dead connection, and cannot drop it alone.
            log.info("%s has another address now: its connections are made anew", base58.b58encode(peer).decode())
            await self._host.daemon.disconnect(peer)
            addresses = await self._returned(peer)
        return bool(addresses)

    async def _returned(self, peer: bytes) -> list[str]:
        """The addresses of a peer's connections, once it has come again."""
        for _ in range(round(RETURNS / _POLL)):
            await asyncio.sleep(_POLL)
            if addresses := await self._addresses_of(peer):
                return addresses
        return []

    async def _addresses_of(self, peer: bytes) -> list[str]:
        links = await self._host.daemon.connections()
        return [address for other, address in links if other == peer and "/p2p-circuit" not in address]

    async def open(self, peer: bytes, protocol: str) -> tuple[StreamReader, StreamWriter]:
        return await self._host.open_raw(peer, protocol)


def _raw(address: str) -> bytes:
    return bytes(Multiaddr(address).to_bytes())
