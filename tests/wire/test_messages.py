"""Frames: any bytes are a message within its bounds, or malformed."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from swarm import errors
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

KINDS = [pb.ControlRequest, pb.ControlReply, pb.Data, pb.BlocksRequest, pb.BlocksReply]
UINT32, UINT64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
BYTES, TEXT = st.binary(max_size=40), st.text(max_size=20)
SPECIAL = st.sampled_from([0, 1, messages.MAX_POSITION - 1, messages.MAX_POSITION, 2**32 - 1])
NUMBER = st.one_of(st.integers(0, 5), SPECIAL)


@st.composite
def any_step(draw: st.DrawFn) -> pb.Step:
    return pb.Step(
        operations=[
            pb.Operation(kind=draw(st.integers(-2, 9)), source=draw(NUMBER), target=draw(NUMBER), length=draw(NUMBER))
            for _ in range(draw(st.integers(0, 3)))
        ],
        rows=[
            pb.Rows(sequence=draw(NUMBER), start=draw(NUMBER), count=draw(NUMBER), want=draw(NUMBER))
            for _ in range(draw(st.integers(0, 3)))
        ],
        hidden=draw(BYTES),
    )


@st.composite
def any_message(draw: st.DrawFn) -> Message:
    """A valid protobuf message with nonsense in it."""
    position = st.builds(pb.Position, sequence=NUMBER, position=NUMBER)
    sequence = st.builds(pb.Sequence, id=NUMBER, length=NUMBER, parent=NUMBER, parent_length=NUMBER)
    lists = st.lists(position, max_size=3)
    contract = st.builds(pb.Contract, model=TEXT, first=NUMBER, last=NUMBER, fingerprints=BYTES, dtype=TEXT)
    return draw(
        st.one_of(
            st.builds(pb.Open, session=BYTES, contract=contract),
            st.builds(pb.Attach, session=BYTES),
            st.builds(pb.Prepare, epoch=UINT64, sequences=st.lists(sequence, max_size=4), upstream=TEXT),
            st.builds(pb.Resume, epoch=UINT64, cuts=lists, replays=lists, wants=lists),
            st.builds(pb.Hello, session=BYTES, epoch=UINT64, role=st.integers(0, 9)),
            st.builds(pb.Failure, code=st.integers(0, 20), message=TEXT, retry_after=st.floats(), epoch=UINT64),
            any_step(),
        )
    )


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(kind: type[Any], frame: bytes) -> None:
    try:
        message = messages.decode(kind, frame)
    except errors.MalformedFrame:
        return
    assert message.WhichOneof("kind")


@given(any_message(), st.data())
def test_a_damaged_message_is_a_message_or_malformed(message: Message, data: st.DataObject) -> None:
    field = {
        "Open": "open", "Attach": "attach", "Prepare": "prepare", "Resume": "resume", "Hello": "hello", "Step": "step",
        "Failure": "failure",
    }[type(message).__name__]  # fmt: skip
    kind = next(k for k in KINDS if field in k.DESCRIPTOR.fields_by_name)
    frame = bytearray(kind(**{field: message}).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(0, len(frame))) :]
    try:
        decoded = messages.decode(kind, bytes(frame))
    except errors.MalformedFrame:
        return
    check_whatever(getattr(decoded, decoded.WhichOneof("kind") or ""))


def check_whatever(message: Message) -> None:
    """The bounds of a message, if it has any."""
    try:
        if isinstance(message, pb.Open):
            messages.check_open(message)
        elif isinstance(message, pb.Prepare):
            messages.check_prepare(message)
        elif isinstance(message, pb.Resume):
            messages.check_resume(message)
        elif isinstance(message, pb.Step):
            messages.check_step(message, 8)
        elif isinstance(message, pb.Failure):
            assert isinstance(messages.error_of(message, "peer"), errors.SwarmError)
    except errors.MalformedFrame:
        pass


@given(any_step(), st.sampled_from([1, 8]))
def test_a_step_that_passes_is_what_it_says(step: pb.Step, row_bytes: int) -> None:
    try:
        messages.check_step(step, row_bytes)
    except errors.MalformedFrame:
        return
    assert sum(row.count for row in step.rows) * row_bytes == len(step.hidden)
    assert all(row.count > 0 and row.want <= row.count for row in step.rows)
    assert len({row.sequence for row in step.rows}) == len(step.rows)
    assert {operation.kind for operation in step.operations} <= {0, 1, 2}


def opening(**changes: Any) -> pb.Open:
    session = changes.pop("session", bytes(16))
    fields = {"first": 2, "last": 4, "fingerprints": bytes(16), "model": "m", "dtype": "f", "hidden_size": 2}
    return pb.Open(session=session, contract=pb.Contract(**{**fields, "row_bytes": 8, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"session": bytes(15)},
        {"session": b""},
        {"first": 4},
        {"first": 5},
        {"last": messages.MAX_POSITION + 1},
        {"fingerprints": b""},
        {"fingerprints": bytes(8)},
        {"fingerprints": bytes(24)},
        {"fingerprints": bytes(15)},
        {"model": ""},
        {"model": "a/b"},
        {"model": "m" * 257},
        {"dtype": "f" * 257},
        {"dtype": "f\n"},
        {"adapters": ["a"] * 17},
        {"adapters": ["a" * 257]},
        {"hidden_size": 0},
        {"row_bytes": 0},
    ],
)
def test_an_open_out_of_bounds_is_malformed(changes: dict[str, Any]) -> None:
    messages.check_open(opening())
    with pytest.raises(errors.MalformedFrame):
        messages.check_open(opening(**changes))


MANY = range(messages.MAX_SEQUENCES + 1)


@pytest.mark.parametrize(
    "message",
    [
        pb.Prepare(sequences=[pb.Sequence(id=i) for i in MANY]),
        pb.Prepare(sequences=[pb.Sequence(id=1), pb.Sequence(id=1)]),
        pb.Prepare(sequences=[pb.Sequence(id=1, length=messages.MAX_POSITION + 1)]),
        pb.Prepare(upstream="x" * 129),
        pb.Prepare(downstream=pb.Downstream(session=b"short")),
    ],
    ids=["too many", "twice", "too long", "no peer", "no session"],
)
def test_a_prepare_out_of_bounds_is_malformed(message: pb.Prepare) -> None:
    with pytest.raises(errors.MalformedFrame):
        messages.check_prepare(message)


@pytest.mark.parametrize("field", ["cuts", "replays", "wants"])
def test_a_resume_out_of_bounds_is_malformed(field: str) -> None:
    for positions in ([pb.Position(sequence=i) for i in MANY], [pb.Position(sequence=3)] * 2):
        with pytest.raises(errors.MalformedFrame):
            messages.check_resume(pb.Resume(**{field: positions}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (errors.SessionNotFound("x"), errors.SessionNotFound),
        (errors.Gap("x"), errors.Gap),
        (errors.LimitExceeded("x"), errors.LimitExceeded),
        (errors.ContractMismatch("x"), errors.ContractMismatch),
        (errors.ComputeFailed("x"), errors.ComputeFailed),
        (errors.ContextTooLong("x"), errors.ContextTooLong),
        (errors.MalformedFrame("x"), errors.FrameRejected),
        (errors.FrameTooLarge("x"), errors.FrameRejected),
        (errors.Unauthorized("x"), errors.FrameRejected),
        (errors.RecordRefused("x"), errors.RemoteError),
    ],
)
def test_errors_travel(error: errors.SwarmError, arrives: type[errors.SwarmError]) -> None:
    message = messages.failure(error, epoch=7)
    assert message.epoch == 7
    found = messages.error_of(message, "somebody")
    assert type(found) is arrives
    assert str(found) == "somebody: x"


@pytest.mark.parametrize(("said", "taken"), [(2.5, 2.5), (-1.0, 0.0), (1e9, 60.0), (float("inf"), 60.0)])
def test_how_long_somebody_is_busy_travels_within_reason(said: float, taken: float) -> None:
    found = messages.error_of(messages.failure(errors.ServerBusy("x", retry_after=said)), "peer")
    assert isinstance(found, errors.ServerBusy)
    assert found.retry_after == taken


def test_a_code_of_the_future_is_an_error_of_no_special_kind() -> None:
    assert type(messages.error_of(pb.Failure(code=99), "peer")) is errors.RemoteError  # type: ignore[arg-type]


def test_what_a_session_may_have_travels_in_numbers() -> None:
    told = messages.failure(errors.LimitExceeded("x", "sequences", 256, 300))
    assert (told.code, told.limit, told.allowed, told.asked) == (pb.Failure.LIMIT, "sequences", 256, 300)
    found = messages.error_of(told, "peer")
    assert isinstance(found, errors.LimitExceeded)
    assert (found.limit, found.allowed, found.asked) == ("sequences", 256, 300)
    told.limit = "x" * 10**6
    assert len(messages.error_of(told, "peer").limit) == messages.MAX_LIMIT_NAME  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", [code for code in pb.Failure.Code.values() if code])
def test_every_code_has_an_error_of_its_own(code: pb.Failure.Code) -> None:
    broken = (pb.Failure.MALFORMED, pb.Failure.UNAUTHORIZED)
    found = messages.error_of(pb.Failure(code=code), "peer")
    assert type(found) is errors.FrameRejected if code in broken else messages.failure(found).code == code


def test_a_novel_is_not_carried_in_an_error() -> None:
    assert len(messages.failure(errors.ComputeFailed("x" * 10**6)).message) == 1000
    assert len(str(messages.error_of(pb.Failure(message="x" * 10**6), "peer"))) < 1100


@given(
    st.builds(
        pb.BlockManifest,
        fingerprint=st.sampled_from([b"", bytes(8), bytes(32)]),
        size=UINT64 | st.integers(0, 4 * messages.PIECE),
        pieces=st.integers(0, 5).map(lambda count: bytes(32 * count)) | BYTES,
    )
)
def test_a_manifest_has_as_many_pieces_as_its_size_says_or_is_malformed(manifest: pb.BlockManifest) -> None:
    try:
        messages.check_block_manifest(manifest)
    except errors.MalformedFrame:
        return
    assert len(manifest.fingerprint) == 32
    assert (
        len(manifest.pieces) // 32 * messages.PIECE >= manifest.size > (len(manifest.pieces) // 32 - 1) * messages.PIECE
    )


@given(st.builds(pb.BlockWanted, model=TEXT | st.text(max_size=400), block=NUMBER, quantization=TEXT))
def test_a_block_that_is_wanted_has_a_name_within_bounds_or_is_malformed(wanted: pb.BlockWanted) -> None:
    try:
        messages.check_block_wanted(wanted)
    except errors.MalformedFrame:
        return
    assert 0 < len(wanted.model) <= messages.MAX_TEXT and wanted.block < messages.MAX_POSITION
