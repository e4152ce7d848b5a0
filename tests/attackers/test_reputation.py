"""What audits have shown counts when a route is chosen."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.integrity import HALF_LIFE, Integrity, Standing, reliability
from swarm.client.routing import Conditions, find_route
from swarm.contract import Contract
from swarm.types import ServerRecord, Span


@pytest.mark.parametrize(
    ("passed", "failed", "expected"),
    [
        pytest.param(0, 0, 0.05, id="nobody knows"),
        pytest.param(1, 0, 0.2236, id="once"),
        pytest.param(9, 0, 0.7411, id="nine times"),
        pytest.param(100, 0, 0.9708, id="always"),
        pytest.param(0, 1, 0.0253, id="failed"),
        pytest.param(4, 4, 0.2514, id="half"),
    ],
)
def test_the_lower_quantile_of_the_posterior(passed: float, failed: float, expected: float) -> None:
    """The expected values are scipy.stats.beta.ppf(0.05, 1 + passed, 1 + failed)."""
    assert reliability(Standing(passed, failed)) == pytest.approx(expected, abs=5e-4)


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_it_rises_with_audits_that_are_passed_and_falls_with_others(passed: float, failed: float) -> None:
    here = reliability(Standing(passed, failed))
    assert 0.0 < here < 1.0
    assert reliability(Standing(passed + 1.0, failed)) >= here >= reliability(Standing(passed, failed + 1.0))


def test_what_was_seen_long_ago_counts_less() -> None:
    integrity = Integrity()
    for _ in range(20):
        integrity.passed(["a"], 0.0, 0.0)
    soon, later = (integrity.costs(["a"], now)["a"] for now in (0.0, 3 * HALF_LIFE))
    assert soon < later < integrity.costs(["new"], 0.0)["new"]
    integrity.doubted(["bad"], 0.0)
    assert integrity.costs(["bad"], 0.0)["bad"] > integrity.costs(["new"], 0.0)["new"]
    assert integrity.unproven(["a", "bad", "new"]) == {"bad", "new"}


def server(peer: str, span: str, decode_ms: float) -> ServerRecord:
    blocks = Span.parse(span)
    contract = Contract("m", blocks, tuple(bytes(8) for _ in blocks))
    return ServerRecord(peer, contract, free_tokens=100, decode_ms=decode_ms)


def test_two_that_nobody_knows_are_not_one_behind_the_other_where_that_can_be() -> None:
    records = [server(f"new{i}", f"{3 * i}:{3 * i + 3}", 1.0) for i in range(3)]
    records += [server(f"old{i}", f"{3 * i}:{3 * i + 3}", 1.5) for i in range(3)]
    unproven = frozenset(record.peer_id for record in records[:3])
    hops = find_route(records, Span(0, 9), Conditions(unproven=unproven)).hops
    assert [hop.peer_id for hop in hops] == ["new0", "old1", "new2"]
    assert not any({one.peer_id, other.peer_id} <= unproven for one, other in itertools.pairwise(hops))
    alone = find_route(records[:3], Span(0, 9), Conditions(unproven=unproven)).hops
    assert [hop.peer_id for hop in alone] == ["new0", "new1", "new2"]
