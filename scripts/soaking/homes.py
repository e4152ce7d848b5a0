"""A soak in homes behind NATs of several kinds: lines are cut, lose packets and get other addresses, too."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from scripts.soaking.faults import Kind, Mend, Servers
from scripts.soaking.machine import Scene
from tests.field.homes import LINE, Homes, impossible

__all__ = ["homes", "impossible"]

PUBLIC = ("one", "two", "three", "four")
"""Bootstrap peers, which forward; so many that holes can be punched."""
PORT_RESTRICTED, SYMMETRIC = ["port-restricted"], ["symmetric"]
SERVERS = {
    "a1": (PORT_RESTRICTED, "0:4"),
    "a2": (SYMMETRIC, "0:4"),
    "b1": (PORT_RESTRICTED, "4:8"),
    "b2": (["port-restricted", "symmetric"], "4:8"),
}
"""The NATs of each server's home, and its blocks."""
CLIENTS = (PORT_RESTRICTED, SYMMETRIC)
"""Those of the clients' homes, by turns."""
PAUSE = (5.0, 15.0)
"""Seconds between two faults: a server that was killed takes twenty or more to be reached again."""
WIFI = (20.0, 20.0)
BLINK = (2.0, 8.0)
BAD_LINE = (10.0, 30.0)


@contextlib.contextmanager
def homes(clients: int, rng: random.Random) -> Iterator[Scene]:
    """A swarm of servers in a home each; so is every client."""
    from swarm import connect

    using = {f"client{place}": CLIENTS[place % len(CLIENTS)] for place in range(clients)}
    with Homes({**{name: nats for name, (nats, _) in SERVERS.items()}, **using}, PUBLIC) as members:
        for name in SERVERS:
            _start(members, name)
        for name in SERVERS:
            members.wait_until_online(name)
        with contextlib.ExitStack() as stack:
            swarms = []
            for name in using:
                with members.lab.at(name):  # its loop and its p2pd stay there
                    swarms.append(stack.enter_context(connect(list(members.peers.values()))))
            servers = Servers(members, [*SERVERS], partial(_start, members))
            kinds = {**servers.kinds(), **_kinds(members, [*SERVERS, *using], rng)}
            yield Scene(members, servers, members.model, swarms, kinds, PAUSE)


def _start(members: Homes, name: str) -> None:
    members.start_server(name, name, SERVERS[name][1])


def _kinds(members: Homes, at: list[str], rng: random.Random) -> dict[str, Kind]:
    """`at`: all homes; what happens to their routers has these for targets."""
    routers = {members.router(home): home for home in at}

    def cut(router: str) -> Mend:
        members.lab.cut(router)
        return partial(members.lab.mend, router)

    def renumbered(router: str) -> None:
        members.lab.renumber(router)

    def bad(router: str) -> Mend:
        line = replace(LINE, delay=rng.uniform(0.03, 0.1), jitter=0.01, loss=rng.uniform(0.01, 0.03))
        members.lab.change(router, line)
        return partial(members.lab.change, router, LINE)

    def killed(name: str) -> Mend:
        members.kill(name)
        return partial(members.start_bootstrap, name)

    return {
        "link cut": Kind(3, [*routers], cut, BLINK),
        "Wi-Fi gone": Kind(2, [*routers], cut, WIFI),
        "router renumbered": Kind(3, [*routers], renumbered),
        "packets lost": Kind(4, [*routers], bad, BAD_LINE),
        "forwarder killed": Kind(2, PUBLIC, killed),
    }
