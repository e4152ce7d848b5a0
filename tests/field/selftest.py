"""Whether the lab does what it says: delays, rates, loss, and who reaches whom behind which NAT."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time

from tests.field.lab import NATS, Lab
from tests.field.line import Line, die_with_parent, possible

_made: list[socket.socket] = []


def selftest() -> None:
    """As `_look`; all sockets are closed."""
    try:
        _look()
    finally:
        while _made:
            _made.pop().close()


def _look() -> None:
    """Delay, rate, loss, who reaches whom behind which NAT, cut, mend, renumber, forget. Raises AssertionError."""
    with Lab("selftest") as lab:
        lab.host("one")
        lab.host("two")
        for nat in NATS[1:]:
            for n in (1, 2):
                lab.router(f"{nat}{n}", nat=nat, lan=f"192.168.{n}.0/24")
                lab.host(f"in-{nat}{n}", behind=f"{nat}{n}")
        for nat in NATS[1:]:
            one, two, inside = _udp(lab, "one"), _udp(lab, "two"), _udp(lab, f"in-{nat}1")
            seen = [_heard(inside, s, s.getsockname()) for s in (one, two)]
            stranger = _heard(_udp(lab, "two"), inside, seen[0]) is not None  # another port than was sent to
            print(f"{nat:<16} one mapping for all: {seen[0] == seen[1]!s:<6} strangers get in: {stranger}")
            assert all(a and a[0] == lab.address(f"{nat}1") for a in seen)
            assert (seen[0] == seen[1], stranger) == (nat != "symmetric", nat == "full-cone"), nat
            assert _heard(one, inside, seen[0]), "who was sent to may answer"
        for a, b in ((a, b) for i, a in enumerate(NATS[1:]) for b in NATS[1 + i :]):
            punched = _punch(lab, f"in-{a}1", f"in-{b}2")
            print(f"{a:<16} {b:<16} hole punching: {punched}")
            assert punched == ("full-cone" in (a, b) or a == b == "port-restricted"), (a, b)

        one, inside = _udp(lab, "one"), _udp(lab, "in-port-restricted1")
        old = _heard(inside, one, one.getsockname())
        lab.cut("port-restricted1")
        assert not _heard(inside, one, one.getsockname()) and not _heard(one, inside, old), "cut"
        lab.mend("port-restricted1")
        assert _heard(one, inside, old), "mended, the flow is known still"
        lab.forget("port-restricted1")
        assert not _heard(one, inside, old), "forgotten"
        new = lab.renumber("port-restricted1")
        assert (_heard(inside, one, one.getsockname()) or ("",))[0] == new, "renumbered"
        lab.forward("port-restricted1", 4000, "in-port-restricted1")
        assert _heard(one, _udp(lab, "in-port-restricted1", 4000), (new, 4000)), "port forwarding"
        if why := possible():
            print(f"lines: not tested, {why}")
            return

        lab.host("far", line=Line(delay=0.05, up=8e6, down=4e6))
        lab.host("lossy", line=Line(loss=0.2))
        one, far = _udp(lab, "one"), _udp(lab, "far")
        trips = []
        for _ in range(5):
            start = time.monotonic()
            assert _heard(one, far, far.getsockname(), 1.0) and _heard(far, one, one.getsockname(), 1.0)
            trips.append(time.monotonic() - start)
        print(f"50 ms one way    {min(trips) * 1000:.1f} ms there and back")
        assert 0.1 <= min(trips) < 0.115, trips
        for source, target, rate in (("far", "one", 8e6), ("one", "far", 4e6)):
            measured = _tcp_rate(lab, source, target, 2.0)
            print(f"{rate / 1e6:.0f} Mbit/s line     {measured / 1e6:.1f} Mbit/s of TCP")
            assert 0.7 * rate < measured < 1.2 * rate, (source, measured)  # what waited for a lost packet comes at once
        lossy = _udp(lab, "lossy")
        came = sum(_heard(one, lossy, lossy.getsockname(), 0.01) is not None for _ in range(300))
        assert 0.7 < came / 300 < 0.9, f"20% loss: {came} of 300 came"
        lab.change("lossy", Line(delay=0.02))
        start = time.monotonic()
        assert all(_heard(one, lossy, lossy.getsockname(), 0.1) for _ in range(20)), "changed, it loses nothing"
        assert time.monotonic() - start >= 0.4, "but takes longer"
    assert not any(
        "selftest-" in line for line in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout.split()
    )
    print("the lab does what it says")


def _udp(lab: Lab, name: str, port: int = 0) -> socket.socket:
    with lab.at(name):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    _made.append(made)
    made.bind((lab.address(name), port))
    return made


def _heard(
    source: socket.socket, target: socket.socket, address: tuple[str, int] | None, patience: float = 0.1
) -> tuple[str, int] | None:
    """Send a word to an address; from where it came to the target, None if it did not."""
    word = random.randbytes(8)
    assert address is not None
    source.sendto(word, address)
    target.settimeout(patience)
    with contextlib.suppress(TimeoutError):
        while True:
            data, sender = target.recvfrom(100)
            if data == word:
                return sender  # type: ignore[no-any-return]
    return None


def _punch(lab: Lab, a: str, b: str) -> bool:
    """Both learn from a public host where they are seen, and send to each other."""
    one = _udp(lab, "one")
    ends = _udp(lab, a), _udp(lab, b)
    seen = [_heard(end, one, one.getsockname()) for end in ends]
    came = [_heard(ends[i], ends[1 - i], seen[1 - i], 0.05) for i in (0, 1, 0, 1)]
    # Where only one side's mapping is as was said, the other answers to where it was called from.
    return all(came[-2:]) or any(_heard(ends[1 - i], ends[i], c) for i, c in zip((0, 1, 0, 1), came, strict=True) if c)


def _tcp_rate(lab: Lab, source: str, target: str, seconds: float) -> float:
    with lab.at(target):
        listening = socket.create_server((lab.address(target), 0))
    with lab.at(source):
        sending = socket.create_connection(listening.getsockname())
    _made.extend((listening, sending))
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        with contextlib.suppress(OSError):
            while True:
                sending.sendall(bytes(65536))
        os._exit(0)
    came, warm, receiving = 0, time.monotonic() + 1.0, listening.accept()[0]
    while (now := time.monotonic()) < warm + seconds:
        chunk = len(receiving.recv(1 << 20))
        came += chunk if now > warm else 0
    receiving.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return came * 8 / seconds
