"""Through whom a peer joins when it was not told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources

from swarm.errors import InvalidInput
from swarm.net.addresses import joining_fault

VARIABLE = "SWARM_INITIAL_PEERS"
LAN_VARIABLE = "SWARM_LAN"

HOW_TO_BEGIN = f"""no peers to join through: give --initial-peers (or set {VARIABLE}).
To begin a swarm of your own, run on a machine that others can reach:

    swarm-bootstrap --host-maddrs /ip4/0.0.0.0/tcp/31337

It prints the addresses to pass as --initial-peers."""


def packaged_peers() -> tuple[str, ...]:
    """The bootstrap peers that came with the package; may be none."""
    text = resources.files("swarm.net").joinpath("initial_peers.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


def looks_on_lan(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether peers of the local network are looked for, unless it is said otherwise."""
    return environment.get(LAN_VARIABLE, "1").strip().lower() not in ("0", "false", "no", "off")


def initial_peers(given: str | Iterable[str] = (), environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Whom to join: those given, else those in SWARM_INITIAL_PEERS, else those that came with the package.

    `given`: one text or several, each of one multiaddr or more, separated by spaces or commas. The answer may be empty.
    Raises InvalidInput for addresses that nobody can join through.
    """
    peers, source = _split(given), ""
    if not peers:
        peers, source = _split([environment.get(VARIABLE, "")]), f", from {VARIABLE}"
    for peer in peers:
        if fault := joining_fault(peer):
            raise InvalidInput(f"cannot join through {peer!r}{source}: {fault}")
    return peers or packaged_peers()


def _split(texts: str | Iterable[str]) -> tuple[str, ...]:
    texts = (texts,) if isinstance(texts, str) else texts
    return tuple(peer for text in texts for peer in re.split(r"[\s,]+", text) if peer)
