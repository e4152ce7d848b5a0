"""What a route was given in this epoch, and which of its outputs are still to come. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from swarm.wire import swarm_pb2 as pb


class Given:
    """`lengths`: how far each sequence must come at every hop; `awaited`: up to where outputs are to come.

    At first that is what the epoch began with: `lengths`, and the first output of each that is `wanted`, its length if
    none is.
    """

    def __init__(self, lengths: Mapping[int, int], wanted: Mapping[int, int]) -> None:
        self.lengths = dict(lengths)
        self.awaited = {s: length for s, length in lengths.items() if wanted.get(s, length) < length}
        self._come: dict[int, int] = {}

    def put(self, step: pb.Step) -> None:
        """A step was sent."""
        for operation in step.operations:
            if operation.kind != pb.Operation.FREE and operation.source in self.lengths:
                self.lengths[operation.target] = min(self.lengths[operation.source], operation.length)
            if operation.kind != pb.Operation.FORK:
                self.lengths.pop(operation.source, None)
                self._come.pop(operation.source, None)
                self.awaited.pop(operation.source, None)
        for row in step.rows:
            end = row.start + row.count
            self.lengths[row.sequence] = max(end, self.lengths.get(row.sequence, 0))
            if row.want:
                self.awaited[row.sequence] = max(end, self.awaited.get(row.sequence, 0))

    def came(self, outputs: pb.Step) -> bool:
        """Outputs arrived. False if none of them was still to come."""
        news = False
        for row in outputs.rows:
            end, awaited = row.start + row.count, self.awaited.get(row.sequence)
            if awaited is None or end <= self._come.get(row.sequence, 0):
                continue
            news, self._come[row.sequence] = True, end
            if end >= awaited:
                del self.awaited[row.sequence]
        return news
