"""What a multiaddr says, and which of them nobody can dial or listen at. Pure functions; imports nothing heavy."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from swarm.config import EdgeConfig, NetworkConfig
from swarm.errors import InvalidInput
from swarm.types import PeerId

EXAMPLE = "/ip4/203.0.113.5/tcp/31337"
NOT_ONE = f"that is not a multiaddr; it should look like {EXAMPLE}"

_NOBODYS = ipaddress.ip_network("240.0.0.0/4")
_NAMES = ("dns", "dns4", "dns6")
_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{46,64}")
_HOST = re.compile(r"(?=.{1,254}$)(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_VALUELESS = {"quic", "quic-v1", "tls", "noise", "ws", "wss", "webtransport", "webrtc-direct", "p2p-circuit", "http"}
_DAEMON = re.compile(r"tcp(/tls)?(/ws|/wss)?|udp/quic-v1(/webtransport(/certhash)*)?")
_BROWSERS = re.compile(r"tcp(/tls)?/(ws|wss)|udp/(webrtc-direct|quic-v1/webtransport)")
_EDGE = re.compile(r"tcp/ws|udp/(webrtc-direct|quic-v1/webtransport)")


def check(config: NetworkConfig) -> None:
    """Refuse what cannot work in a peer's configuration. Raises InvalidInput, which says what is the matter."""
    for address in config.host_maddrs:
        _refuse("listen at", address, listening_fault(address))
    for address in config.announce_maddrs:
        _refuse("announce", address, dialling_fault(address))
    for address in config.initial_peers:
        _refuse("join through", address, joining_fault(address))


def check_edge(config: EdgeConfig) -> None:
    """The same for where browsers reach a peer. Raises InvalidInput."""
    for address in config.host_maddrs:
        _refuse("listen for browsers at", address, listening_fault(address, _EDGE))
    for address in config.announce_maddrs:
        fault = "leave the peer id out, it is added" if "/p2p" in address else dialling_fault(address, _BROWSERS)
        _refuse("announce to browsers", address, fault)


def _refuse(what: str, address: str, fault: str | None) -> None:
    if fault is not None:
        raise InvalidInput(f"cannot {what} {address}: {fault}")


def listening_fault(address: str, transports: re.Pattern[str] = _DAEMON) -> str | None:
    """Why no peer can listen at an address; None: one can. Port 0 stands for any, 0.0.0.0 and :: for all addresses."""
    parts = components(address)
    if parts is None:
        return NOT_ONE
    if parts[0][0] not in ("ip4", "ip6", *(_NAMES if transports is _DAEMON else ())):
        return "it does not begin with /ip4/ or /ip6/ and an address of this machine"
    if any(name in ("p2p", "p2p-circuit") for name, _ in parts):
        return "a peer listens at an address of its machine, without a peer id or a relay"
    return _ip_fault(*parts[0], everywhere=True) or _port_fault(parts[1:], transports, any_port=True)


def dialling_fault(address: str, transports: re.Pattern[str] = _DAEMON) -> str | None:
    """Why nobody can dial an address; None: as far as it says, somebody can. A peer id behind it may be missing."""
    parts = components(address)
    if parts is None:
        return NOT_ONE
    names = [name for name, _ in parts]
    if "p2p-circuit" in names:
        return _circuit_fault(parts, names.index("p2p-circuit"))
    if names[-1] == "p2p":
        parts = parts[:-1]
    if not parts or parts[0][0] not in ("ip4", "ip6", "dnsaddr", *_NAMES):
        return f"it does not begin with a place to dial, as {EXAMPLE} does"
    fault = _ip_fault(*parts[0], everywhere=False)
    if fault or (parts[0][0] == "dnsaddr" and len(parts) == 1):
        return fault
    return _port_fault(parts[1:], transports, any_port=False)


def joining_fault(address: str) -> str | None:
    """Why nobody can join through an address; None: as far as it says, somebody can."""
    parts, like = components(address), f"it should look like {EXAMPLE}/p2p/12D3..."
    if parts is None:
        return f"that is not the address of a peer; {like}"
    if parts[-1][0] != "p2p":
        return f"it does not end in /p2p/ and the peer id of who listens there; {like}"
    return dialling_fault(address)


def _circuit_fault(parts: Sequence[tuple[str, str]], at: int) -> str | None:
    relay, behind = parts[:at], parts[at + 1 :]
    if not relay or relay[-1][0] != "p2p":
        return "it names no relay: /p2p/ and the relay's peer id come before /p2p-circuit"
    if behind and (len(behind) > 1 or behind[0][0] != "p2p"):
        return "behind /p2p-circuit comes a peer id and nothing else"
    return None if len(relay) == 1 else dialling_fault("".join(f"/{name}/{value}".rstrip("/") for name, value in relay))


def components(address: str) -> list[tuple[str, str]] | None:
    """The parts of a multiaddr, each a protocol and its value ("" for those without); None for what is none."""
    words = address.split("/")
    if len(words) < 2 or words[0] or not address.isprintable() or " " in address:
        return None
    parts: list[tuple[str, str]] = []
    rest = words[1:]
    while rest:
        name, rest = rest[0], rest[1:]
        if not name or (name not in _VALUELESS and not rest):
            return None
        value = ""
        if name not in _VALUELESS:
            value, rest = rest[0], rest[1:]
        if name == "p2p" and not _ID.fullmatch(value):
            return None
        if name != "ip6zone":  # only says which of this machine's networks is meant
            parts.append((name, value))
    return parts or None


