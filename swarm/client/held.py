"""What a standby route has not been given yet: steps that wait for the first route, and then for its own answers. Pure.

Steps come in the order in which they were issued. Those that the first route has answered are released, so that a
standby computes while the next step is under way elsewhere; a late step is released at once, with all before it. What
is released goes out as few steps as it fits into: who lags catches up as a prompt does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from swarm.wire import swarm_pb2 as pb


class Held:
    """Steps for a standby route."""

    def __init__(self) -> None:
        self._waiting: deque[pb.Step] = deque()
        self._released = 0
        self.nbytes = 0
        """Of hidden states."""

    def __len__(self) -> int:
        return len(self._waiting)

    def hold(self, steps: Iterable[pb.Step]) -> None:
        """Issued after all that is held."""
        for step in steps:
            self._waiting.append(step)
            self.nbytes += len(step.hidden)

    def answered(self, outputs: pb.Step) -> None:
        """The first route has come so far: what it has answered is released."""
        ends = {row.sequence: row.start + row.count for row in outputs.rows}
        for index in range(len(self._waiting) - 1, self._released - 1, -1):
            if any(row.start + row.count <= ends.get(row.sequence, 0) for row in self._waiting[index].rows):
                self._released = index + 1
                return

    def release(self) -> None:
        """Everything, at once."""
        self._released = len(self._waiting)

    def take(self, limit: int) -> list[pb.Step]:
        """All that was released, in steps of about `limit` positions; it is held no more."""
        steps = [self._waiting.popleft() for _ in range(self._released)]
        self._released = 0
        self.nbytes -= sum(len(step.hidden) for step in steps)
        return merged(steps, limit)

    def clear(self) -> None:
        """A new epoch sends what there is by itself."""
        self._waiting.clear()
        self._released = self.nbytes = 0


def merged(steps: Iterable[pb.Step], limit: int) -> list[pb.Step]:
    """Steps that say the same, fewer: those that go on with the one sequence of the step before join it."""
    out: list[pb.Step] = []
    parts: list[list[bytes]] = []
    for step in steps:
        if out and _follows(out[-1], step, limit):
            row, more = out[-1].rows[0], step.rows[0]
            # Wanted are the last ones: with those of the first step come all in between.
            row.want = row.want + more.count if row.want else more.want
            row.count += more.count
            parts[-1].append(step.hidden)
        else:
            out.append(pb.Step(operations=step.operations, rows=step.rows))
            parts.append([step.hidden])
    for step, hidden in zip(out, parts, strict=True):
        step.hidden = b"".join(hidden)
    return out


def _follows(before: pb.Step, step: pb.Step, limit: int) -> bool:
    if step.operations or len(before.rows) != 1 or len(step.rows) != 1:
        return False
    row, more = before.rows[0], step.rows[0]
    return row.sequence == more.sequence and row.start + row.count == more.start and row.count + more.count <= limit
