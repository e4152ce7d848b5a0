"""What happens to a text in the middle of which a home's network changes or goes away."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from tests.field.homes import Homes, impossible

why = impossible()
pytestmark = [pytest.mark.processes, pytest.mark.soak, pytest.mark.skipif(why is not None, reason=why or "")]

NAT = ["port-restricted"]
ONE, FOUR = ("one",), ("one", "two", "three", "four")
TOKENS = 150


def renumbered(homes: Homes, home: str) -> None:
    homes.lab.renumber(homes.router(home))


def cut(homes: Homes, home: str) -> None:
    """Wi-Fi is gone for twenty seconds."""
    homes.lab.cut(homes.router(home))
    time.sleep(20)
    homes.lab.mend(homes.router(home))


@pytest.mark.parametrize("public", [ONE, FOUR], ids=["forwarded", "direct"])
@pytest.mark.parametrize(
    ("happens", "home", "patience"),
    [(renumbered, "alice", 20.0), (renumbered, "bob", 20.0), (cut, "bob", 25.0)],
    ids=["server-renumbered", "client-renumbered", "client-cut"],
)
def test_a_text_goes_on(
    happens: Callable[[Homes, str], None], home: str, patience: float, public: tuple[str, ...]
) -> None:
    with Homes({"alice": NAT, "bob": NAT}, public) as homes:
        homes.start_server("server", "alice", "0:8")
        homes.wait_until_online("server")
        homes.start_writer("writer", "bob", 20, TOKENS, 0.1)
        homes.said("writer", lambda line: line.get("token") == 60)
        happens(homes, home)
        over = homes.said("writer", lambda line: "token" in line)["at"]
        homes.said("writer", lambda line: line.get("at", 0.0) > over, 120.0)
        said = homes.finished("writer", 180)
        at = [line["at"] for line in said if "token" in line]
        gap = max(later - earlier for earlier, later in itertools.pairwise(at))
        gap -= 20.0 if happens is cut else 0.0
        print(f"\n{happens.__name__}, {home}, {len(public)} public: next token after {gap:.1f} s")
        homes.start_writer("alone", "alice", 20, TOKENS)
        assert homes.finished("alone", 180)[-1]["text"] == said[-1]["text"], "exactly the text"
        assert gap < patience
