"""A peer's place in the network, whatever the network is made of. Its import is cheap and starts nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from swarm.errors import (
    DaemonFailed,
    InvalidInput,
    NetworkError,
    NobodyFound,
    PeerUnreachable,
    SwarmError,
    WrongSwarmKey,
)
from swarm.net.directory_stream import DirectoryDesk, RemoteDirectory
from swarm.net.guard import Guard, GuardedHost
from swarm.net.initial_peers import HOW_TO_BEGIN
from swarm.net.locator import Locator
from swarm.net.record_book import Introducers, RecordBook
from swarm.net.swarm_key import NoSeal, SwarmKey

if TYPE_CHECKING:
    from swarm.config import NetworkConfig
    from swarm.net.base import Directory, Host, Stream
    from swarm.net.hivemind.directory import HivemindDirectory
    from swarm.net.hivemind.host import HivemindHost
    from swarm.net.identity import Identity
    from swarm.net.lan import Beacon, Seeker
    from swarm.types import PeerId

log = logging.getLogger(__name__)

CLOSE_PATIENCE = 5.0
"""Seconds that leaving the network may take."""


def _nothing() -> None:
    """What a peer that is no forwarder does to leave as one."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What `open` gives: streams by `host`, records by `directory`; an asynchronous context manager that leaves.

    `lost` waits until the network is lost to this process for good, and raises why (DaemonFailed): a supervisor has to
    start the process anew.
    """

    host: Host
    directory: Directory
    identity: Identity
    lost: Callable[[], Coroutine[Any, Any, NoReturn]]
    retire: Callable[[], None] = _nothing
    """Carry nothing new for others, because this peer is about to leave."""
    guard: Guard = field(default_factory=Guard)
    """What stands before the handlers of `host`."""
    lan: Sequence[Beacon | Seeker] = ()
    """What finds and is found on the local network."""
    book: RecordBook | None = None
    """What tells others of a model's servers."""
    introducers: Introducers | None = None
    """Who tells this peer of them."""
    locator: Locator | None = None
    """What finds out where this peer is."""

    async def close(self) -> None:
        """Leave. Waits for goodbyes, but not for ever: without its daemon nobody may answer."""
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):
                await asyncio.gather(*(each.close() for each in self.lan))
                await asyncio.gather(*(each.close() for each in (self.locator, self.book) if each is not None))
                await self.directory.close()
                await self.host.close()
        except TimeoutError:
            log.warning("the network did not close within %.0f s; leaving it behind", CLOSE_PATIENCE)

    async def __aenter__(self) -> Network:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


MEMBER_PROTOCOL = "/swarm/member/1.0.0"
"""Nothing is said under it but what begins each stream: that both sides have the swarm's key."""
_AGAIN = (0.5, 1.0, 2.0)
"""Seconds after which initial peers are asked again that do not know the protocol."""


async def _show_key(host: Host, initial_peers: Sequence[str]) -> None:
    """Be asked for the key, and ask the initial peers for it. Raises WrongSwarmKey where none of them has it."""

    async def answer(stream: Stream) -> None:
        pass

    await host.serve(MEMBER_PROTOCOL, answer)
    peers = {address.rpartition("/p2p/")[2] for address in initial_peers}
    for pause in (*_AGAIN, None):
        missed: list[NetworkError] = []
        for peer_id in peers:
            try:
                (await host.open_stream(peer_id, MEMBER_PROTOCOL)).close()
            except NetworkError as error:
                missed.append(error)
        if len(missed) < len(peers) or not peers:
            return
        if pause is None or any(isinstance(error, WrongSwarmKey) for error in missed):
            text = "none of the initial peers has this swarm key; is it the key of their swarm, and do they have one?"
            raise WrongSwarmKey(text) from missed[0]
        # They may only just have begun.
        await asyncio.sleep(pause)


async def open(config: NetworkConfig) -> Network:  # noqa: A001
    """Join the network.

    Raises DaemonFailed when p2pd does not start, PeerUnreachable when no initial peer answers, NobodyFound when there
    is none, InvalidInput when the identity file, the swarm key or an address is broken, WrongSwarmKey when no initial
    peer has that key, NetworkError when the directory cannot be joined.
    """
    if config.initial_peers or not config.lan or config.public:
        return await _open(config)
    from swarm.net.lan import find

    found = await find()
    # Who serves a local network is reached by all of it; nobody there could say how the outside sees this peer.
    config = replace(config, public=config.dialled)
    if not found and not config.begins:
        raise NobodyFound(f"nobody was found on the local network, and there are {HOW_TO_BEGIN}")
    if found:
        log.info("joining through peers of the local network: %s", ", ".join(found))
        try:
            return await _open(replace(config, initial_peers=found), alone=True)
        except PeerUnreachable as error:
            if not config.begins:
                raise
            log.warning("nobody of the local network answers: %s", error)
    return await _open(config, alone=True)


