"""The edge: a host for browsers, beside the daemon's host and with the same peer id.

Browsers can dial neither TCP nor QUIC. The edge listens on what they can dial, through libp2p's Python implementation,
which runs on trio: in one thread of its own. Handlers do not notice; they run on asyncio's loop, where `Edge` lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import trio

from swarm.config import EdgeConfig
from swarm.errors import EdgeFailed, PeerUnreachable, SwarmError
from swarm.net.addresses import check_edge
from swarm.net.base import HostStatistics, Stream, StreamHandler, serve_stream
from swarm.net.edge.certificates import Certificates
from swarm.net.edge.quiet import quieten
from swarm.net.edge.stream import EdgeStream
from swarm.net.edge.switch import CLOSING, Switch
from swarm.net.edge.transports import Transports
from swarm.net.identity import Identity
from swarm.tasks import Tasks
from swarm.types import PeerId

log = logging.getLogger(__name__)

quieten("libp2p", "quic", "http3", "trio-websocket", "aioice", "aiortc")

KINDS = ("/webrtc-direct", "/quic-v1/webtransport", "/ws")
_AGAIN = 5.0
"""Seconds until a thread that failed is replaced."""


class Edge:
    """A peer that browsers can dial. It dials nobody; else it satisfies `Host`.

    When its thread fails, which nothing that a peer sends should bring about, it listens anew at the same addresses.
    """

    def __init__(self, identity: Identity, config: EdgeConfig) -> None:
        """Raises InvalidInput for an address that is none, or certificates that are broken."""
        check_edge(config)
        self.identity = identity
        self.config = config
        self._certificates = Certificates(config.identity_path)
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks = Tasks(log)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._closing = False
        self._bound = config.host_maddrs
        self._switch = self._make_switch(config)

    @classmethod
    async def start(cls, identity: Identity, config: EdgeConfig | None = None) -> Edge:
        """Listen at every address of `config`.

        Raises EdgeFailed, naming the address, when one cannot be listened at; InvalidInput for one that is no address
        of the kinds that browsers dial, or for broken certificates.
        """
        edge = cls(identity, config or EdgeConfig())
        edge._start_thread()
        try:
            await edge._ready
        except BaseException:
            await edge.close()
            raise
        return edge

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        """Multiaddrs with certificate hashes as of now; those of WebTransport change every few days."""
        where = self.config.announce_maddrs or self._switch.listening()
        webrtc, webtransport = self._certificates.webrtc, self._certificates
        hashes = {
            "/webrtc-direct": [webrtc.fingerprint_to_multibase()],
            "/webtransport": webtransport.advertised_multibase(),
        }
        return tuple(complete(address, hashes, self.peer_id) for address in where)

    def statistics(self) -> HostStatistics:
        """As in `Host`; it opens no streams itself."""
        return HostStatistics(len(self._tasks), len(self._tasks))

    async def open_stream(self, peer_id: PeerId, protocol: str, addresses: Sequence[str] = ()) -> Stream:
        raise PeerUnreachable(f"the edge dials nobody, neither {peer_id}")

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """As in `Host`. A peer that opens more streams than it may is told BUSY where the protocol has words for it."""
        self._handlers[protocol] = handler

    async def close(self) -> None:
        """End every connection and every handler, and the thread. May be called twice."""
        self._closing = True
        self._switch.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING):
                await self._ended.wait()
        await self._tasks.close()
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()

    # ---- the thread --------------------------------------------------------------------------------------------

    def _make_switch(self, config: EdgeConfig) -> Switch:
        return Switch(
            self.identity,
            config,
            lambda: Transports(self.identity, config, self._certificates),
            self._handlers,
            self._post,
            self._begin,
        )

    def _start_thread(self) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, args=(self._switch,), name="swarm-edge", daemon=True)
        self._thread.start()

    def _run(self, switch: Switch) -> None:
        error: BaseException | None = None
        try:
            trio.run(switch.run, lambda: self._post(self._set_ready))
        except BaseException as group:
            error = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
        switch.abandon()
        self._post(self._set_ended, error)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on asyncio's loop; when that has ended nobody needs the edge any more."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._switch.stop()

    def _set_ready(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _set_ended(self, error: BaseException | None) -> None:
        self._thread.join()  # this was the last thing that it did
        self._ended.set()
        if not self._ready.done():
            self._ready.set_exception(error if isinstance(error, SwarmError) else EdgeFailed(f"no edge: {error!r}"))
        elif not self._closing:
            log.error("browsers were not served any more; the edge begins again", exc_info=error)
            self._bound = self._switch.bound() or self._bound
            self._switch = self._make_switch(replace(self.config, host_maddrs=self._bound))
            self._loop.call_later(_AGAIN, self._begin_again)

    def _begin_again(self) -> None:
        if not self._closing:
            self._start_thread()

    # ---- streams -----------------------------------------------------------------------------------------------

    def _begin(self, stream: EdgeStream, protocol: str) -> None:
        self._tasks.spawn(serve_stream(self._handlers[protocol], stream, protocol, log), name="edge stream")


def complete(address: str, hashes: dict[str, list[str]], peer_id: PeerId) -> str:
    """An address with what a dialer must know: hashes of certificates, by the ending they are for, and a peer id."""
    for kind, known in hashes.items():
        if address.endswith(kind):
            address += "".join(f"/certhash/{certhash}" for certhash in known)
    return f"{address}/p2p/{peer_id}"
