"""Where the time of a session's steps went, for a client who asks."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.server.work import Work
from swarm.wire import swarm_pb2 as pb


class Tallies:
    """Of a prompt, which ends with the first output that is wanted, and of what is decoded after it."""

    def __init__(self) -> None:
        self._tallies = {phase: pb.Tally(phase=phase) for phase in (pb.Tally.PREFILL, pb.Tally.DECODE)}
        self._prompted = False

    @property
    def told(self) -> Sequence[pb.Tally]:
        """Those of which there are steps."""
        return [tally for tally in self._tallies.values() if tally.steps]

    def add(self, work: Work, wanted: bool) -> None:
        """A step is over. `wanted`: whether the client wants any of its outputs."""
        if work.taken:
            tally = self._tallies[pb.Tally.DECODE if self._prompted else pb.Tally.PREFILL]
            self._prompted |= wanted
            tally.steps += 1
            tally.positions += work.taken
            tally.queue += work.started - work.submitted
            tally.compute += work.computing
