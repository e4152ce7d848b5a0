"""WebRTC-direct: for all browsers, from all pages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import trio
from libp2p.transport.webrtc._udp_mux import UdpMux
from libp2p.transport.webrtc.connection import WebRTCConnection
from libp2p.transport.webrtc.listener import WebRTCDirectListener

from swarm.net.edge.listening import UNSENT, Arrive
from swarm.net.patches import end_streams, make_writers_wait

log = logging.getLogger(__name__)

SILENCE = 12.0
"""Seconds after which a silent WebRTC connection is dead; browsers check theirs every 3 to 6."""
FIRST_CONTACTS = 2.0
"""New WebRTC connections per second from one ip, after a few at once: it cannot take all places for handshakes."""


class AttentiveMux(UdpMux):
    """libp2p's shared socket, which also remembers when each peer was last heard."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: dict[tuple[str, int], float] = {}

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        super().datagram_received(data, addr)
        place = (addr[0], addr[1])
        if place in self._by_addr:
            self._heard[place] = time.monotonic()
        elif len(self._heard) > 2 * len(self._by_addr) + 64:
            self._heard = {place: at for place, at in self._heard.items() if place in self._by_addr}

    def free(self) -> None:
        """Close the socket, if it is open, from within its loop."""
        if self._transport is not None:
            self._transport.abort()

    def last_heard(self, protocols: Sequence[Any]) -> float:
        """When something came for these last, by the monotonic clock."""
        places = [place for place, protocol in self._by_addr.items() if protocol in protocols]
        return max((self._heard.get(place, 0.0) for place in places), default=0.0)


class Channels:
    """The data channels that a browser opened on one WebRTC connection, under the numbers that libp2p gives them."""

    def __init__(self, connection: Any, mux: AttentiveMux) -> None:
        self._peer_connection = connection
        self._mux = mux
        self._open: dict[int, Any] = {}
        self._count = 0
        connection.on("datachannel", self._add)

    def _add(self, channel: Any) -> None:
        self._open[2 * self._count + 1] = channel
        self._count += 1

    def attach(self, connection: WebRTCConnection, thread: AsyncioThread) -> None:
        """Make writers of `connection` wait for a slow peer, and end it when WebRTC's connection ends."""
        token = trio.lowlevel.current_trio_token()

        async def room() -> None:
            while self._unsent() > UNSENT:
                await asyncio.sleep(0.01)

        def end() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(end_streams, connection)

        def forget(stream: Any) -> None:
            connection.remove_stream(stream.channel_id)
            thread.call(self._drop, stream.channel_id)

        make_writers_wait(connection, room)
        connection.forget = forget  # type: ignore[attr-defined]
        thread.schedule_fire_and_forget(self._watch(end))

    async def _watch(self, end: Callable[[], None]) -> None:
        """Call `end` when the peer has gone. A tab that is closed says nothing."""
        ice = self._peer_connection.sctp.transport.transport._connection
        while self._peer_connection.connectionState == "connected":
            if self._mux.last_heard(ice._protocols) < time.monotonic() - SILENCE:
                break
            await asyncio.sleep(SILENCE / 12)
        end()

    def _unsent(self) -> int:
        return sum(channel.bufferedAmount for channel in self._open.values() if channel.readyState == "open")

    def _drop(self, number: int) -> None:
        channel = self._open.pop(number, None)
        if channel is not None:
            channel.close()


_channels: ContextVar[Channels] = ContextVar("channels")
"""Of the connection whose handshake the present task does."""


class WebRTCListener(WebRTCDirectListener):
    """libp2p's, which also tells of the channels of each connection."""

    async def _bind_listener_sockets(
        self, bridge: Any, host: str, port: int, rtc_cert: Any
    ) -> tuple[AttentiveMux, int]:
        mux, bound = await bridge.run_coro(AttentiveMux.create(host, port))
        bridge.muxes.append(mux)
        return mux, bound

    def abandon(self) -> None:
        """Nothing to do: its socket belongs to the thread of WebRTC."""

    async def _finish_inbound(self, pc: Any, *arguments: Any) -> None:
        _channels.set(Channels(pc, self._mux))  # type: ignore[arg-type]
        await super()._finish_inbound(pc, *arguments)


def arrival(arrive: Arrive, thread: AsyncioThread) -> Callable[[Any], Awaitable[None]]:
    async def arrived(connection: WebRTCConnection) -> None:
        _channels.get().attach(connection, thread)
        await arrive(connection, False)

    return arrived


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """aiortc's tasks fail when their connection has gone, and nobody waits for them."""
    log.debug("within WebRTC: %s", context.get("exception") or context.get("message"))


class AsyncioThread:
    """The event loop of aiortc, in a thread of its own; what libp2p calls an asyncio bridge.

    libp2p's own waits in one of trio's few threads for each answer, so that silent strangers can use them all up.
    """

    def __init__(self) -> None:
        self.muxes: list[AttentiveMux] = []
        """Sockets to be closed when the loop ends."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Unless it runs already."""
        if self._thread is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(_unheard)
            self._thread = threading.Thread(
                target=self._run, args=(self._loop, self.muxes), name="swarm-edge-rtc", daemon=True
            )
            self._thread.start()

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop, muxes: Sequence[AttentiveMux]) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            for mux in muxes:
                mux.free()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    async def run_coro(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` there and wait for it here, on trio's loop; cancelling the wait cancels the work."""
        future = self._submit(work)
        done, token = trio.Event(), trio.lowlevel.current_trio_token()

        def wake(_: Future[Any]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        future.add_done_callback(wake)
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()

    def schedule_fire_and_forget(self, work: Coroutine[Any, Any, Any]) -> None:
        with contextlib.suppress(RuntimeError):
            self._submit(work)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function there, soon, if it still runs."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *arguments)

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._loop is None or self._loop.is_closed():
            work.close()
            raise RuntimeError("the thread of WebRTC has ended")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """End the loop and the thread, soon. May be called twice."""
        if self._loop is not None:
            self.call(self._loop.stop)
