"""Commitments: signed by the server whose computing they are about, and checked by who is shown one."""

from __future__ import annotations

from swarm.errors import InvalidInput, MalformedFrame
from swarm.net.identity import Identity, peer_id_of, verify
from swarm.types import PeerId
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import DIGEST, SESSION_BYTES, contract_of, decode, require
from swarm.wire.promises import CONTEXT


def sign(identity: Identity, promise: pb.Promise) -> pb.Commitment:
    """Stand for it."""
    said = promise.SerializeToString()
    signature = identity.sign(CONTEXT + said)
    return pb.Commitment(promise=said, public_key=identity.public_bytes, signature=signature)


def opened(commitment: pb.Commitment) -> tuple[PeerId, pb.Promise]:
    """Who promises what. Raises MalformedFrame where it is not signed so, or makes no sense."""
    try:
        signed = verify(commitment.public_key, commitment.signature, CONTEXT + commitment.promise)
    except InvalidInput as error:
        raise MalformedFrame(str(error)) from error
    require(signed, "a commitment that is not signed by who is to stand for it")
    promise = decode(pb.Promise, commitment.promise)
    require(len(promise.session) == SESSION_BYTES and len(promise.root) == DIGEST, "a promise of another form")
    require(promise.leaves > 0, "a promise of nothing")
    contract_of(promise.contract)
    return peer_id_of(commitment.public_key), promise
