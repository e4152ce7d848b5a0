"""How long a pass waits for company."""

from __future__ import annotations

import pytest

from swarm.server.batching import HOLD_SHARE, patience


@pytest.mark.parametrize(
    ("waiting", "active", "held"),
    [
        (1, 0, False),  # nobody has decoded here lately
        (1, 1, False),  # alone
        (1, 2, False),  # one here, one elsewhere: both hops are busy
        (1, 3, True),
        (1, 8, True),
        (3, 8, True),
        (4, 8, False),
        (8, 8, False),
    ],
)
def test_a_pass_waits_until_half_of_the_active_sessions_are_there(waiting: int, active: int, held: bool) -> None:
    assert patience(waiting, active, 0.05) == (HOLD_SHARE * 0.05 if held else 0.0)


def test_before_any_pass_was_timed_nothing_waits() -> None:
    assert patience(1, 8, 0.0) == 0.0
