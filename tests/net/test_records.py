"""Signed records: what was signed is read; anything else is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from swarm.config import NetworkConfig
from swarm.contract import Contract
from swarm.errors import RecordRefused
from swarm.net import records
from swarm.net.forwarding import forwarding_pb2 as fwd
from swarm.net.identity import Identity
from swarm.types import ModelInfo, ServerRecord, ServerState, Span
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import contract_message

CONFIG = NetworkConfig()
T = TypeVar("T", bound=Message)
NOW = 1_700_000_000.0
ME, OTHER = Identity.generate(), Identity.generate()
RECORD = ServerRecord(
    peer_id=ME.peer_id,
    contract=Contract(
        "0123abcd",
        Span(3, 7),
        tuple(bytes([block]) * 8 for block in range(4)),
        dtype="bfloat16",
        quantization="int8",
        adapters=("ab" * 32,),
        hidden_size=64,
        row_bytes=128,
    ),
    state=ServerState.DRAINING,
    addresses=("/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.1/udp/4001/quic-v1"),
    free_tokens=100_000,
    decode_ms=0.5,
    prefill_rate=2000.0,
    queue=3,
    relayed=True,
    codecs=("raw", "int8"),
    version="0.1.0",
    name="a friend",
    expires=NOW + 60,
)
MODEL = ModelInfo("0123abcd", "tiny", blocks=12, hidden_size=64, context_length=None)
SIGNED = records.sign_record(ME, RECORD)


def verify(signed: bytes, now: float = NOW) -> ServerRecord:
    return records.verify_record(signed, now=now, config=CONFIG)


def sign(message: pb.Record, key: str | None = None) -> bytes:
    """`message` under a good signature."""
    key = records.span_key(message.contract.model, message.contract.first) if key is None else key
    return records.sign(ME, key, message.SerializeToString(), NOW + 60)


def message(**changes: object) -> pb.Record:
    return changed(pb.Record.FromString(pb.SignedRecord.FromString(SIGNED).record), changes)


def changed(message: T, changes: Mapping[str, object]) -> T:
    """A copy with other values, also in its contract."""
    copy = type(message).FromString(message.SerializeToString())
    for name, value in changes.items():
        owner = copy if name in copy.DESCRIPTOR.fields_by_name else copy.contract  # type: ignore[attr-defined]
        if isinstance(value, list):
            owner.ClearField(name)
            getattr(owner, name).extend(value)
        else:
            setattr(owner, name, value)
    return copy


def test_what_was_signed_is_read() -> None:
    assert verify(SIGNED) == replace(RECORD, instance=ME.instance, signed=SIGNED)
    assert len(SIGNED) < 1024


def test_a_large_span_fits() -> None:
    large = replace(RECORD, contract=Contract("0123abcd", Span(0, 128), (bytes(8),) * 128))
    assert verify(records.sign_record(ME, large)).span == Span(0, 128)


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(where: int, change: int) -> None:
    forged = bytearray(SIGNED)
    forged[where] ^= change
    with pytest.raises(RecordRefused):
        verify(bytes(forged))


@given(st.integers(0, len(SIGNED)), st.binary(min_size=1, max_size=20))
def test_anything_inserted_is_refused(where: int, more: bytes) -> None:
    with pytest.raises(RecordRefused):
        verify(SIGNED[:where] + more + SIGNED[where:])


@given(st.integers(0, len(SIGNED) - 1))
def test_anything_cut_off_is_refused(length: int) -> None:
    with pytest.raises(RecordRefused):
        verify(SIGNED[:length])


@given(st.binary(max_size=5000))
def test_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(RecordRefused):
        verify(content)


def test_another_cannot_sign_it() -> None:
    with pytest.raises(RecordRefused, match="in the name of"):
        records.sign_record(OTHER, RECORD)
    forged = pb.SignedRecord.FromString(SIGNED)
    forged.public_key = OTHER.public_bytes
    with pytest.raises(RecordRefused):
        verify(forged.SerializeToString(deterministic=True))


@pytest.mark.parametrize("field", ["expires", "key", "record", "signature", "public_key"])
def test_every_field_of_the_envelope_is_signed(field: str) -> None:
    forged = pb.SignedRecord.FromString(SIGNED)
    forged.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(RecordRefused):
        verify(forged.SerializeToString(deterministic=True))


def test_it_cannot_be_moved_or_prolonged() -> None:
    for change in ({"key": records.span_key(RECORD.model, 4)}, {"expires": NOW + 120}):
        forged = pb.SignedRecord.FromString(SIGNED)
        for name, value in change.items():
            setattr(forged, name, value)
        with pytest.raises(RecordRefused, match="not signed by"):
            verify(forged.SerializeToString(deterministic=True))


@pytest.mark.parametrize("now", [NOW + 60, NOW + 1000, NOW - CONFIG.record_max_lifetime])
def test_neither_the_dead_nor_the_immortal_are_taken(now: float) -> None:
    with pytest.raises(RecordRefused):
        verify(SIGNED, now=now)


@pytest.mark.parametrize("expires", [float("nan"), float("inf"), float("-inf"), NOW + 1e6])
def test_absurd_expirations_are_refused(expires: float) -> None:
    with pytest.raises(RecordRefused):
        verify(records.sign_record(ME, replace(RECORD, expires=expires)))


def test_the_size_is_bounded() -> None:
    with pytest.raises(RecordRefused, match="above the limit"):
        verify(records.sign_record(ME, replace(RECORD, codecs=("c" * 200,) * 40)))


def test_a_tombstone_is_no_record() -> None:
    key = records.span_key(RECORD.model, 3)
    tombstone = records.sign(ME, key, b"", NOW + 61)
    assert records.open_signed(tombstone, now=NOW, config=CONFIG) == records.Opened(ME.peer_id, key, b"", NOW + 61)
    with pytest.raises(RecordRefused, match="withdrew"):
        verify(tombstone)


@pytest.mark.parametrize(
    "changes",
    [
        {"last": 3},
        {"fingerprints": b""},
        {"fingerprints": bytes(33)},
        {"state": "asleep"},
        {"state": ""},
        {"addresses": ["not an address"]},
        {"addresses": ["/" + "x" * 300]},
        {"addresses": ["/ip4/\n"]},
        {"addresses": ["/ip4/1.2.3.4/tcp/1"] * 40},
        {"decode_ms": float("nan")},
        {"decode_ms": -1.0},
        {"decode_ms": 0.0},
        {"prefill_rate": float("inf")},
        {"prefill_rate": 0.0},
        {"name": "\x1b[31m"},
        {"name": "x" * 300},
        {"dtype": "\n"},
        {"model": ""},
        {"model": "a/b"},
    ],
    ids=str,
)
def test_a_senseless_record_is_refused_though_signed(changes: dict[str, object]) -> None:
    with pytest.raises(RecordRefused):
        verify(sign(message(**changes)))


def test_a_record_signed_for_another_key_is_refused() -> None:
    for key in (records.MODELS_KEY, "", records.span_key("other", 3)):
        with pytest.raises(RecordRefused):
            verify(sign(message(), key))


def test_a_field_that_a_later_version_adds_is_passed_over() -> None:
    later = message().SerializeToString() + b"\xa2\x06\x03new"
    assert verify(records.sign(ME, records.span_key(RECORD.model, 3), later, NOW + 60)).name == "a friend"


def test_models() -> None:
    signed = records.sign_model(ME, MODEL, NOW + 60)
    assert records.verify_model(signed, now=NOW, config=CONFIG) == MODEL
    with pytest.raises(RecordRefused):
        verify(signed)
    with pytest.raises(RecordRefused):
        records.verify_model(SIGNED, now=NOW, config=CONFIG)


@pytest.mark.parametrize(
    "changes", [{"key": ""}, {"key": "x" * 300}, {"blocks": 0}, {"name": "\x1b"}, {"hidden_size": 0}]
)
def test_senseless_models_are_refused(changes: dict[str, object]) -> None:
    signed = records.sign_model(ME, replace(MODEL, **changes), NOW + 60)  # type: ignore[arg-type]
    with pytest.raises(RecordRefused):
        records.verify_model(signed, now=NOW, config=CONFIG)


NODE = pb.QueryNode(
    contract=contract_message(Contract("m", Span(0, 4))),
    name="tiny",
    addresses=["/ip4/1.2.3.4/tcp/1"],
    edges=["/ip4/1.2.3.4/udp/2/webrtc-direct"],
)


def test_a_query_node_comes_back_with_the_id_of_who_signed_it() -> None:
    signed = records.sign_node(ME, NODE, NOW + 60)
    node = records.verify_node(signed, now=NOW, config=CONFIG)
    assert (node.peer_id, node.instance, node.name, node.edges) == (ME.peer_id, ME.instance, "tiny", NODE.edges)
    with pytest.raises(RecordRefused, match="expired"):
        records.verify_node(signed, now=NOW + 61, config=CONFIG)
    for other in (SIGNED, records.sign_model(ME, MODEL, NOW + 60)):
        with pytest.raises(RecordRefused):
            records.verify_node(other, now=NOW, config=CONFIG)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ""},
        {"model": "a/b"},
        {"name": "x" * 300},
        {"name": "\x1b"},
        {"edges": ["nowhere"]},
        {"edges": ["/" + "x" * 600]},
        {"addresses": ["/ip4/1.2.3.4"] * 17},
    ],
)
def test_senseless_query_nodes_are_refused(changes: dict[str, object]) -> None:
    node = changed(NODE, changes)
    signed = records.sign_node(ME, node, NOW + 60)
    with pytest.raises(RecordRefused):
        records.check_content(records.open_signed(signed, now=NOW, config=CONFIG))


def test_what_is_stored_must_belong_to_its_key() -> None:
    def check(signed: bytes) -> None:
        records.check_content(records.open_signed(signed, now=NOW, config=CONFIG))

    check(SIGNED)
    check(records.sign_model(ME, MODEL, NOW + 60))
    check(records.sign_node(ME, NODE, NOW + 60))
    check(records.sign(ME, "spans/m/1", b"", NOW + 60))
    for key in (records.MODELS_KEY, "spans/m/1", records.node_key("m"), "anything"):
        with pytest.raises(RecordRefused):
            check(records.sign(ME, key, b"junk", NOW + 60))


def test_a_forwarder_is_read_as_it_was_signed_and_nothing_else_under_its_key() -> None:
    forwarder = fwd.Forwarder(addresses=["/ip4/8.8.8.8/tcp/1"], circuits=1, most=9, rate=2.5)
    signed = records.sign_forwarder(ME, forwarder, NOW + 60)
    peer_id, read = records.verify_forwarder(signed, now=NOW, config=CONFIG)
    assert (peer_id, list(read.addresses), read.most, read.instance) == (
        ME.peer_id, ["/ip4/8.8.8.8/tcp/1"], 9, ME.instance,
    )  # fmt: skip
    for broken in (
        fwd.Forwarder(),
        fwd.Forwarder(addresses=["nowhere"]),
        fwd.Forwarder(addresses=["/x"], rate=float("nan")),
        fwd.Forwarder(addresses=["/x"] * 17),
        fwd.Forwarder(addresses=["/x"], version="\n"),
    ):
        opened = records.open_signed(records.sign_forwarder(ME, broken, NOW + 60), now=NOW, config=CONFIG)
        with pytest.raises(RecordRefused):
            records.check_content(opened)
    with pytest.raises(RecordRefused, match="expired"):
        records.verify_forwarder(signed, now=NOW + 61, config=CONFIG)
