"""What a session was given, by which route, as long as it may be audited. Pure."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable

from swarm.client.claim import Claim
from swarm.client.replay import Past
from swarm.client.sequences import Sequences
from swarm.types import PeerId, Route
from swarm.wire import swarm_pb2 as pb

MOST_BYTES = 64 << 20
"""Of outputs that are kept; the oldest are forgotten first."""
MOST_SEQUENCES = 16
"""Of a session; of more, as beams and large batches have, the first are looked at."""


class Outputs:
    """Outputs of a session's sequences."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._row_bytes = sequences.row_bytes
        """Of a position without places: sessions whose positions have places of their own are not audited."""
        self._given: dict[int, dict[int, tuple[bytes, Route]]] = {}
        self._order: OrderedDict[tuple[int, int], None] = OrderedDict()

    def operate(self, operations: Iterable[pb.Operation]) -> None:
        """Fork, move and free, as the sequences do."""
        for operation in operations:
            source = self._given.get(operation.source, {})
            if operation.kind != pb.Operation.FREE and len(self._given) <= MOST_SEQUENCES:
                for position, (row, route) in source.items():
                    if position < operation.length:
                        self._keep(operation.target, position, row, route)
            if operation.kind != pb.Operation.FORK:
                for position in self._given.pop(operation.source, {}):
                    del self._order[operation.source, position]

    def note(self, step: pb.Step, route: Route) -> int:
        """Outputs came. Returns how many of them are new."""
        begin, size, news = 0, self._row_bytes, 0
        if self._sequences.layout.planes:
            return 0
        for row in step.rows:
            there = row.sequence in self._given or len(self._given) < MOST_SEQUENCES
            for position in range(row.start, row.start + row.count):
                if there and position not in self._given.get(row.sequence, {}):
                    self._keep(row.sequence, position, step.hidden[begin : begin + size], route)
                    news += 1
                begin += size
        return news

    def _keep(self, sequence: int, position: int, row: bytes, route: Route) -> None:
        self._given.setdefault(sequence, {})[position] = row, route
        self._order[sequence, position] = None
        while len(self._order) * self._row_bytes > MOST_BYTES:
            (oldest, place), _ = self._order.popitem(last=False)
            del self._given[oldest][place]

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return max((self._sequences.length(sequence) for sequence in self._given), default=0)

    def claim(self, rng: random.Random) -> Claim | None:
        """One sequence's outputs of one route, by chance; None: there are none."""
        groups: defaultdict[tuple[int, Route], list[int]] = defaultdict(list)
        for sequence, rows in self._given.items():
            for position, (_, route) in rows.items():
                if position:
                    groups[sequence, route].append(position)
        if not groups or self._sequences.layout.planes:
            return None
        sequence, route = rng.choices(list(groups), [len(positions) for positions in groups.values()])[0]
        positions = sorted(groups[sequence, route])
        inputs = self._sequences.inputs(sequence, 0, positions[-1] + 1)
        past = Past(inputs, positions[0], self._row_bytes)
        if past.length <= positions[-1]:
            return None
        return Claim(sequence, past, positions, b"".join(self._given[sequence][p][0] for p in positions), route)

    def by(self, peers: Collection[PeerId]) -> tuple[int, int] | None:
        """Sequence and position of the first output of a route with one of these; None: there is none."""
        for sequence, rows in self._given.items():
            wrong = [p for p, (_, route) in rows.items() if any(hop.peer_id in peers for hop in route.hops)]
            if wrong:
                return sequence, min(wrong)
        return None
