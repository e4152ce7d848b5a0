"""Peers on one local network find each other by mDNS (RFC 6762, RFC 6763), without being told of anybody.

Who can be dialled there announces a service with its peer id and the port at which it listens for TCP; who was given
nobody to join through asks who there is. What is announced is seen by everybody on that network.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from swarm.net.addresses import components, joining_fault
from swarm.tasks import Tasks
from swarm.types import PeerId

log = logging.getLogger(__name__)

SERVICE = "_swarm-llm._tcp.local."
PATIENCE = 4.0
"""Seconds in which somebody there has answered."""
MOST = 16
"""Peers that are joined through, and addresses of one."""
ASK = 1000
"""Milliseconds to ask one peer where it is."""

Found = Callable[[PeerId, Sequence[str]], Awaitable[None]]


async def find(patience: float = PATIENCE) -> tuple[str, ...]:
    """The addresses of peers on this network, each ending in /p2p/ and its id; none where mDNS does not work."""
    peers: dict[PeerId, Sequence[str]] = {}

    async def note(peer: PeerId, addresses: Sequence[str]) -> None:
        peers[peer] = addresses

    seeker = await Seeker.start(note)
    if seeker is None:
        return ()
    try:
        async with asyncio.timeout(patience):
            while not peers:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)  # for others that answer as soon
    except TimeoutError:
        pass
    finally:
        await seeker.close()
    return tuple(address for addresses in list(peers.values())[:MOST] for address in addresses)


def service_of(peer: PeerId, addresses: Iterable[str]) -> AsyncServiceInfo | None:
    """What a peer announces that listens at these multiaddrs; None: nobody else on its network could dial it."""
    places = [place for address in addresses if (place := _place(address)) is not None]
    if not places:
        return None
    port = places[0][1]
    packed = list(dict.fromkeys(ip.packed for ip, at in places if at == port))[:MOST]
    name = f"{peer}.{SERVICE}"
    return AsyncServiceInfo(SERVICE, name, port=port, addresses=packed, server=f"{peer[-12:]}.local.")


def addresses_of(peer: PeerId, ips: Iterable[bytes], port: int | None) -> list[str]:
    """Where somebody who announces this can be dialled, multiaddrs; none where it makes no sense."""
    found = []
    for packed in list(ips)[:MOST]:
        with contextlib.suppress(ValueError):
            ip = ipaddress.ip_address(packed)
            address = f"/ip{ip.version}/{ip}/tcp/{port}/p2p/{peer}"
            if joining_fault(address) is None:
                found.append(address)
    return found


def _place(address: str) -> tuple[ipaddress.IPv4Address, int] | None:
    """IP and port of an address over plain TCP that others on the network can dial."""
    parts = [part for part in components(address) or () if part[0] != "p2p"]
    if [name for name, _ in parts] != ["ip4", "tcp"]:
        return None
    (_, ip), (_, port) = parts
    parsed = ipaddress.IPv4Address(ip or "")
    return None if parsed.is_loopback or parsed.is_unspecified else (parsed, int(port or 0))


class Seeker:
    """Hears of peers on this network, also of those that come later."""

    def __init__(self, zeroconf: AsyncZeroconf, found: Found) -> None:
        self._zeroconf = zeroconf
        self._found = found
        self._asking = Tasks(log)
        self._browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[self._changed])

    @classmethod
    async def start(cls, found: Found) -> Seeker | None:
        """None where mDNS does not work."""
        zeroconf = _zeroconf()
        return None if zeroconf is None else cls(zeroconf, found)

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed and len(self._asking) < MOST:
            self._asking.spawn(self._ask(name), name=f"asking where {name} is")

    async def _ask(self, name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if not await info.async_request(self._zeroconf.zeroconf, ASK):
            return
        peer = name.removesuffix(f".{SERVICE}")
        ips = [ip.packed for ip in info.ip_addresses_by_version(IPVersion.V4Only)]
        if addresses := addresses_of(peer, ips, info.port):
            await self._found(peer, addresses)

    async def close(self) -> None:
        """Hear of nobody any more."""
        await self._browser.async_cancel()
        await self._asking.close()
        await self._zeroconf.async_close()


class Beacon:
    """Announces a peer on its network, until it is closed."""

    def __init__(self, zeroconf: AsyncZeroconf, service: AsyncServiceInfo) -> None:
        self._zeroconf = zeroconf
        self._service = service

    @classmethod
    async def start(cls, peer: PeerId, addresses: Iterable[str]) -> Beacon | None:
        """None where nobody else could dial the peer, or mDNS does not work."""
        service, zeroconf = service_of(peer, addresses), None
        if service is not None and (zeroconf := _zeroconf()) is not None:
            try:
                await zeroconf.async_register_service(service, cooperating_responders=True)
            except Exception as error:  # zeroconf raises many kinds
                log.info("this peer is not announced on the local network: %s", error)
                await zeroconf.async_close()
                return None
            return cls(zeroconf, service)
        return None

    async def close(self) -> None:
        """Say that the peer is gone."""
        with contextlib.suppress(OSError, TimeoutError):
            await self._zeroconf.async_unregister_service(self._service)
        await self._zeroconf.async_close()


def _zeroconf() -> AsyncZeroconf | None:
    try:
        return AsyncZeroconf(ip_version=IPVersion.V4Only)
    except OSError as error:
        log.info("no mDNS here: %s", error)
        return None