async def _open(config: NetworkConfig, *, alone: bool = False) -> Network:
    """`alone`: nobody was named to join through: whoever comes to the local network later is met."""
    key = None if config.swarm_key is None else SwarmKey.load(config.swarm_key)
    if not config.p2pd or (missing := without_p2pd()):
        if config.p2pd:
            log.warning("going without p2pd: %s; only TCP is spoken, and no holes are punched through NATs", missing)
        return await _open_pure(config, key)
    from swarm.net.hivemind.directory import open_directory
    from swarm.net.hivemind.host import create_host  # its import takes a second

    host = await create_host(config)
    try:
        door = GuardedHost(host, host.guard, key)
        if key is not None:
            await _show_key(door, host.joined)
        directory = await open_directory(host, key or NoSeal())
        locator = Locator(door, directory.neighbours)
        await locator.start()
        book = RecordBook(directory)
        await book.serve(door)
        await DirectoryDesk(directory, config).serve(door)
        joined = sorted({address.rpartition("/p2p/")[2] for address in host.joined})
        introducers = Introducers(door, directory, joined)
        lan = await _on_lan(host, directory, None if key is None else door, meeting=alone) if config.lan else ()
    except BaseException:
        await host.close()
        raise
    host.keep_known(directory)
    return Network(door, directory, host.identity, host.lost, host.retire, host.guard, lan, book, introducers, locator)


def without_p2pd() -> str | None:
    """Why p2pd cannot be had here; None: it can."""
    spec = importlib.util.find_spec("hivemind")
    if spec is None or not spec.submodule_search_locations:
        return "hivemind, which brings it, is not installed"
    path = Path(spec.submodule_search_locations[0]) / "hivemind_cli" / "p2pd"
    return None if path.exists() else f"it is not at {path}"


async def _open_pure(config: NetworkConfig, key: SwarmKey | None) -> Network:
    """As `_open`, by libp2p's Python implementation. Nobody is met on the local network but through initial peers."""
    if importlib.util.find_spec("libp2p") is None:
        raise DaemonFailed("neither p2pd nor libp2p is installed here: pip install 'swarm-llm[pure]'")
    from swarm.net.pure.host import create_pure_host

    if not config.initial_peers:
        raise InvalidInput(f"without p2pd there is no directory of one's own, and there are {HOW_TO_BEGIN}")
    host = await create_pure_host(config)
    try:
        door = GuardedHost(host, host.guard, key)
        if key is not None:
            await _show_key(door, host.joined)
        joined = sorted({address.rpartition("/p2p/")[2] for address in host.joined})
        directory = RemoteDirectory(door, joined, host.identity, config)
        locator = Locator(door, directory.neighbours)
        await locator.start()
        book = RecordBook(directory)
        await book.serve(door)
        introducers = Introducers(door, directory, joined)
    except BaseException:
        await host.close()
        raise
    return Network(
        door, directory, host.identity, host.lost,
        guard=host.guard, book=book, introducers=introducers, locator=locator,
    )  # fmt: skip


async def _on_lan(
    host: HivemindHost, directory: HivemindDirectory, keyed: Host | None, *, meeting: bool
) -> Sequence[Beacon | Seeker]:
    """`keyed`: the same host where who is met must have the swarm's key."""
    from swarm.net.lan import Beacon, Seeker

    async def meet(peer: PeerId, addresses: Sequence[str]) -> None:
        if peer == host.peer_id:
            return
        try:
            await host.dial(peer, list(addresses))
            if keyed is not None:
                (await keyed.open_stream(peer, MEMBER_PROTOCOL)).close()
            await directory.meet(peer)
        except SwarmError as error:
            log.info("a peer of the local network cannot be met: %s", error)

    announces = host.config.public or host.config.dialled
    beacon = await Beacon.start(host.peer_id, host.visible) if announces else None
    seeker = await Seeker.start(meet) if meeting and announces else None
    return [each for each in (beacon, seeker) if each is not None]
