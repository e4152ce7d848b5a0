"""Yamux as libp2p's Python implementation has it, within bounds."""

from __future__ import annotations

from typing import Any

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux

UNREAD = 1024 * 1024
"""Bytes that a stream may have sent without being read; its window allows half of it."""


class BoundedYamux(Yamux):
    """Yamux that holds its peer to what it may send, and never writes a frame in part."""

    def __init__(self, secured: Any, peer: ID, send_timeout: float, *, initiator: bool = False) -> None:
        super().__init__(secured, peer, is_initiator=initiator)
        self._send_timeout = send_timeout

    def rtt(self) -> float:
        """So short that no window grows for its sake: to 16 MiB it would, for each stream that is not read."""
        return 1e-9

    async def _read_data_body(self, length: int) -> bytes:
        held = max((len(buffer) for buffer in self.stream_buffers.values()), default=0)
        if max(held, length) > UNREAD:
            raise trio.TooSlowError("the peer ignores yamux's windows")
        return await super()._read_data_body(length)

    async def _write_frame(self, data: bytes) -> None:
        """A frame that was interrupted would take the connection's ciphers out of step."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._send_timeout) as patience:
            await super()._write_frame(data)
        if patience.cancelled_caught:
            self.event_shutting_down.set()
            self.new_stream_send_channel.close()
            raise ConnectionClosedError("the peer takes nothing any more")
