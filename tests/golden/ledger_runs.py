"""Runs of a ledger as plain JSON: played event by event, and written from seeded random ones. See ledger/README.md."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swarm.errors import ContextTooLong, Gap, LimitExceeded, ServerBusy, SwarmError
from swarm.server.ledger import Accepted, Ledger, SessionLimits
from swarm.server.manifest import Changes
from swarm.wire import swarm_pb2 as pb

FOLDER = Path(__file__).parent / "ledger"
EVENTS = 300
REFUSALS = {Gap: "GAP", ContextTooLong: "TOO_LONG", LimitExceeded: "LIMIT", ServerBusy: "BUSY"}
KIND = pb.Operation.Kind

Event = dict[str, Any]


class Player:
    """A ledger to which events happen. `setting`: the head of a file."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self.budget = setting["budget"]
        self.ledger = Ledger(
            cost=cost_of(setting["cost"]),
            row_bytes=1,
            can_rollback=setting["rollback"],
            limits=SessionLimits(**setting["limits"]),
        )
        self.waiting: deque[Accepted] = deque()
        self.done: deque[Accepted] = deque()

    def play(self, event: Event) -> Any:
        """Let it happen. Returns the answer."""
        try:
            return getattr(self, event["event"])(event)
        except SwarmError as error:
            return {"refused": REFUSALS[type(error)]}

    @property
    def state(self) -> dict[str, Any]:
        """What is held now."""
        ledger = self.ledger
        return {
            "received": named(ledger.received),
            "computed": named(ledger.lengths),
            "forwarded": named(ledger.forwarded),
            "kv_bytes": ledger.kv_bytes,
            "history_bytes": ledger.history_bytes,
        }

    def room(self, wanted: int) -> bool:
        return self.ledger.kv_bytes + wanted <= self.budget

    def accept(self, event: Event) -> Any:
        operations = [
            pb.Operation(kind=KIND.Value(kind), source=source, target=target, length=length)
            for kind, source, target, length in event["operations"]
        ]
        rows = [pb.Rows(sequence=s, start=start, count=count, want=want) for s, start, count, want in event["rows"]]
        accepted = self.ledger.accept(operations, rows, self.room)
        if accepted is None:
            return "nothing"
        self.waiting.append(accepted)
        return {
            "operations": [plain(operation) for operation in accepted.operations],
            "rows": [[row.sequence, row.start, row.count, row.want] for row in accepted.rows],
            "ended": named(accepted.ended),
        }

    def computed(self, event: Event) -> None:
        accepted = self.waiting.popleft()
        output = bytes(sum(row.count for row in accepted.rows))
        self.ledger.computed(accepted, accepted.operations, accepted.rows, output)
        self.done.append(accepted)

    def sent(self, event: Event) -> None:
        accepted = self.done.popleft()
        self.ledger.sent(pb.Step(operations=accepted.operations, rows=accepted.rows))

    def prepare(self, event: Event) -> Any:
        self.waiting.clear()
        self.done.clear()
        alive = [
            pb.Sequence(id=sequence, length=length, parent=parent, parent_length=shared)
            for sequence, length, parent, shared in event["sequences"]
        ]
        changes = changed(self.ledger.prepare(alive, self.room))
        return {"changes": changes, "held": sorted([h.sequence, h.length, h.history] for h in self.ledger.have())}

    def resume(self, event: Event) -> Any:
        self.waiting.clear()
        self.done.clear()
        changes = changed(self.ledger.cut([pb.Position(sequence=s, position=p) for s, p in event["cuts"]]))
        self.ledger.begin()
        wants, rows = dict(event["wants"]), []
        for sequence, start in event["replays"]:
            for row, output in self.ledger.replay(sequence, start, wants.get(sequence, 1 << 24)):
                assert len(output) == row.count
                rows.append([row.sequence, row.start, row.count, row.want])
        return {"changes": changes, "rows": rows}

    def drop_history(self, event: Event) -> None:
        self.ledger.drop_history()

    def forget(self, event: Event) -> list[int]:
        self.waiting.clear()
        self.done.clear()
        return sorted(self.ledger.forget())


