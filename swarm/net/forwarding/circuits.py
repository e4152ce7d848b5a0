"""The messages of libp2p's circuit relay v2, as a forwarder hears and says them. Pure.

Specification: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md. A reservation here has no voucher and no
limit: a limit would make go-libp2p refuse the connection for ordinary streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from google.protobuf.message import DecodeError

from swarm.errors import MalformedFrame
from swarm.net.forwarding import forwarding_pb2 as pb

HOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/stop"
FRAME_LIMIT = 4096
"""Bytes of a message, by the specification."""


class Status(IntEnum):
    """What became of a request."""

    OK = pb.OK
    RESOURCE_LIMIT_EXCEEDED = pb.RESOURCE_LIMIT_EXCEEDED
    PERMISSION_DENIED = pb.PERMISSION_DENIED
    CONNECTION_FAILED = pb.CONNECTION_FAILED
    MALFORMED_MESSAGE = pb.MALFORMED_MESSAGE
    UNEXPECTED_MESSAGE = pb.UNEXPECTED_MESSAGE


@dataclass(frozen=True, slots=True)
class Reserve:
    """Somebody wants to be reached through us."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Somebody wants to reach `target`, a peer id in bytes."""

    target: bytes


class Unexpected(MalformedFrame):
    """A message that is sound, but not one that is sent to a forwarder."""


def read_hop(frame: bytes) -> Reserve | Connect:
    """What is asked of a forwarder. Raises MalformedFrame, Unexpected for an answer in place of a question."""
    message = _parsed(pb.HopMessage(), frame)
    assert isinstance(message, pb.HopMessage)
    if not message.HasField("type"):
        raise MalformedFrame("a hop message without a type")
    if message.type == pb.HopMessage.RESERVE:
        return Reserve()
    if message.type != pb.HopMessage.CONNECT:
        raise Unexpected(f"a hop message of type {message.type} where a question is due")
    if not is_peer_id(message.peer.id):
        raise MalformedFrame("a circuit to what is no peer id")
    return Connect(message.peer.id)


def read_stop(frame: bytes) -> int:
    """The status with which a target answers: `Status.OK` accepts. Raises MalformedFrame, Unexpected."""
    message = _parsed(pb.StopMessage(), frame)
    assert isinstance(message, pb.StopMessage)
    if not message.HasField("type") or message.type != pb.StopMessage.STATUS:
        raise Unexpected("a stop message that is no status")
    return int(message.status)


def status(code: Status) -> bytes:
    """The answer to a request, without anything else in it."""
    return pb.HopMessage(type=pb.HopMessage.STATUS, status=int(code)).SerializeToString()  # type: ignore[arg-type]


def reserved(expires: float, addresses: Sequence[bytes]) -> bytes:
    """The answer to `Reserve`: until `expires` (unix seconds) at `addresses` of ours, multiaddrs in bytes."""
    reservation = pb.Reservation(expire=int(expires), addrs=addresses)
    return pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK, reservation=reservation).SerializeToString()


def incoming(caller: bytes) -> bytes:
    """What a target hears first of a circuit from `caller`, a peer id in bytes."""
    return pb.StopMessage(type=pb.StopMessage.CONNECT, peer=pb.CircuitPeer(id=caller)).SerializeToString()


def is_peer_id(raw: bytes) -> bool:
    """Whether bytes have the form of a peer id: a key of Ed25519 itself, or the sha256 of a larger one."""
    return (len(raw) == 38 and raw[:2] == b"\x00\x24") or (len(raw) == 34 and raw[:2] == b"\x12\x20")


def _parsed(message: pb.HopMessage | pb.StopMessage, frame: bytes) -> pb.HopMessage | pb.StopMessage:
    if len(frame) > FRAME_LIMIT:
        raise MalformedFrame(f"a message of {len(frame)} bytes, above the limit of {FRAME_LIMIT}")
    try:
        message.ParseFromString(frame)
    except DecodeError as error:
        raise MalformedFrame("these bytes are no message of a circuit") from error
    return message
