"""What the live view shows of servers that come and go."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from swarm.cli.watch import Seen, bar, picture
from swarm.contract import Contract
from swarm.types import ModelInfo, ServerRecord, Span

MODEL = ModelInfo("k", "model", 8, 16)


def server(name: str, first: int, last: int) -> ServerRecord:
    return ServerRecord(f"peer-{name}", Contract("k", Span(first, last), (b"12345678",) * (last - first)), name=name)


def shown(seen: Seen, records: list[ServerRecord], now: float) -> str:
    out = StringIO()
    seen.look(records, MODEL.blocks, now)
    Console(file=out, width=100).print(picture(MODEL, records, seen, now))
    return out.getvalue()


def test_servers_that_come_and_go_are_said_to_for_a_while() -> None:
    seen = Seen()
    a, b, c = server("alice", 0, 4), server("bob", 4, 8), server("carol", 4, 8)
    first = shown(seen, [a, b], 0.0)
    assert "2 servers online" in first
    assert "new" not in first
    assert "carol new" in shown(seen, [a, b, c], 10.0)
    later = shown(seen, [a], 20.0)
    assert "blocks 4:8 of model have no server since 0 s" in later
    assert "bob has left" in later
    assert "since 30 s" in shown(seen, [a], 50.0)
    assert "has left" not in shown(seen, [a], 51.0)
    assert "no server" not in shown(seen, [a, b], 60.0)


def test_the_bar_has_a_cell_for_each_block() -> None:
    assert bar([0, 1, 2, 9]).plain == "░███"
    assert {str(span.style) for span in bar([0, 1, 2, 9]).spans} == {"red", "yellow", "green", "bright_green"}
