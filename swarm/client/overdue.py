"""Notices when the outputs of a lane are late: so late that a spare lane should race, then that it is looked into."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarm.client.chunks import stage
from swarm.client.deadlines import Deadlines, Pace, expected_seconds
from swarm.client.epoch import Epochs
from swarm.client.streams import EpochStreams
from swarm.config import ClientConfig

INSTANT = 0.001
"""Seconds by which a timer may come early."""


class Overdue:
    """The timer of one lane, as long as outputs are to come on it.

    `slow`: called once when outputs are later than they used to be; `look`: called with the streams, and after how many
    seconds of silence a hop is dead, again and again while they are missing.
    """

    def __init__(
        self,
        epochs: Epochs,
        config: ClientConfig,
        slow: Callable[[], None],
        look: Callable[[EpochStreams, float], None],
    ) -> None:
        self.late = False
        """Whether outputs are later than they used to be."""
        self.last_sign = 0.0
        """When outputs came last, or began to be awaited."""
        self._epochs = epochs
        self._config = config
        self._slow = slow
        self._look = look
        self._pace = Pace()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Of a new epoch, which sends again what there is."""
        self._pace.begin()
        self.late = False
        self.sent()

    def sent(self) -> None:
        """Outputs are to come from now on."""
        self.last_sign = _now()
        self.watch()

    def came(self, streams: EpochStreams) -> None:
        """Outputs came."""
        self._pace.note(_now() - self.last_sign, self._under_way(streams))
        self.last_sign = _now()
        self.late = False
        streams.unconfirmed = 0
        self.watch()

    def watch(self) -> None:
        """Set the timer by what is awaited now."""
        self.stop()
        streams = self._epochs.streams
        if streams is None or not streams.given.awaited:
            return
        deadlines, quiet = self._deadlines(streams), _now() - self.last_sign
        if quiet < deadlines.late:
            patience = (deadlines.race if quiet < deadlines.race else deadlines.late) - quiet
        else:
            patience = deadlines.probe_interval
        self._timer = asyncio.get_running_loop().call_later(max(patience, INSTANT), self._rings)

    def stop(self) -> None:
        """Nothing is awaited."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rings(self) -> None:
        """A moment has come for which outputs should have been there."""
        streams, self._timer = self._epochs.streams, None
        if streams is None or not streams.given.awaited:
            return
        deadlines, quiet = self._deadlines(streams), _now() - self.last_sign + INSTANT
        if quiet >= deadlines.race and not self.late:
            self.late = True
            self._slow()
        if quiet >= deadlines.late:
            self._look(streams, deadlines.silence)
        self.watch()

    def _deadlines(self, streams: EpochStreams) -> Deadlines:
        """By when the outputs that are to come should be there."""
        links = streams.links
        expected = expected_seconds([stage(link.hop) for link in links], [link.rtt_ms or 0.0 for link in links])
        return self._pace.deadlines(self._under_way(streams), expected, self._config)

    def _under_way(self, streams: EpochStreams) -> int:
        """Positions that were sent since the last outputs came."""
        return streams.unconfirmed // self._epochs.row_bytes


def _now() -> float:
    return asyncio.get_running_loop().time()
