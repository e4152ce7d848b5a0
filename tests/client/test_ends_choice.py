"""Which server is asked for the ends of a model."""

from __future__ import annotations

from swarm.client.ends_choice import agreed, nearest, offering
from swarm.contract import Contract
from swarm.types import EndsRecord, ServerRecord, ServerState, Span

RIGHT, OTHER = b"a" * 8, b"b" * 8


def record(name: str, ends: EndsRecord | None, dtype: str = "float32", **more: ServerState) -> ServerRecord:
    return ServerRecord(name, Contract("model", Span(0, 2), (bytes(8),) * 2, dtype=dtype), ends=ends, **more)


def having(name: str, head_ms: float = 1.0, mark: bytes = RIGHT, **more: ServerState) -> ServerRecord:
    return record(name, EndsRecord(mark, 100, head_ms), **more)


def test_only_those_are_asked_that_serve_these_ends_now() -> None:
    records = [
        having("a"),
        record("b", None),
        record("c", EndsRecord(RIGHT, 100, 1.0), "bfloat16"),
        having("d", state=ServerState.DRAINING),
        record("e", EndsRecord(RIGHT, 99, 1.0)),
    ]
    assert [each.peer_id for each in offering(records, "float32", 100)] == ["a"]


def test_the_ends_are_those_of_most_servers_and_stay_these() -> None:
    records = [having("a"), having("b"), having("c", mark=OTHER)]
    assert agreed(records, None) == RIGHT
    assert agreed(records[2:], None) == OTHER
    assert agreed(records, OTHER) == OTHER
    assert agreed([], None) is None


def test_who_answers_soonest_is_asked_and_kept_while_that_is_worth_it() -> None:
    records = [having("a", 5.0), having("b", 1.0), having("c", 1.0, OTHER)]

    def chosen(seen: dict[str, float], avoided: tuple[str, ...] = (), last: str | None = None) -> str | None:
        found = nearest(records, RIGHT, seen, {"a": 10.0, "b": 10.0, "c": 0.1}, avoided, last)
        return None if found is None else found.peer_id

    assert chosen({}) == "b"
    assert chosen({"b": 40.0}) == "a"
    assert chosen({}, last="a") == "a"
    assert chosen({"a": 40.0}, last="a") == "b"
    assert chosen({}, ("b",)) == "a"
    assert chosen({}, ("a", "b")) is None
