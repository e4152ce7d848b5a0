"""Directory records: what is announced, signed by who announces it, and checked by everybody who stores or reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from google.protobuf.message import DecodeError

from swarm.config import NetworkConfig
from swarm.contract import FINGERPRINT_BYTES
from swarm.coordinates import FARTHEST_MS
from swarm.errors import InvalidInput, MalformedFrame, RecordRefused
from swarm.net.forwarding import forwarding_pb2 as fwd
from swarm.net.identity import Identity, peer_id_of, verify
from swarm.types import DIGEST_BYTES, MAX_NEAR, EndsRecord, ModelInfo, PeerId, ServerRecord, ServerState
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import MAX_TEXT, contract_message, contract_of, coordinate_message, coordinate_of

CONTEXT = b"swarm-record:"
MODELS_KEY = "models"
CLOCK_TOLERANCE = 3.0
"""Seconds by which the clocks of two peers may differ."""
MAX_ADDRESSES = 16
MAX_EDGE = 512
"""Characters of an address for browsers, which holds the hashes of certificates."""
MAX_HEAD = 200
"""Bytes of the end of an account's chain."""
MAX_BLOCKS = 1024
"""Blocks of the deepest model; reading a model takes a question per block."""
CHECKED = 8192
"""Signatures that are remembered as right: every node that is asked answers with the same records. Where a swarm has
more records none is found again, because each pushes out the one that is asked for next."""


def span_key(model: str, first: int) -> str:
    """The directory key of servers whose span begins at block `first`."""
    return f"spans/{model}/{first}"


FORWARDERS_KEY = "forwarders"


def node_key(model: str) -> str:
    """The directory key of the query nodes of a model."""
    return f"queries/{model}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A signed value whose signature is right. `value` is empty for a tombstone."""

    peer_id: PeerId
    key: str
    value: bytes
    expires: float


def sign(identity: Identity, key: str, value: bytes, expires: float) -> bytes:
    """`value` under `key` until `expires` (unix seconds), signed. An empty value withdraws what was there."""
    signed = pb.SignedRecord(public_key=identity.public_bytes, record=value, expires=expires, key=key)
    signed.signature = identity.sign(_signed_bytes(signed))
    return signed.SerializeToString(deterministic=True)


def sign_record(identity: Identity, record: ServerRecord) -> bytes:
    """A server's record, signed by the server. Raises RecordRefused if it is another's."""
    if record.peer_id != identity.peer_id:
        raise RecordRefused(f"{identity.peer_id} cannot announce in the name of {record.peer_id}")
    message = pb.Record(
        contract=contract_message(record.contract),
        state=record.state.value,
        addresses=record.addresses,
        free_tokens=record.free_tokens,
        decode_ms=record.decode_ms,
        prefill_rate=record.prefill_rate,
        prefill_positions=record.prefill_positions,
        queue=record.queue,
        relayed=record.relayed,
        codecs=record.codecs,
        version=record.version,
        name=record.name[:MAX_TEXT],
        instance=identity.instance,
        training=record.training,
        coordinate=coordinate_message(record.coordinate),
        ends=_ends_message(record.ends),
        near=[pb.Near(peer=peer, rtt_ms=rtt_ms) for peer, rtt_ms in record.near[:MAX_NEAR]],
        account=pb.Head.FromString(record.account) if record.account else None,
    )
    return sign(identity, span_key(record.model, record.span.first), message.SerializeToString(), record.expires)


def open_signed(signed: bytes, *, now: float, config: NetworkConfig) -> Opened:
    """Check size, signature and that it does not claim to live too long; it may have expired. Raises RecordRefused."""
    if len(signed) > config.record_max_bytes:
        raise RecordRefused(f"a record of {len(signed)} bytes, above the limit of {config.record_max_bytes}")
    opened = _authentic(signed)
    if not opened.expires <= now + config.record_max_lifetime + CLOCK_TOLERANCE:
        lifetime = f"{config.record_max_lifetime:.0f} s"
        raise RecordRefused(f"the record of {opened.peer_id} claims to live longer than {lifetime}")
    return opened


@lru_cache(CHECKED)
def _authentic(signed: bytes) -> Opened:
    """What was signed, by whom, for which key and until when. Raises RecordRefused."""
    message = pb.SignedRecord()
    try:
        message.ParseFromString(signed)
        peer_id = peer_id_of(message.public_key)
    except (DecodeError, InvalidInput) as error:
        raise RecordRefused("these bytes are no signed record") from error
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != signed:
        raise RecordRefused(f"the record of {peer_id} is not in its canonical encoding")
    if not verify(message.public_key, message.signature, _signed_bytes(message)):
        raise RecordRefused(f"the record is not signed by {peer_id}")
    return Opened(peer_id, message.key, message.record, message.expires)


