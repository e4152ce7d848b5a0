"""When a server that runs moves, and that moving comes to an end."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.contract import Contract
from swarm.server.placement import strength_of
from swarm.server.rebalancing import better_span
from swarm.types import ServerRecord, ServerState, Span

BLOCKS = 12


def server(name: str, span: str, decode_ms: float = 10.0, state: ServerState = ServerState.ONLINE) -> ServerRecord:
    return ServerRecord(name, Contract("model", Span.parse(span)), state, decode_ms=decode_ms)


def moved(own: ServerRecord, others: list[ServerRecord], seed: int = 0) -> str | None:
    span = better_span(own, others, [1] * BLOCKS, len(own.span), random.Random(seed))
    return None if span is None else str(span)


@pytest.mark.parametrize(
    ("situation", "own", "others", "expected"),
    [
        ("blocks that nobody has", server("me", "0:6"), [server("a", "0:6"), server("b", "0:6")], "6:12"),
        ("alone with its blocks", server("me", "0:6"), [], None),
        ("nobody else has them yet", server("me", "0:6"), [server("a", "0:6", state=ServerState.JOINING)], None),
        ("who leaves does not count", server("me", "0:6"), [server("a", "0:6", state=ServerState.DRAINING)], None),
        (
            "somebody is about to have what lacks",
            server("me", "0:6"),
            [server("a", "0:6"), server("b", "0:6"), server("c", "6:12", state=ServerState.JOINING)],
            "6:12",
        ),
        ("balanced", server("me", "0:6"), [server("a", "6:12")], None),
        (
            "two and two",
            server("me", "0:6"),
            [server("a", "0:6"), server("b", "6:12"), server("c", "6:12")],
            None,
        ),
        (
            "enough of both, but slow there",
            server("me", "0:6"),
            [*(server(f"a{n}", "0:6") for n in range(3)), server("b", "6:12", 50), server("c", "6:12", 50)],
            "6:12",
        ),
        (
            "a little slower there is not worth it",
            server("me", "0:6", 10),
            [*(server(f"a{n}", "0:6") for n in range(2)), *(server(f"b{n}", "6:12", 10.5) for n in range(3))],
            None,
        ),
    ],
)
def test_a_server_moves_where_it_is_needed_more(
    situation: str, own: ServerRecord, others: list[ServerRecord], expected: str | None
) -> None:
    assert moved(own, others) == expected, situation


spans = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 6), st.floats(1, 100)).map(
    lambda drawn: (Span(drawn[0], min(drawn[0] + drawn[1], BLOCKS)), drawn[2])
)


@settings(max_examples=200, deadline=None)
@given(st.lists(spans, min_size=1, max_size=14), st.integers(0, 1 << 16))
def test_no_move_takes_from_a_block_its_last_server_and_moving_ends(drawn: list[tuple[Span, float]], seed: int) -> None:
    rng = random.Random(seed)
    swarm = [
        ServerRecord(f"{place:02}", Contract("model", span), decode_ms=decode_ms)
        for place, (span, decode_ms) in enumerate(drawn)
    ]
    moves = 0
    while True:
        before = strength_of(swarm, BLOCKS)
        for place in rng.sample(range(len(swarm)), len(swarm)):
            own, others = swarm[place], swarm[:place] + swarm[place + 1 :]
            span = better_span(own, others, [1] * BLOCKS, len(own.span), rng)
            if span is not None:
                swarm[place] = replace(own, contract=replace(own.contract, span=span))
                break
        else:
            break
        after = strength_of(swarm, BLOCKS)
        assert ((after.servers > 0) >= (before.servers > 0)).all()
        assert after.servers.min() >= min(before.servers.min(), 2)
        moves += 1
        assert moves <= 20 * len(swarm), "it does not come to rest"
