#!/usr/bin/env python3
"""A small internet on one Linux machine: network namespaces, NAT of every kind, and lines with delay, loss and a rate.

Needs root, `ip` (iproute2) and `nft` (nftables); lines also need /dev/net/tun. Nothing else: standard library only, no
netem (many kernels of CI machines lack it): a line is a pair of TAP devices with a process between them.

    with Lab("t1") as lab:
        lab.host("boot")                                         # public: 11.0.0.x, and 2a0e:100::x
        lab.router("home1", nat="port-restricted", line=Line(delay=0.025, up=20e6))
        lab.host("a", behind="home1")                            # 192.168.1.x, leaves through home1
        lab.host("a2", behind="home1")                           # the same LAN
        lab.router("isp", nat="symmetric", lan="100.64.1.0/24")  # a carrier's NAT ...
        lab.router("home2", behind="isp")                        # ... with a home behind it
        lab.host("b", behind="home2")
        lab.run("a", ["ping", "-c1", lab.address("boot")])
        p = lab.popen("b", ["sleep", "60"])                      # killed when the lab is closed
        lab.renumber("home1")                                    # the provider gives another address
        lab.cut("home1"); lab.mend("home1")                      # no route for a while
        lab.change("home1", Line(delay=0.05, loss=0.02))         # a bad line
    # everything is gone: processes, namespaces, TAPs

Kinds of NAT (`nat=`):
    none             a plain router, for IPv6 or for several networks
    full-cone        who has sent anything from a port can be reached at it by everybody (endpoint-independent mapping
                     and filtering)
    port-restricted  the port is kept, so the mapping is the same for everybody; only who was sent to may answer. What
                     Linux, and so most home routers, do
    symmetric        another random port for each destination
What comes in unasked is dropped without a word (`inbound="drop"`), or refused (`inbound="reject"`). Routers do not
hairpin: a host in a LAN cannot use the outside address of its own router. They know nothing of UPnP.
IPv6 (`v6=`): "none", "firewall" (routed, drops what comes in unasked, as home routers do), "open".

Sockets of this process can be at a host (`with lab.at("a"): s = socket.socket(...)`), so can threads and their loops.
Without root: `lab.py unshare COMMAND...` runs a command as root of namespaces of its own, where the system lets
users have those; lines then need a /dev/net/tun that the user may open.
As a script: `lab.py check` says what is possible here, `lab.py selftest` whether the lab does what is said above
(10 s), `lab.py clean [PREFIX]` removes leftovers of killed runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where this is run as a script

from tests.field import line as lines
from tests.field.line import Line, Shaper, tap

PUBLIC4 = "11.0.0.0/16"
"""Looks public to libp2p (the TEST-NETs do not); routed nowhere but in the lab."""
PUBLIC6 = "2a0e:100::/64"
NATS = ("none", "full-cone", "port-restricted", "symmetric")


@dataclass
class _Node:
    name: str
    ns: str
    kind: str
    addresses: list[str] = field(default_factory=list)
    behind: str | None = None
    lan: ipaddress.IPv4Network | None = None
    lan6: str | None = None
    count: int = 1
    nat: str = "none"
    inbound: str = "drop"
    v6: str = "none"


def possible() -> str | None:
    """Why a lab cannot be made here, or None."""
    if os.geteuid() != 0:
        return "root is needed"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"there is no {tool}: apt-get install iproute2 nftables"
    probe = f"lab-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    try:
        rule = "table ip t { chain c { type nat hook postrouting priority 100; masquerade; }; }"
        ran = subprocess.run(
            ["ip", "netns", "exec", probe, "nft", "-f", "-"], input=rule, capture_output=True, text=True
        )
        return f"no NAT here: {ran.stderr.strip()}" if ran.returncode else None
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)


class Lab:
    """The internet and what is attached to it. A context manager; `prefix` tells labs on one machine apart."""

    def __init__(self, prefix: str = "lab") -> None:
        self.prefix = prefix
        self.nodes: dict[str, _Node] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self._shapers: dict[str, Shaper] = {}
        self._next = 1
        self._core = f"{prefix}-core"

    def __enter__(self) -> Lab:
        clean(self.prefix)
        self._namespace(self._core)
        self._bridge(self._core, "br0")
        net4, net6 = ipaddress.ip_network(PUBLIC4), ipaddress.ip_network(PUBLIC6)
        self._in(self._core, f"ip addr add {net4[1]}/{net4.prefixlen} dev br0")
        self._in(self._core, f"ip -6 addr add {net6[1]}/{net6.prefixlen} dev br0 nodad")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- building ---------------------------------------------------------------------------------------------

    def host(
        self, name: str, behind: str | None = None, line: Line | None = None, v6: bool = True, v4: bool = True
    ) -> str:
        """A machine, public or behind a router; returns its IPv4 (without v4, IPv6) address."""
        node = self._node(name, "host", behind)
        self._attach(node, "eth0", line)
        self._number(node, "eth0", v4=v4, v6=v6)
        return node.addresses[0]

    def router(
        self,
        name: str,
        nat: str = "port-restricted",
        line: Line | None = None,
        behind: str | None = None,
        lan: str = "192.168.1.0/24",
        inbound: str = "drop",
        v6: str = "none",
    ) -> str:
        """A router with a LAN behind it; returns its address on the outside."""
        if nat not in NATS:
            raise ValueError(f"nat={nat!r}: there is {', '.join(NATS)}")
        node = self._node(name, "router", behind)
        node.lan, node.nat, node.inbound, node.v6 = ipaddress.IPv4Network(lan), nat, inbound, v6
        self._attach(node, "wan", line)
        self._number(node, "wan", v6=v6 != "none")
        self._bridge(node.ns, "lan")
        self._in(node.ns, f"ip addr add {node.lan[1]}/{node.lan.prefixlen} dev lan")
        if v6 != "none":
            index = len(self.nodes) + 0x10
            node.lan6 = f"2a0e:100:0:{index:x}"
            self._in(node.ns, f"ip -6 addr add {node.lan6}::1/64 dev lan nodad")
            outside = next(a for a in node.addresses if ":" in a)
            self._in(self._upper(node), f"ip -6 route add {node.lan6}::/64 via {outside}")
        self._nft(node)
        return node.addresses[0]

    def _node(self, name: str, kind: str, behind: str | None) -> _Node:
        node = self.nodes[name] = _Node(name, f"{self.prefix}-{name}", kind, behind=behind)
        self._namespace(node.ns)
        return node

    def _upper(self, node: _Node) -> str:
        return self.nodes[node.behind].ns if node.behind else self._core

    def _attach(self, node: _Node, device: str, line: Line | None) -> None:
        upper, bridge = self._upper(node), "lan" if node.behind else "br0"
        port = f"p{len(self.nodes)}"
        if line is None:
            self._in(upper, f"ip link add {port} type veth peer name {device} netns {node.ns}")
        else:
            self._line(upper, port, node, device, line)
        self._in(upper, f"ip link set {port} master {bridge}", f"ip link set {port} up")
        self._in(node.ns, f"ip link set {device} up")

    def _number(self, node: _Node, device: str, v4: bool = True, v6: bool = True) -> None:
        if node.behind:
            router = self.nodes[node.behind]
            router.count += 1
            net4, n, via6 = router.lan, router.count, router.lan6
        else:
            self._next += 1
            net4, n, via6 = ipaddress.IPv4Network(PUBLIC4), self._next, PUBLIC6.removesuffix("::/64")
        assert net4 is not None
        if v4:
            node.addresses.append(str(net4[n]))
            self._in(
                node.ns, f"ip addr add {net4[n]}/{net4.prefixlen} dev {device}", f"ip route add default via {net4[1]}"
            )
        if v6 and via6:
            node.addresses.append(f"{via6}::{n:x}")
            self._in(node.ns, f"ip -6 addr add {via6}::{n:x}/64 dev {device} nodad")
            self._in(node.ns, f"ip -6 route add default via {via6}::1")

    def _bridge(self, ns: str, name: str) -> None:
        # An address of its own: it would take over a port's, and change it when that port is unplugged.
        address = "02:00:" + ":".join(f"{byte:02x}" for byte in random.randbytes(4))
        self._in(
            ns,
            f"ip link add {name} address {address} type bridge stp_state 0 forward_delay 0",
            f"ip link set {name} up",
        )

    def _nft(self, node: _Node) -> None:
        """NAT and firewall. A full cone remembers which host sent from a port, and sends there what comes for it."""
        post = {
            "none": "",
            "full-cone": "oifname wan meta l4proto { tcp, udp } update @cone { meta l4proto . th sport : ip saddr }; "
            "oifname wan masquerade;",
            "port-restricted": "oifname wan masquerade;",
            "symmetric": "oifname wan masquerade fully-random;",
        }[node.nat]
        pre = "iifname wan dnat ip to meta l4proto . th dport map @cone;" if node.nat == "full-cone" else ""
        refuse = "drop" if node.inbound == "drop" else "reject"
        forward = "" if node.nat == "none" else f"ct status dnat accept; iifname wan ct state new {refuse};"
        self._in_nft(
            node.ns,
            f"""
            table ip nat {{
              map cone {{ type inet_proto . inet_service : ipv4_addr; flags dynamic, timeout; timeout 5m; size 65535; }}
              chain pre {{ type nat hook prerouting priority -100; {pre} }}
              chain post {{ type nat hook postrouting priority 100; {post} }}
            }}
            table ip guard {{
              set shut {{ type ipv4_addr; }}
              chain passing {{ type filter hook forward priority 0;
                ip saddr @shut drop; ip daddr @shut drop; {forward} }}
              chain entering {{ type filter hook input priority 0;
                icmp type echo-request accept; iifname wan ct state new {refuse}; }}
            }}
            table ip6 guard {{
              chain passing {{ type filter hook forward priority 0;
                {"iifname wan ct state new drop;" if node.v6 != "open" else ""} }}
            }}
            """,
        )

    def forward(self, router: str, port: int, host: str) -> None:
        """A port forwarding, TCP and UDP, as somebody sets it up in a router."""
        rule = (
            f"add rule ip nat pre iifname wan meta l4proto {{ tcp, udp }} th dport {port} dnat to {self.address(host)}"
        )
        self._in_nft(self.nodes[router].ns, rule)

    # ---- lines ------------------------------------------------------------------------------------------------

    def _line(self, upper: str, port: str, node: _Node, device: str, line: Line) -> None:
        with _at(node.ns):
            mine = tap(device)
        with _at(upper):
            theirs = tap(port)
        self._shapers[node.name] = lines.start(mine, theirs, line)

    # ---- what happens to a network ----------------------------------------------------------------------------

    def renumber(self, name: str) -> str:
        """Give a router another public address, as providers do: what went through the old one is dead."""
        node = self.nodes[name]
        old = next(a for a in node.addresses if ":" not in a)
        if node.behind:
            raise ValueError("only what is on the internet itself is renumbered")
        net4 = ipaddress.IPv4Network(PUBLIC4)
        self._next += 1
        new = str(net4[self._next])
        self._in(node.ns, f"ip addr del {old}/{net4.prefixlen} dev wan", f"ip addr add {new}/{net4.prefixlen} dev wan")
        self.reroute(name)
        node.addresses[node.addresses.index(old)] = new
        return new

    def forget(self, name: str) -> None:
        """A router reboots: it knows no flow any more (the kernel forgets those of an address that goes)."""
        node = self.nodes[name]
        net4 = self.nodes[node.behind].lan if node.behind else ipaddress.IPv4Network(PUBLIC4)
        assert net4 is not None
        address = f"{self.address(name)}/{net4.prefixlen}"
        self._in(node.ns, f"ip addr del {address} dev wan", f"ip addr add {address} dev wan")
        self.reroute(name)

    def cut(self, name: str) -> None:
        """Pull the plug on the outside of a router or host: packets vanish, nobody is told."""
        _run(f"bridge -n {self._upper(self.nodes[name])} link set dev {self._port(name)} state 0")

    def mend(self, name: str) -> None:
        """Put it back."""
        _run(f"bridge -n {self._upper(self.nodes[name])} link set dev {self._port(name)} state 3")

    def change(self, name: str, line: Line) -> None:
        """The line of a router or host, which was made with one, is another from now on."""
        self._shapers[name].change(line)

    def shut(self, router: str, address: str) -> None:
        """A router passes nothing on to or from a public address, and tells nobody."""
        self._in_nft(self.nodes[router].ns, f"add element ip guard shut {{ {address} }}")

    def open(self, router: str, address: str) -> None:
        """It does again."""
        self._in_nft(self.nodes[router].ns, f"delete element ip guard shut {{ {address} }}")

    def unroute(self, name: str) -> None:
        """The default route vanishes, as when a laptop changes networks: sends fail at once."""
        self._in(self.nodes[name].ns, "ip route del default")

    def reroute(self, name: str) -> None:
        node = self.nodes[name]
        net4 = self.nodes[node.behind].lan if node.behind else ipaddress.IPv4Network(PUBLIC4)
        assert net4 is not None
        self._in(node.ns, f"ip route replace default via {net4[1]}")

    def _port(self, name: str) -> str:
        return f"p{list(self.nodes).index(name) + 1}"

    # ---- using it ---------------------------------------------------------------------------------------------

    def address(self, name: str, v6: bool = False) -> str:
        return next(a for a in self.nodes[name].addresses if (":" in a) == v6)

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Within, this thread is at a host: the sockets that it makes are there, and stay there."""
        with _at(self.nodes[name].ns):
            yield

    def wrap(self, name: str, command: Sequence[object]) -> list[str]:
        """The command line that runs a command at a host."""
        return ["ip", "netns", "exec", self.nodes[name].ns, *map(str, command)]

    def run(self, name: str, command: Sequence[object], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.wrap(name, command), capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]

    def popen(self, name: str, command: Sequence[object], **options: object) -> subprocess.Popen[bytes]:
        """Start a process (of a session of its own) at a host; it is killed when the lab is closed."""
        process = subprocess.Popen(self.wrap(name, command), start_new_session=True, **options)  # type: ignore[call-overload]
        self.processes.append(process)
        return process  # type: ignore[no-any-return]

    def bytes_through(self, name: str) -> tuple[int, int]:
        """Bytes that a host or router has (received, sent) on its outside."""
        device = "wan" if self.nodes[name].kind == "router" else "eth0"
        with self.at(name):
            text = Path("/proc/thread-self/net/dev").read_text()
        counts = next(line for line in text.splitlines() if line.strip().startswith(f"{device}:")).split(":")[1].split()
        return int(counts[0]), int(counts[8])

    def close(self) -> None:
        living = [process for process in self.processes if process.poll() is None]  # other ids may be others' by now
        for process in living:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
        for process in living:
            process.wait()
        for shaper in self._shapers.values():
            shaper.close()
        clean(self.prefix)

    def _namespace(self, ns: str) -> None:
        _run(f"ip netns add {ns}")
        self._in(ns, "ip link set lo up")
        with _at(ns):
            for key, value in (
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv6/conf/default/accept_dad", "0"),
            ):
                Path("/proc/sys/net", key).write_text(value)

    def _in(self, ns: str, *commands: str) -> None:
        for command in commands:
            _run(f"ip -n {ns} {command.removeprefix('ip ')}")

    def _in_nft(self, ns: str, rules: str) -> None:
        ran = subprocess.run(["ip", "netns", "exec", ns, "nft", "-f", "-"], input=rules, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"nft in {ns}: {ran.stderr}\n{rules}")