def verify_record(signed: bytes, *, now: float, config: NetworkConfig) -> ServerRecord:
    """A server's record out of bytes that anybody showed. Raises RecordRefused."""
    opened = open_signed(signed, now=now, config=config)
    if opened.expires <= now:
        raise RecordRefused(f"the record of {opened.peer_id} expired {now - opened.expires:.0f} s ago")
    return read_record(opened, signed)


def read_record(opened: Opened, signed: bytes) -> ServerRecord:
    """The server's record in a value whose signature was checked. Raises RecordRefused."""
    if not opened.value:
        raise RecordRefused(f"{opened.peer_id} withdrew its record")
    message = pb.Record()
    try:
        message.ParseFromString(opened.value)
        record = _record(opened, message, signed)
    except (DecodeError, MalformedFrame, ValueError) as error:
        raise RecordRefused(f"the record of {opened.peer_id} makes no sense: {error}") from error
    if opened.key != span_key(record.model, record.span.first):
        raise RecordRefused(f"the record of {opened.peer_id} was signed for another key")
    return record


def sign_model(identity: Identity, model: ModelInfo, expires: float) -> bytes:
    """The entry under `models` by which people learn that a model is served."""
    message = pb.Model(
        key=model.key,
        name=model.name[:MAX_TEXT],
        blocks=model.blocks,
        hidden_size=model.hidden_size,
        context_length=model.context_length or 0,
    )
    return sign(identity, MODELS_KEY, message.SerializeToString(), expires)


def verify_model(signed: bytes, *, now: float, config: NetworkConfig) -> ModelInfo:
    """A model's entry. Raises RecordRefused."""
    return read_model(open_signed(signed, now=now, config=config))


def read_model(opened: Opened) -> ModelInfo:
    """The model in a value whose signature was checked. Raises RecordRefused."""
    message = pb.Model()
    try:
        message.ParseFromString(opened.value)
    except DecodeError as error:
        raise RecordRefused("these bytes are no model") from error
    if opened.key != MODELS_KEY or not message.key or not 0 < message.blocks <= MAX_BLOCKS or not message.hidden_size:
        raise RecordRefused(f"the model announced by {opened.peer_id} makes no sense")
    if not (len(message.key) <= MAX_TEXT and len(message.name) <= MAX_TEXT and message.name.isprintable()):
        raise RecordRefused(f"the model announced by {opened.peer_id} has no sound name")
    return ModelInfo(
        message.key,
        message.name,
        message.blocks,
        message.hidden_size,
        message.context_length or None,
    )


def sign_node(identity: Identity, node: pb.QueryNode, expires: float) -> bytes:
    """A query node's announcement, signed by the node; whose it is, the signature says."""
    bare = pb.QueryNode()
    bare.CopyFrom(node)
    bare.peer_id, bare.instance = "", identity.instance
    return sign(identity, node_key(node.contract.model), bare.SerializeToString(), expires)


def verify_node(signed: bytes, *, now: float, config: NetworkConfig) -> pb.QueryNode:
    """A query node's announcement, with its peer id. Raises RecordRefused."""
    opened = open_signed(signed, now=now, config=config)
    if opened.expires <= now:
        raise RecordRefused(f"the record of {opened.peer_id} expired {now - opened.expires:.0f} s ago")
    return read_node(opened)


def read_node(opened: Opened) -> pb.QueryNode:
    """The query node in a value whose signature was checked. Raises RecordRefused."""
    node = pb.QueryNode()
    try:
        node.ParseFromString(opened.value)
        contract = contract_of(node.contract)
    except DecodeError as error:
        raise RecordRefused("these bytes are no query node") from error
    except MalformedFrame as error:
        raise RecordRefused(f"the query node announced by {opened.peer_id} makes no sense: {error}") from error
    texts = (node.name, node.version, node.codec)
    addresses = [*node.addresses, *node.edges]
    if not opened.value or node.peer_id or opened.key != node_key(contract.model):
        raise RecordRefused(f"the query node announced by {opened.peer_id} makes no sense")
    if not all(len(text) <= MAX_TEXT and text.isprintable() for text in texts):
        raise RecordRefused(f"the query node announced by {opened.peer_id} has texts that are no names")
    if max(len(node.addresses), len(node.edges)) > MAX_ADDRESSES or not all(_is_address(a) for a in addresses):
        raise RecordRefused(f"an address of the query node {opened.peer_id} is no multiaddr")
    node.peer_id = opened.peer_id
    return node


def sign_forwarder(identity: Identity, forwarder: fwd.Forwarder, expires: float) -> bytes:
    """A forwarder's announcement, signed by the forwarder; whose it is, the signature says."""
    announced = fwd.Forwarder()
    announced.CopyFrom(forwarder)
    announced.instance = identity.instance
    return sign(identity, FORWARDERS_KEY, announced.SerializeToString(), expires)


