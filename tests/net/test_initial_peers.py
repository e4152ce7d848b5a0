"""Through whom a peer joins."""

from __future__ import annotations

import pytest

from swarm.errors import InvalidInput
from swarm.net.initial_peers import initial_peers, packaged_peers

ONE = "/ip4/203.0.113.5/tcp/31337/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
TWO = "/dns4/swarm.example/tcp/31337/p2p/12D3KooWHSLXoZz1tqZ5tFQ5Sw6ZWZ7C2J3HjhqkVhmJkqJgRJ7N"


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ([ONE], {}, (ONE,)),
        ([ONE, TWO], {"SWARM_INITIAL_PEERS": "ignored"}, (ONE, TWO)),
        ([f"{ONE},{TWO}"], {}, (ONE, TWO)),
        (ONE, {}, (ONE,)),
        (f"{ONE} {TWO}", {}, (ONE, TWO)),
        ([], {"SWARM_INITIAL_PEERS": f"{ONE}, {TWO}"}, (ONE, TWO)),
        ([], {"SWARM_INITIAL_PEERS": f"{ONE}\n{TWO}\n"}, (ONE, TWO)),
        ([], {}, packaged_peers()),
    ],
)
def test_given_before_environment_before_packaged(
    given: str | list[str], environment: dict[str, str], expected: tuple[str, ...]
) -> None:
    assert initial_peers(given, environment) == expected


@pytest.mark.parametrize("wrong", ["203.0.113.5:31337", "/ip4/203.0.113.5/tcp/31337", "/p2p/12D3"])
def test_what_is_no_address_of_a_peer_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput, match="should look like"):
        initial_peers([wrong], {})