def is_peer_id(text: str) -> bool:
    """Whether a text has the form of a peer id."""
    return _ID.fullmatch(text) is not None


def _ip_fault(name: str, value: str, *, everywhere: bool) -> str | None:
    if name not in ("ip4", "ip6"):
        return None if _HOST.fullmatch(value) else f"{value!r} is no name of a machine"
    if "%" in value:
        return f"write {value} as /ip6zone/{value.partition('%')[2]}/ip6/{value.partition('%')[0]}"
    try:
        ip = (ipaddress.IPv4Address if name == "ip4" else ipaddress.IPv6Address)(value)
    except ValueError:
        return f"{value!r} is no {'IPv4' if name == 'ip4' else 'IPv6'} address"
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_multicast or ip in _NOBODYS:
        return f"{value} is no machine's address"
    if not everywhere and (ip.is_unspecified or ip in ipaddress.ip_network("0.0.0.0/8")):
        return f"nobody can dial {value}, which stands for all addresses of this machine; say the one that others see"
    return None


def _port_fault(parts: Sequence[tuple[str, str]], transports: re.Pattern[str], *, any_port: bool) -> str | None:
    if not parts or parts[0][0] not in ("tcp", "udp"):
        return f"it has no port: /tcp/ or /udp/ and a number come after the machine, as in {EXAMPLE}"
    name, port = parts[0]
    if not (re.fullmatch("[0-9]{1,5}", port) and (0 if any_port else 1) <= int(port) <= 65535):
        return f"nobody can dial port {port}" if port == "0" else f"{port!r} is no port"
    if not transports.fullmatch("/".join([name, *(name for name, _ in parts[1:])])):
        spoken = "/tcp/PORT or /udp/PORT/quic-v1"
        if transports is not _DAEMON:
            spoken = "/udp/PORT/webrtc-direct, /udp/PORT/quic-v1/webtransport or /tcp/PORT/ws"
        return f"nobody speaks what comes behind the machine; it should be {spoken}"
    return None


def with_ports(listening: Sequence[str], visible: Sequence[str]) -> tuple[str, ...]:
    """Where a peer listens, with the ports that it was given in place of 0, as far as `visible` shows them."""
    return tuple(_with_port(address, visible) for address in listening)


def _with_port(address: str, visible: Sequence[str]) -> str:
    match components(address):
        case [(family, _), (transport, "0"), *_]:
            for other in visible:
                match components(other):
                    case [(other_family, _), (other_transport, port), *rest] if (family, transport) == (
                        other_family,
                        other_transport,
                    ) and not any(name == "p2p-circuit" for name, _ in rest):
                        return address.replace(f"/{transport}/0", f"/{transport}/{port}", 1)
    return address


def own(address: str, peer_id: PeerId) -> str:
    """An address of this peer with its peer id behind it. Raises InvalidInput where it is another's."""
    parts = components(address)
    if parts is None or parts[-1][0] != "p2p":
        return f"{address}/p2p/{peer_id}"
    if parts[-1][1] != peer_id:
        raise InvalidInput(
            f"cannot announce {address}: it is the address of another peer, this one is {peer_id}; leave /p2p/… out, "
            "or give the --identity-path that belongs to it"
        )
    return address


def best_first(addresses: Sequence[str]) -> list[str]:
    """Multiaddrs in the order in which a stranger should try them: public, local network, this machine, relayed.

    Among equals TCP comes first: every implementation speaks it.
    """
    return sorted(addresses, key=lambda address: (_distance(address), "/tcp/" not in address, "/ws" in address))


def is_public(address: str) -> bool:
    """Whether a multiaddr is one at which the whole internet could dial; a name counts as such, a circuit does not."""
    parts = components(address)
    if parts is None or any(name == "p2p-circuit" for name, _ in parts):
        return False
    name, value = parts[0]
    if name not in ("ip4", "ip6"):
        return True
    try:
        return ipaddress.ip_address(value).is_global
    except ValueError:
        return False


PUBLIC, FORWARDED, LOCAL, NOWHERE = "public", "forwarded", "local", "nowhere"
"""How others reach a peer: from everywhere, through forwarders, on its own network only, not at all."""


def way_to(addresses: Sequence[str]) -> str:
    """How a peer that announces these addresses is reached by who is not on its network."""
    if any(map(is_public, addresses)):
        return PUBLIC
    return FORWARDED if forwarders_of(addresses) else LOCAL if addresses else NOWHERE


def forwarders_of(addresses: Sequence[str]) -> list[PeerId]:
    """The peers through which circuits in these addresses lead, each once."""
    ways = (address.partition("/p2p-circuit") for address in addresses)
    return list(dict.fromkeys(way.rpartition("/p2p/")[2] for way, circuit, _ in ways if circuit))


def _distance(address: str) -> int:
    if "/p2p-circuit" in address:
        return 3
    match = re.match(r"/ip[46]/([^/]+)", address)
    if match is None:
        return 0
    ip = ipaddress.ip_address(match[1])
    return 2 if ip.is_loopback else 1 if ip.is_private or ip.is_link_local else 0
