"""A host whose connections libp2p's Python implementation holds, for machines without p2pd.

It dials TCP, also through forwarders, and serves who dials it. It speaks no QUIC, punches no holes, and takes no part
in the DHT: the directory is asked over a stream. trio runs in one thread of its own, as it does for the edge.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import base58
import trio

from swarm.config import EdgeConfig, NetworkConfig
from swarm.errors import DaemonFailed, InvalidInput, PeerUnreachable
from swarm.net.addresses import check, components, own
from swarm.net.base import HostStatistics, StreamHandler, serve_stream
from swarm.net.edge.quiet import quieten
from swarm.net.edge.stream import Bridge, EdgeStream
from swarm.net.edge.switch import CLOSING
from swarm.net.guard import Guard
from swarm.net.identity import Identity
from swarm.net.pulse import Pulse
from swarm.net.pure.signs import PureSigns
from swarm.net.pure.switch import Link, PureSwitch
from swarm.tasks import Tasks, ended
from swarm.types import PeerId

log = logging.getLogger(__name__)

quieten("libp2p")

T = TypeVar("T")
_OTHERS = 0.5
"""How long a joining peer waits for further initial peers once one has answered."""


class PureStream(EdgeStream):
    """A stream of such a host; in `siblings` until it is closed."""

    def __init__(
        self, bridge: Bridge, peer_id: PeerId, post: Any, frame_timeout: float, siblings: set[PureStream]
    ) -> None:
        super().__init__(bridge, peer_id, post, frame_timeout)
        self.heard = self.spoke = -1.0
        """When bytes last came, and were sent, by the loop's time; -1 where none were."""
        self.sent = 0
        self._siblings = siblings
        siblings.add(self)

    def feed(self, data: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        super().feed(data)

    async def _send(self, frame: bytes) -> None:
        await super()._send(frame)
        self.sent += len(frame)
        self.spoke = asyncio.get_running_loop().time()

    def end(self) -> None:
        """The peer says no more: as it closes both directions, it hears no more either."""
        super().end()
        self.lose()

    def close(self) -> None:
        self._siblings.discard(self)
        super().close()


class PureHost:
    """A peer without p2pd; satisfies `Host`."""

    def __init__(self, config: NetworkConfig, identity: Identity) -> None:
        self.config = config
        self.identity = identity
        self.guard = Guard(config.limits)
        self.joined: tuple[str, ...] = ()
        """The initial peers that answered."""
        self._edge = EdgeConfig(host_maddrs=tuple(filter(_over_tcp, config.host_maddrs)))
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[str, StreamHandler] = {}
        self._streams: set[PureStream] = set()
        self._serving, self._background = Tasks(log), Tasks(log)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._failed: BaseException | None = None
        self._closing = False
        self._switch = PureSwitch(identity, self._edge, self._handlers, self._post, self._begin, self._make_stream)
        self._thread = threading.Thread(target=self._run, name="swarm-pure", daemon=True)
        self._pulse = Pulse(PureSigns(self._switch, self._ask), self._streams, self._switch.carriers, self._known)

    async def begin(self) -> None:
        """Listen and join the swarm. Raises DaemonFailed, PeerUnreachable, InvalidInput."""
        self._thread.start()
        await self._ready
        await self._join()
        self._background.spawn(self._stay(), name="initial peers")

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        announced = self.config.announce_maddrs or (self._switch.listening() if self._accepts else ())
        return tuple(own(address, self.peer_id) for address in announced)

    @property
    def _accepts(self) -> bool:
        return self.config.public or self.config.dialled or not self.config.initial_peers

    # ---- streams ----------------------------------------------------------------------------------------------

    async def open_stream(self, peer_id: PeerId, protocol: str, addresses: Sequence[str] = ()) -> PureStream:
        _check_peer_id(peer_id)
        try:
            async with asyncio.timeout(self.config.dial_timeout):
                stream = await self._ask(lambda: self._switch.open(peer_id, protocol, addresses))
        except (PeerUnreachable, TimeoutError) as error:
            raise self._unreachable(peer_id, addresses, error) from error
        assert isinstance(stream, PureStream)
        self._pulse.opened(stream)
        return stream

    async def dial(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        """Connect to a peer unless it is connected. Raises PeerUnreachable, DaemonFailed."""
        _check_peer_id(peer_id)
        try:
            async with asyncio.timeout(self.config.dial_timeout):
                link: Link = await self._ask(lambda: self._switch.connect(peer_id, addresses))
                assert link is not None
        except (PeerUnreachable, TimeoutError) as error:
            raise self._unreachable(peer_id, addresses, error) from error

    def _unreachable(self, peer_id: PeerId, addresses: Sequence[str], error: Exception) -> PeerUnreachable:
        reason = f"no answer for {self.config.dial_timeout:.0f} s" if isinstance(error, TimeoutError) else str(error)
        where = f" at {', '.join(addresses[:2])}" if addresses else ""
        return PeerUnreachable(f"{peer_id} cannot be reached{where}: {reason}").attach(peer=peer_id)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def statistics(self) -> HostStatistics:
        return HostStatistics(len(self._streams), len(self._serving))

    def _known(self) -> Sequence[str]:
        return self.joined

    def _make_stream(self, bridge: Bridge, peer_id: PeerId) -> PureStream:
        return PureStream(bridge, peer_id, self._switch._call, self._edge.frame_timeout, self._streams)

    def _begin(self, stream: EdgeStream, protocol: str) -> None:
        self._serving.spawn(serve_stream(self._handlers[protocol], stream, protocol, log), name="stream")

    # ---- joining ----------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        """Connect to the initial peers; one that answers is enough. Raises PeerUnreachable, InvalidInput."""
        dials = {asyncio.ensure_future(self.dial(p, a)): a for p, a in self._initial().items()}
        pending = set(dials)
        try:
            while pending and not (self.joined and pending == set(dials)):
                timeout = _OTHERS if self.joined else None
                done, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                self.joined += tuple(a for dial in done if dial.exception() is None for a in dials[dial])
        finally:
            await ended(*pending)
        missed = [f"{a[0]}: {dial.exception()}" for dial, a in dials.items() if dial.done() and not _succeeded(dial)]
        if dials and not self.joined:
            raise PeerUnreachable(
                "none of the initial peers answered; check that they run, that their addresses are right (without "
                "p2pd they have to be over TCP) and that this machine may reach them:\n  " + "\n  ".join(missed)
            )
        if missed:
            log.warning("initial peers that did not answer, and are asked again later:\n  %s", "\n  ".join(missed))

    def _initial(self) -> dict[PeerId, list[str]]:
        peers: dict[PeerId, list[str]] = {}
        for address in self.config.initial_peers:
            peer_id = address.rpartition("/p2p/")[2]
            if peer_id != self.peer_id:
                peers.setdefault(peer_id, []).append(address)
        return peers

    async def _stay(self) -> None:
        """Initial peers restart, and networks change."""
        while True:
            await asyncio.sleep(self.config.redial)
            await asyncio.gather(*(self.dial(p, a) for p, a in self._initial().items()), return_exceptions=True)

    # ---- the thread -------------------------------------------------------------------------------------------

    async def _ask(self, work: Callable[[], Any]) -> Any:
        """The result of asynchronous work on trio's loop; it is cancelled there when it is here.

        Raises what it raises, DaemonFailed when that loop has ended.
        """
        if self._ended.is_set():
            raise self._failure()
        answer: asyncio.Future[Any] = self._loop.create_future()
        scope = trio.CancelScope()

        async def run() -> None:
            result, failure = None, None
            try:
                with scope:
                    result = await work()
            except Exception as error:
                failure = error
            self._post(_deliver, answer, result, failure)

        self._switch.start(run)
        try:
            return await answer
        finally:
            if not answer.done() or answer.cancelled():
                self._switch._call(scope.cancel)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._switch.run, lambda: self._post(self._set_ready))
        except BaseException as group:
            error = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
        self._switch.abandon()
        self._post(self._set_ended, error)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop has ended
            self._switch.stop()

    def _set_ready(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _set_ended(self, error: BaseException | None) -> None:
        self._thread.join()  # this was the last thing that it did
        self._failed = error
        self._ended.set()
        if not self._ready.done():
            self._ready.set_exception(error if isinstance(error, DaemonFailed) else self._failure())
        elif not self._closing:
            log.error("%s", self._failure(), exc_info=error)

    def _failure(self) -> DaemonFailed:
        return DaemonFailed(f"this peer is no longer on the network and has to be restarted: {self._failed!r}")

    async def lost(self) -> NoReturn:
        """Wait until the thread ends unasked, after which this host is of no use. Raises DaemonFailed then."""
        await self._ended.wait()
        raise self._failure()

    async def close(self) -> None:
        self._closing = True
        for stream in list(self._streams):
            stream.close()
        await self._background.close()
        await self._pulse.close()
        await self._serving.close()
        await asyncio.sleep(0)
        self._switch.stop()
        if self._thread.ident is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await self._ended.wait()
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()


async def create_pure_host(config: NetworkConfig) -> PureHost:
    """Begin without p2pd and join the swarm.

    Raises DaemonFailed when it cannot listen, PeerUnreachable when no initial peer answers, InvalidInput when the
    identity file or an address is broken.
    """
    check(config)
    identity = Identity.load_or_create(config.identity_path)
    for address in config.announce_maddrs:
        own(address, identity.peer_id)
    host = PureHost(config, identity)
    try:
        await host.begin()
    except BaseException:
        await host.close()
        raise
    return host


def _over_tcp(address: str) -> bool:
    return [name for name, _ in components(address) or ()][1:] == ["tcp"]


def _succeeded(dial: asyncio.Future[None]) -> bool:
    return dial.done() and not dial.cancelled() and dial.exception() is None


def _check_peer_id(peer_id: PeerId) -> None:
    try:
        base58.b58decode(peer_id)
    except ValueError as error:
        raise InvalidInput(f"{peer_id!r} is not a peer id") from error


def _deliver(answer: asyncio.Future[Any], result: Any, failure: Exception | None) -> None:
    if answer.done():
        if isinstance(result, EdgeStream):
            result.close()
    elif failure is not None:
        answer.set_exception(failure)
    else:
        answer.set_result(result)
