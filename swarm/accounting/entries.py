"""The links of an account's chain as bytes: signed, checked, hashed. What they say of each other is in `chain.py`."""

from __future__ import annotations

import hashlib

from google.protobuf.message import DecodeError

from swarm.errors import MalformedFrame
from swarm.net.identity import Identity, verify_by
from swarm.types import PeerId
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import DIGEST, SESSION_BYTES, require

KEY_BYTES = 32
SIGNATURE_BYTES = 64
MOST = 1 << 62
"""Of work, all told: more than all computers have done."""
MOST_BYTES = 512
"""Of one link."""
ENTRY_CONTEXT = b"swarm-receipt:"
HEAD_CONTEXT = b"swarm-head:"
ACCOUNT_CONTEXT = b"swarm-account:"


def sign_entry(identity: Identity, entry: pb.Entry) -> pb.Entry:
    """`entry`, signed."""
    entry.account = identity.key
    entry.signature = identity.sign(_bare(entry))
    return entry


def bytes_of(entry: pb.Entry) -> bytes:
    """An entry as it was signed."""
    return entry.SerializeToString(deterministic=True)


def digest_of(entry: pb.Entry) -> bytes:
    """What the next link calls it."""
    return hashlib.sha256(bytes_of(entry)).digest()


def read_entry(data: bytes) -> pb.Entry:
    """An entry out of bytes that anybody showed. Raises MalformedFrame."""
    require(len(data) <= MOST_BYTES, f"a link of {len(data)} bytes")
    entry = pb.Entry()
    try:
        entry.ParseFromString(data)
    except DecodeError as error:
        raise MalformedFrame("these bytes are no link of an account") from error
    return check_entry(entry)


def check_entry(entry: pb.Entry) -> pb.Entry:
    """Whether an entry is signed and makes sense by itself. Raises MalformedFrame."""
    entry.DiscardUnknownFields()
    require(len(entry.account) == KEY_BYTES and len(entry.other) == KEY_BYTES, "a link that is nobody's")
    require(entry.account != entry.other, "a link to oneself")
    require(entry.number > 0 and len(entry.previous) == (DIGEST if entry.number > 1 else 0), "a link without a place")
    require(len(entry.session) == SESSION_BYTES, "a link of no session")
    require(len(entry.answers) == (DIGEST if entry.gives else 0), "a giver answers, a taker does not")
    totals = (entry.work, entry.number, entry.given, entry.taken, entry.pair_given, entry.pair_taken, entry.time)
    require(all(total < MOST for total in totals), "nobody has done so much")
    require(entry.pair_given <= entry.given and entry.pair_taken <= entry.taken, "a part is more than the whole")
    require(entry.work <= (entry.pair_given if entry.gives else entry.pair_taken), "a link that does not count itself")
    require(verify_by(entry.account, entry.signature, _bare(entry)), "a link that its account has not signed")
    return entry


def sign_accounting(identity: Identity, session: bytes, me: PeerId, other: PeerId) -> pb.Accounting:
    """That peer `me` speaks for an account in a session with `other`."""
    return pb.Accounting(account=identity.key, proof=identity.sign(_speaks(session, me, other)))


def check_accounting(message: pb.Accounting, session: bytes, peer: PeerId, other: PeerId) -> bytes:
    """The account for which `peer` speaks in a session with `other`. Raises MalformedFrame where it does not."""
    require(message.parameters < MOST, "no block has so many parameters")
    sound = verify_by(message.account, message.proof, _speaks(session, peer, other))
    require(sound, "a peer that does not show that it speaks for this account")
    return message.account


def sign_head(identity: Identity, head: pb.Head, peer: PeerId) -> pb.Head:
    """`head`, signed for `peer`, who speaks for the account."""
    head.account = identity.key
    head.signature = identity.sign(_of_head(head, peer))
    return head


def check_head(head: pb.Head, peer: PeerId) -> pb.Head:
    """Raises MalformedFrame where `peer` cannot show this head."""
    head.DiscardUnknownFields()
    require(len(head.digest) == (DIGEST if head.number else 0), "the end of a chain without a link")
    require(max(head.number, head.given, head.taken) < MOST, "nobody has done so much")
    require(verify_by(head.account, head.signature, _of_head(head, peer)), "a head that its account has not signed")
    return head


def _bare(entry: pb.Entry) -> bytes:
    bare = pb.Entry()
    bare.CopyFrom(entry)
    bare.ClearField("signature")
    return ENTRY_CONTEXT + bytes_of(bare)


def _of_head(head: pb.Head, peer: PeerId) -> bytes:
    bare = pb.Head()
    bare.CopyFrom(head)
    bare.ClearField("signature")
    return HEAD_CONTEXT + f"{peer} ".encode() + bare.SerializeToString(deterministic=True)


def _speaks(session: bytes, peer: PeerId, other: PeerId) -> bytes:
    return ACCOUNT_CONTEXT + session + f"{peer} {other}".encode()
