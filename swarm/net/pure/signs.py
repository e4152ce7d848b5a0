"""Signs of life over the connections of a host without p2pd."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from swarm.net.pulse import any_accepts
from swarm.net.pure.switch import PureSwitch
from swarm.types import PeerId


class PureSigns:
    """As `pulse.Line`. `ask` runs asynchronous work on trio's loop."""

    def __init__(self, switch: PureSwitch, ask: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._switch = switch
        self._ask = ask

    async def sign_of_life(self, peer_id: PeerId) -> None:
        """As in `Line`."""
        await self._ask(lambda: self._switch.sign_of_life(peer_id))

    async def online(self, addresses: Sequence[str]) -> bool:
        """As in `Line`: over TCP alone."""
        return await any_accepts(addresses)

    async def drop(self, peer_id: PeerId) -> None:
        """As in `Line`."""
        await self._ask(lambda: self._switch.drop(peer_id))