def clean(prefix: str) -> None:
    """Remove what a killed lab of this prefix left: its namespaces, and with them their devices."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        if line.split() and line.split()[0].startswith(f"{prefix}-"):
            ns = line.split()[0]
            for pid in subprocess.run(["ip", "netns", "pids", ns], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)


def _run(command: str) -> None:
    ran = subprocess.run(shlex.split(command), capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{command}: {ran.stderr.strip()}")


@contextlib.contextmanager
def _at(ns: str) -> Iterator[None]:
    """This thread in a network namespace."""
    with Path("/proc/thread-self/ns/net").open() as back, Path(f"/run/netns/{ns}").open() as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(back.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    command, *rest = sys.argv[1:] or [""]
    if command == "clean":
        clean(rest[0] if rest else "lab")
    elif command == "unshare":
        inside = 'mount -t tmpfs tmpfs /run && exec "$@"'
        os.execvp("unshare", ["unshare", "-Urnm", "sh", "-c", inside, "sh", *rest])
    elif command in ("check", "selftest"):
        if why := possible():
            sys.exit(why)
        no_lines = lines.possible()
        print("possible: namespaces and NAT, " + (f"no lines: {no_lines}" if no_lines else "lines"))
        if command == "selftest":
            from tests.field.selftest import selftest

            selftest()
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
