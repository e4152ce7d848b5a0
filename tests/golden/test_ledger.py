"""The ledger comes to the answers that are written down, and to none that a model too simple to be wrong does not."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden.ledger_runs import FOLDER, REFUSALS, SETTINGS, Author, Player, cost_of


def run_of(name: str) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return run


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_is_written_down_is_replayed(name: str) -> None:
    run = run_of(name)
    player = Player(run)
    for number, event in enumerate(run["events"]):
        assert player.play(event) == event["answer"], f"event {number}"
        assert player.state == event["after"], f"event {number}"


def test_the_runs_show_everything_that_can_happen() -> None:
    events = [event for name in SETTINGS for event in run_of(name)["events"]]
    kinds = Counter(event["event"] for event in events)
    assert min(kinds[kind] for kind in ("accept", "computed", "sent", "prepare", "resume", "drop_history")) > 10
    refused = Counter(event["answer"]["refused"] for event in events if "refused" in (event["answer"] or ()))
    assert set(refused) == set(REFUSALS.values())
    prepared = [event["answer"]["changes"] for event in events if event["event"] == "prepare"]
    assert {operation[0] for changes in prepared for operation in changes["operations"]} == {"FORK", "FREE"}
    assert any(changes["truncate"] for changes in prepared)
    assert any(event["answer"]["rows"] for event in events if event["event"] == "resume" and "rows" in event["answer"])


class Labels:
    """What each sequence holds, position by position: every position that was ever accepted has a label of its own."""

    def __init__(self) -> None:
        self.received: dict[int, list[int]] = {}
        self.computed: dict[int, list[int]] = {}
        self.last = 0

    @staticmethod
    def take(table: dict[int, list[int]], operations: list[Any], rows: list[Any], labels: list[list[int]]) -> None:
        for kind, source, target, length in operations:
            kept = table[source]
            if kind != "FREE":
                table[target] = kept[:length]
            if kind != "FORK":
                del table[source]
        for (sequence, start, _, _), new in zip(rows, labels, strict=True):
            assert len(table.get(sequence, [])) == start, "nothing is left out and nothing comes twice"
            table[sequence] = [*table.get(sequence, []), *new]


@given(st.sampled_from(list(SETTINGS)), st.randoms(use_true_random=False), st.integers(1, 60))
@settings(max_examples=60)
def test_what_is_held_is_what_was_accepted_and_takes_what_is_counted(name: str, rng: Any, count: int) -> None:
    setting = SETTINGS[name]
    player, labels, waiting = Player(setting), Labels(), list[Any]()
    author, cost = Author(player, rng), cost_of(setting["cost"])
    for _ in range(count):
        event = author.draw()
        before = player.state
        answer = player.play(event)
        kind = event["event"]
        if kind == "accept" and "refused" in answer:
            assert player.state == before, "nothing of a step that is refused is taken"
        elif kind == "accept" and answer != "nothing":
            new = []
            for row in answer["rows"]:
                new.append(list(range(labels.last, labels.last + row[2])))
                labels.last += row[2]
            labels.take(labels.received, answer["operations"], answer["rows"], new)
            waiting.append((answer["operations"], answer["rows"], new))
        elif kind == "computed":
            labels.take(labels.computed, *waiting.pop(0))
        elif kind in ("prepare", "resume", "forget"):
            waiting.clear()
            reconciled(labels, player)
        state = player.state
        assert state["received"] == {str(s): len(held) for s, held in sorted(labels.received.items())}
        assert state["computed"] == {str(s): len(held) for s, held in sorted(labels.computed.items())}
        assert state["kv_bytes"] <= setting["budget"]
        held = sum(cost(len(held)) for held in labels.computed.values())
        assert held <= state["kv_bytes"], "whatever is held is counted"
        assert held == state["kv_bytes"] or player.waiting


def reconciled(labels: Labels, player: Player) -> None:
    """After an epoch has begun: what is held is known by the ledger alone, and is all that counts as received."""
    lengths = player.ledger.lengths
    assert player.ledger.received == lengths
    before = {s: labels.computed.get(s, [])[:length] for s, length in lengths.items()}
    labels.computed = {s: [*held, *[-1] * (lengths[s] - len(held))] for s, held in before.items()}
    labels.received = {s: list(held) for s, held in labels.computed.items()}