def verify_forwarder(signed: bytes, *, now: float, config: NetworkConfig) -> tuple[PeerId, fwd.Forwarder]:
    """A forwarder's announcement, and who it is. Raises RecordRefused."""
    opened = open_signed(signed, now=now, config=config)
    if opened.expires <= now:
        raise RecordRefused(f"the record of {opened.peer_id} expired {now - opened.expires:.0f} s ago")
    return opened.peer_id, read_forwarder(opened)


def read_forwarder(opened: Opened) -> fwd.Forwarder:
    """The forwarder in a value whose signature was checked. Raises RecordRefused."""
    forwarder = fwd.Forwarder()
    try:
        forwarder.ParseFromString(opened.value)
    except DecodeError as error:
        raise RecordRefused("these bytes are no forwarder") from error
    sound = opened.key == FORWARDERS_KEY and math.isfinite(forwarder.rate) and forwarder.rate >= 0.0
    if not (sound and 0 < len(forwarder.addresses) <= MAX_ADDRESSES and all(map(_is_address, forwarder.addresses))):
        raise RecordRefused(f"the forwarder announced by {opened.peer_id} makes no sense")
    if len(forwarder.version) > MAX_TEXT or not forwarder.version.isprintable():
        raise RecordRefused(f"the forwarder announced by {opened.peer_id} has a version that is no text")
    return forwarder


def _is_address(text: str) -> bool:
    return text.startswith("/") and len(text) <= MAX_EDGE and text.isprintable()


def check_content(opened: Opened) -> None:
    """Refuse what does not belong under the key that it was signed for. Raises RecordRefused."""
    if opened.value and opened.key == MODELS_KEY:
        read_model(opened)
    elif opened.value and opened.key.startswith(node_key("")):
        read_node(opened)
    elif opened.value and opened.key == FORWARDERS_KEY:
        read_forwarder(opened)
    elif opened.value:
        read_record(opened, b"")


def _signed_bytes(message: pb.SignedRecord) -> bytes:
    bare = pb.SignedRecord(
        public_key=message.public_key, record=message.record, expires=message.expires, key=message.key
    )
    return CONTEXT + bare.SerializeToString(deterministic=True)


def _ends_message(ends: EndsRecord | None) -> pb.Ends | None:
    if ends is None:
        return None
    return pb.Ends(fingerprint=ends.fingerprint, vocabulary=ends.vocabulary, head_ms=ends.head_ms)


def _ends(message: pb.Ends) -> EndsRecord:
    """Raises ValueError."""
    if len(message.fingerprint) != FINGERPRINT_BYTES or not message.vocabulary:
        raise ValueError("ends without a fingerprint or a vocabulary")
    if not (math.isfinite(message.head_ms) and message.head_ms > 0.0):
        raise ValueError("speeds must be finite and positive")
    return EndsRecord(message.fingerprint, message.vocabulary, message.head_ms)


def _record(opened: Opened, message: pb.Record, signed: bytes) -> ServerRecord:
    """Raises ValueError or MalformedFrame where a field makes no sense."""
    contract = contract_of(message.contract)
    texts = (message.version, message.name, *message.codecs)
    if not contract.fingerprints:
        raise ValueError("one fingerprint a block")
    if (
        not all(len(text) <= MAX_TEXT and text.isprintable() for text in texts)
        or len(message.addresses) > MAX_ADDRESSES
    ):
        raise ValueError("texts or lists are too long")
    if not all(a.startswith("/") and len(a) <= MAX_TEXT and a.isprintable() for a in message.addresses):
        raise ValueError("an address is no multiaddr")
    if not all(math.isfinite(x) and x > 0.0 for x in (message.decode_ms, message.prefill_rate)):
        raise ValueError("speeds must be finite and positive")
    if len(message.near) > MAX_NEAR or not all(
        len(each.peer) == DIGEST_BYTES and 0.0 <= each.rtt_ms <= FARTHEST_MS for each in message.near
    ):
        raise ValueError("servers that are near are few, and not far")
    account = message.account.SerializeToString() if message.HasField("account") else b""
    if len(account) > MAX_HEAD:
        raise ValueError("the end of a chain is short")
    return ServerRecord(
        account=account,
        peer_id=opened.peer_id,
        contract=contract,
        state=ServerState(message.state),
        addresses=tuple(message.addresses),
        free_tokens=message.free_tokens,
        decode_ms=message.decode_ms,
        prefill_rate=message.prefill_rate,
        prefill_positions=message.prefill_positions,
        queue=message.queue,
        relayed=message.relayed,
        codecs=tuple(message.codecs),
        version=message.version,
        name=message.name,
        instance=message.instance,
        training=message.training,
        ends=_ends(message.ends) if message.HasField("ends") else None,
        expires=opened.expires,
        coordinate=coordinate_of(message.coordinate) if message.HasField("coordinate") else None,
        near=tuple((each.peer, each.rtt_ms) for each in message.near),
        signed=signed,
    )
