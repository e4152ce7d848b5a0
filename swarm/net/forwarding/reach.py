"""Who can dial this peer: found out once, when it begins, by asking others. Decisions are pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import TypeVar

from google.protobuf.message import DecodeError

from swarm.errors import MalformedFrame
from swarm.net.addresses import components, is_public
from swarm.net.forwarding import forwarding_pb2 as pb

AUTONAT_PROTOCOL = "/libp2p/autonat/1.0.0"
FORWARDER_PROTOCOL = "/swarm/forwarder/1.0.0"
FRAME_LIMIT = 4096
M = TypeVar("M", pb.AutoNat, pb.Seen)
_REACHED, _NOT_REACHED = 0, 100


class Reach(Enum):
    """From where a peer can be dialled."""

    PUBLIC = "public"
    """From everywhere: somebody did."""
    LOCAL = "local"
    """From its own network, and those who answered it are there, too."""
    NAT = "behind NAT"
    """From its own network; others need a forwarder, or a hole punched."""
    UNKNOWN = "unknown"
    """Nobody could say."""


def judged(seen: Sequence[str], dialled: Collection[bool | bytes | None]) -> Reach:
    """What answers mean. `seen`: the multiaddrs from which others see us; `dialled`: of each who was asked to dial us
    as `was_dialled` says."""
    if any(dialled):
        return Reach.PUBLIC
    if seen and not any(map(is_public, seen)):
        return Reach.LOCAL
    return Reach.NAT if any(result is False for result in dialled) else Reach.UNKNOWN


def translated(seen: Iterable[str], own: Iterable[str]) -> Reach:
    """What is known without being dialled: whether others see us from an ip that none of our own addresses has."""
    outside = [address for address in seen if is_public(address)]
    mine = {_ip(address) for address in own}
    return Reach.NAT if outside and not any(_ip(address) in mine for address in outside) else Reach.UNKNOWN


def _ip(address: str) -> str:
    return (components(address) or [("", "")])[0][1]


def moved(addresses: Iterable[str]) -> bool:
    """Whether one peer's connections, with these multiaddrs, come from several public ips of one family. Its router has
    another address then, and the older connection is dead, which who sends nothing on it is not told."""
    places = {(components(address) or [("", "")])[0] for address in addresses if is_public(address)}
    return len(places) > len({family for family, _ in places})


def to_try(own: Iterable[str], seen: str) -> list[str]:
    """Where others should try to dial us: the ports at which we listen, at the ip from which we are seen."""
    parts = components(seen)
    if parts is None or parts[0][0] not in ("ip4", "ip6"):
        return []
    family, ip = parts[0]
    ports = [found for address in own if (found := _listening(address, family)) is not None]
    return list(dict.fromkeys(f"/{family}/{ip}{port}" for port in ports))


def _listening(address: str, family: str) -> str | None:
    """What follows the ip of an address at which we listen. None: another family, a circuit, or no port."""
    parts = components(address)
    if parts is None or parts[0][0] != family or any(name == "p2p-circuit" for name, _ in parts):
        return None
    rest = [(name, value) for name, value in parts[1:] if name != "p2p"]
    return "".join(f"/{name}/{value}".rstrip("/") for name, value in rest) or None


def dial_me(peer: bytes, addresses: Sequence[bytes]) -> bytes:
    """The request to be dialled by a fresh connection at `addresses`, multiaddrs in bytes."""
    dial = pb.AutoNat.Dial(peer=pb.CircuitPeer(id=peer, addrs=addresses))
    return pb.AutoNat(type=pb.AutoNat.DIAL, dial=dial).SerializeToString()


def was_dialled(frame: bytes) -> bytes | bool | None:
    """The multiaddr in bytes at which the fresh connection came through; False where it did not, None where it was not
    tried. Raises MalformedFrame."""
    message = _parsed(pb.AutoNat(), frame)
    if message.type != pb.AutoNat.DIAL_RESPONSE or not message.HasField("dial_response"):
        raise MalformedFrame("an answer that says nothing of a dial")
    answer = message.dial_response
    return (answer.addr or None) if answer.status == _REACHED else False if answer.status == _NOT_REACHED else None


def read_seen(frame: bytes) -> pb.Seen:
    """What a forwarder answers. Raises MalformedFrame."""
    message = _parsed(pb.Seen(), frame)
    if components(message.address) is None:
        raise MalformedFrame("a forwarder sees us at what is no multiaddr")
    return message


def _parsed(message: M, frame: bytes) -> M:
    if len(frame) > FRAME_LIMIT:
        raise MalformedFrame(f"a message of {len(frame)} bytes, above the limit of {FRAME_LIMIT}")
    try:
        message.ParseFromString(frame)
    except DecodeError as error:
        raise MalformedFrame("these bytes are no message of a forwarder") from error
    return message