def cost_of(setting: dict[str, int]) -> Callable[[int], int]:
    """Bytes of a sequence of so many positions."""
    fixed, position, room = setting["fixed"], setting["position"], setting["room"]
    return lambda length: fixed + position * (-(-length // room) * room) if length > 0 else 0


def named(table: Any) -> dict[str, int]:
    """With keys as JSON has them, in order."""
    return {str(sequence): table[sequence] for sequence in sorted(table)}


def plain(operation: pb.Operation) -> list[Any]:
    """`[kind, source, target, length]`."""
    return [KIND.Name(operation.kind), operation.source, operation.target, operation.length]


def changed(changes: Changes) -> dict[str, Any]:
    """Operations, and truncations; frees in order of their sequences."""
    forks = [plain(o) for o in changes.operations if o.kind != pb.Operation.FREE]
    frees = sorted(plain(o) for o in changes.operations if o.kind == pb.Operation.FREE)
    return {"operations": forks + frees, "truncate": sorted(map(list, changes.truncations))}


# ---- writing --------------------------------------------------------------------------------------------------


class Author:
    """Draws what may happen next to a player: what a good client says, and what a bad one might."""

    def __init__(self, player: Player, rng: random.Random) -> None:
        self.player = player
        self.rng = rng

    def draw(self) -> Event:
        kinds = ["accept"] * 20 + ["prepare", "resume", "drop_history"] + ["forget"] * (self.rng.random() < 0.2)
        kinds += ["computed"] * 15 if self.player.waiting else []
        kinds += ["sent"] * 12 if self.player.done else []
        kind = self.rng.choice(kinds)
        return {"event": kind, **getattr(self, kind, dict)()}

    def accept(self) -> Event:
        rng, held = self.rng, self.player.ledger.received
        operations = [self.operation() for _ in range(rng.choice([0, 0, 0, 0, 1, 2]))]
        rows = []
        for sequence in rng.sample(range(6), rng.choice([0, 1, 1, 1, 2])):
            start = max(held.get(sequence, 0) + rng.choice([0, 0, 0, 0, 0, 0, -1, -3, 2]), 0)
            count = rng.choice([1, 1, 2, 5, 9])
            rows.append([sequence, start, count, rng.randint(0, count)])
        return {"operations": operations, "rows": rows}

    def operation(self) -> list[Any]:
        source, target = self.rng.sample(range(6), 2)
        kind = self.rng.choice(["FORK", "MOVE", "FREE"])
        return [kind, source, *((0, 0) if kind == "FREE" else (target, self.rng.randint(0, 12)))]

    def prepare(self) -> Event:
        rng, held = self.rng, self.player.ledger.lengths
        alive = []
        for sequence in sorted({*held, *rng.sample(range(6), 2)}):
            if rng.random() < 0.8:
                length = max(held.get(sequence, 5) + rng.choice([0, 0, 0, 3, -2]), 0)
                alive.append([sequence, length, rng.randrange(6), rng.choice([0, 0, 2, length])])
        return {"sequences": alive}

    def resume(self) -> Event:
        rng, ledger = self.rng, self.player.ledger
        held = ledger.lengths
        some = [sequence for sequence in sorted(held) if rng.random() < 0.6]
        cuts = [[sequence, rng.randint(0, held[sequence])] for sequence in some if rng.random() < 0.3]
        cut, replays = dict(cuts), []
        for sequence in some:
            first, last = ledger.history[sequence].first, cut.get(sequence, held[sequence])
            gone = sequence in cut and (last == 0 or not ledger.can_rollback)
            if first <= last and not gone:
                replays.append([sequence, rng.randint(first, last)])
        if rng.random() < 0.1 and some:
            replays.append([9, 0])
        return {"cuts": cuts, "replays": replays, "wants": [[s, rng.randint(0, held[s])] for s in some]}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {
        "rollback": True,
        "limits": {"sequences": 8, "positions": 0, "cache_bytes": 1_000_000},
        "cost": {"fixed": 0, "position": 1, "room": 1},
        "budget": 1_000_000,
    },
    "tight": {
        "rollback": True,
        "limits": {"sequences": 4, "positions": 14, "cache_bytes": 220},
        "cost": {"fixed": 10, "position": 2, "room": 4},
        "budget": 110,
    },
    "forgetless": {
        "rollback": False,
        "limits": {"sequences": 5, "positions": 60, "cache_bytes": 900},
        "cost": {"fixed": 100, "position": 1, "room": 1},
        "budget": 900,
    },
}


def write(name: str, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """A run of `EVENTS` events."""
    player = Player(setting)
    author, events = Author(player, random.Random(seed)), []
    for _ in range(EVENTS):
        event = author.draw()
        events.append({**event, "answer": player.play(event), "after": player.state})
    return {"name": name, **setting, "events": events}


def main() -> None:
    """Write all files anew."""
    for seed, (name, setting) in enumerate(SETTINGS.items()):
        run = write(name, setting, seed)
        head = json.dumps({key: value for key, value in run.items() if key != "events"}, indent=1)[:-2]
        events = ",\n".join("  " + json.dumps(event) for event in run["events"])
        (FOLDER / f"{name}.json").write_text(f'{head},\n "events": [\n{events}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
