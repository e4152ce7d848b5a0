"""Frames to messages and back. Every byte that a stranger sent is checked here before anything acts on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from swarm.contract import FINGERPRINT_BYTES, UNQUANTIZED, Contract
from swarm.coordinates import Coordinate
from swarm.errors import (
    ComputeFailed,
    ContextTooLong,
    ContractMismatch,
    FrameRejected,
    Gap,
    Implausible,
    InvalidInput,
    LimitExceeded,
    MalformedFrame,
    MissingBlocks,
    ProtocolError,
    Refuted,
    RemoteError,
    ServerBusy,
    SessionNotFound,
    SwarmError,
    Unauthorized,
    Unsigned,
)
from swarm.span import Span
from swarm.types import PeerId, printable
from swarm.wire import swarm_pb2 as pb

CONTROL_PROTOCOL = "/swarm/control/1.0.0"
DATA_PROTOCOL = "/swarm/data/1.0.0"
QUERY_PROTOCOL = "/swarm/query/1.0.0"
MAP_PROTOCOL = "/swarm/map/1.0.0"
BLOCKS_PROTOCOL = "/swarm/blocks/1.0.0"
PING_PROTOCOL = "/swarm/ping/1.0.0"
RECORDS_PROTOCOL = "/swarm/records/1.0.0"
RECEIPTS_PROTOCOL = "/swarm/receipts/1.0.0"
DIRECTORY_PROTOCOL = "/swarm/directory/1.0.0"

SESSION_BYTES = 16
MAX_POSITION = 1 << 24
MAX_SEQUENCES = 4096
MAX_OPERATIONS = 8192
MAX_PADDING = 64 * 1024
MAX_LIMIT_NAME = 32
MAX_TEXT = 256
"""Characters of a name, a key and the like."""
MAX_ADAPTERS = 16
MAX_PLACES = 8
"""Integers that say where one position stands."""
PIECE = 1 << 20
"""Bytes of a block's file that are asked for at once."""
MAX_PIECES = 1 << 15
DIGEST = 32
"""Bytes of a sha256."""

M = TypeVar("M", bound=Message)

_ERRORS: dict[pb.Failure.Code, type[SwarmError]] = {
    pb.Failure.BUSY: ServerBusy,
    pb.Failure.SESSION_NOT_FOUND: SessionNotFound,
    pb.Failure.CONTRACT_MISMATCH: ContractMismatch,
    pb.Failure.COMPUTE_FAILED: ComputeFailed,
    pb.Failure.MALFORMED: MalformedFrame,
    pb.Failure.UNAUTHORIZED: Unauthorized,
    pb.Failure.GAP: Gap,
    pb.Failure.TOO_LONG: ContextTooLong,
    pb.Failure.INVALID: InvalidInput,
    pb.Failure.MISSING_BLOCKS: MissingBlocks,
    pb.Failure.LIMIT: LimitExceeded,
    pb.Failure.IMPLAUSIBLE: Implausible,
    pb.Failure.REFUTED: Refuted,
    pb.Failure.UNSIGNED: Unsigned,
}


def decode(kind: type[M], frame: bytes) -> M:
    """Parse one frame. Raises MalformedFrame when it is no `kind`, or holds none of its alternatives."""
    message = kind()
    try:
        message.ParseFromString(frame)
    except DecodeError as error:
        raise MalformedFrame(f"{len(frame)} bytes are no {kind.__name__}") from error
    if "kind" in kind.DESCRIPTOR.oneofs_by_name and message.WhichOneof("kind") is None:
        raise MalformedFrame(f"a {kind.__name__} of no known kind")
    return message


def require(condition: bool, what: str) -> None:
    """Raises MalformedFrame(what) unless the condition holds."""
    if not condition:
        raise MalformedFrame(what)


def check_open(message: pb.Open) -> pb.Open:
    """Bounds of an Open. Raises MalformedFrame."""
    require(len(message.session) == SESSION_BYTES, f"a session id has {SESSION_BYTES} bytes")
    require(len(message.adapter) in (0, DIGEST), f"the digest of an adapter has {DIGEST} bytes")
    contract = contract_of(message.contract)
    require(bool(contract.fingerprints), "one fingerprint a block")
    require(contract.hidden_size > 0 and contract.row_bytes > 0, "the sizes of hidden states are not said")
    return message


def coordinate_message(coordinate: Coordinate | None) -> pb.Coordinate | None:
    """Where a peer is, for the wire."""
    if coordinate is None:
        return None
    return pb.Coordinate(point=coordinate.point, height=coordinate.height, error=coordinate.error)


def coordinate_of(message: pb.Coordinate) -> Coordinate:
    """Where a peer says that it is. Raises MalformedFrame."""
    try:
        return Coordinate(tuple(message.point), message.height, message.error)
    except ValueError as error:
        raise MalformedFrame(str(error)) from error


def contract_message(contract: Contract) -> pb.Contract:
    """A contract for the wire, with fingerprints as short as they are announced."""
    return pb.Contract(
        model=contract.model,
        first=contract.span.first,
        last=contract.span.last,
        fingerprints=b"".join(contract.announced.fingerprints),
        dtype=contract.dtype,
        quantization=contract.quantization,
        adapters=contract.adapters,
        hidden_size=contract.hidden_size,
        row_bytes=contract.row_bytes,
        places=contract.places,
        joined=[edge for run in contract.joined for edge in (run.first, run.last)],
    )


def contract_of(message: pb.Contract) -> Contract:
    """A contract from the wire. Raises MalformedFrame."""
    require(message.first < message.last <= MAX_POSITION, f"{message.first}:{message.last} is no span")
    blocks, prints, width = message.last - message.first, message.fingerprints, FINGERPRINT_BYTES
    require(len(prints) in (0, width * blocks), f"one fingerprint of {width} bytes a block")
    require(0 < len(message.model) <= MAX_TEXT and "/" not in message.model, "this is no model's key")
    require(len(message.adapters) <= MAX_ADAPTERS, "too many adapters")
    require(message.places <= MAX_PLACES, "more places than a position can have")
    edges, span = list(message.joined), Span(message.first, message.last)
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    apart = edges == sorted(edges) and all(first + 1 < last for first, last in pairs)
    within = not edges or (span.first <= edges[0] and edges[-1] <= span.last)
    require(len(edges) % 2 == 0 and apart and within, "these are no runs of blocks of a span")
    texts = (message.model, message.dtype, message.quantization, *message.adapters)
    require(all(len(text) <= MAX_TEXT and text.isprintable() for text in texts), "texts of a contract are too long")
    return Contract(
        model=message.model,
        span=span,
        fingerprints=tuple(prints[i : i + width] for i in range(0, len(prints), width)),
        dtype=message.dtype,
        quantization=message.quantization or UNQUANTIZED,
        adapters=tuple(message.adapters),
        hidden_size=message.hidden_size,
        row_bytes=message.row_bytes,
        places=message.places,
        joined=tuple(Span(first, last) for first, last in pairs),
    )


def check_prepare(message: pb.Prepare) -> pb.Prepare:
    """Bounds of a Prepare. Raises MalformedFrame."""
    require(len(message.sequences) <= MAX_SEQUENCES, "too many sequences")
    require(all(s.length <= MAX_POSITION for s in message.sequences), "a sequence is too long")
    require(_distinct(s.id for s in message.sequences), "a sequence is named twice")
    require(len(message.upstream) <= 128, "the upstream is no peer id")
    require(len(message.input_codec) <= 32 and len(message.output_codec) <= 32, "the name of a codec is too long")
    if message.HasField("downstream"):
        require(len(message.downstream.session) == SESSION_BYTES, f"a session id has {SESSION_BYTES} bytes")
    return message


def check_resume(message: pb.Resume) -> pb.Resume:
    """Bounds of a Resume. Raises MalformedFrame."""
    for positions in (message.cuts, message.replays, message.wants):
        require(len(positions) <= MAX_SEQUENCES, "too many sequences")
        require(_distinct(p.sequence for p in positions), "a sequence is named twice")
    return message


def check_recall(message: pb.Recall) -> pb.Recall:
    """Bounds of a Recall. Raises MalformedFrame."""
    require(len(message.digest) == DIGEST, f"the digest of a beginning has {DIGEST} bytes")
    return message


def check_kept(message: pb.Kept) -> pb.Kept:
    """Bounds of a Kept. Raises MalformedFrame."""
    require(len(message.digest) == DIGEST, f"the digest of a beginning has {DIGEST} bytes")
    require(message.positions <= MAX_POSITION, "what is kept is too long")
    return message


def check_probe(message: pb.Probe) -> pb.Probe:
    """Bounds of a Probe. Raises MalformedFrame."""
    padding = max(len(message.padding), message.reply_bytes)
    require(padding <= MAX_PADDING, f"{padding} bytes of padding, above the limit of {MAX_PADDING}")
    return message


def check_step(step: pb.Step, row_bytes: int) -> pb.Step:
    """Bounds of a Step, and that its rows are as many as it says. Raises MalformedFrame."""
    require(len(step.operations) <= MAX_OPERATIONS and len(step.rows) <= MAX_SEQUENCES, "too much in one step")
    total = 0
    for rows in step.rows:
        require(rows.count > 0 and rows.want <= rows.count, "a step with empty or impossible rows")
        require(rows.start + rows.count <= MAX_POSITION, "a position beyond any context")
        total += rows.count
    require(len(step.rows) < 2 or _distinct(r.sequence for r in step.rows), "a sequence is named twice")
    require(total * row_bytes == len(step.hidden), f"{len(step.hidden)} bytes for {total} rows of {row_bytes}")
    for operation in step.operations:
        require(operation.kind in pb.Operation.Kind.values(), "an operation of no known kind")
        onto_itself = operation.kind != pb.Operation.FREE and operation.source == operation.target
        require(not onto_itself, "a sequence cannot become itself")
        require(operation.length <= MAX_POSITION, "a position beyond any context")
    return step


def check_block_wanted(message: pb.BlockWanted) -> pb.BlockWanted:
    """Bounds of a BlockWanted. Raises MalformedFrame."""
    require(0 < len(message.model) <= MAX_TEXT and len(message.quantization) <= MAX_TEXT, "this is no block's name")
    require(message.block < MAX_POSITION, "a block beyond any model")
    return message


def check_block_manifest(message: pb.BlockManifest) -> pb.BlockManifest:
    """Bounds of a BlockManifest, and that its pieces are as many as its size says. Raises MalformedFrame."""
    require(len(message.fingerprint) == DIGEST, f"a fingerprint has {DIGEST} bytes")
    count = -(-message.size // PIECE)
    require(count <= MAX_PIECES, f"a block of {message.size} bytes")
    require(len(message.pieces) == count * DIGEST, f"{DIGEST} bytes for each of {count} pieces")
    return message


def _distinct(ids: Iterable[int]) -> bool:
    listed = list(ids)
    return len(set(listed)) == len(listed)


def failure(error: SwarmError, epoch: int = 0) -> pb.Failure:
    """What goes over the wire for an error of ours; the most specific code that fits."""
    codes = {kind: code for code, kind in _ERRORS.items()}
    code = next((codes[kind] for kind in type(error).__mro__ if kind in codes), None)
    if code is None:
        code = pb.Failure.MALFORMED if isinstance(error, ProtocolError) else pb.Failure.UNKNOWN
    told = pb.Failure(code=code, message=error.message[:1000], epoch=epoch)
    if isinstance(error, ServerBusy):
        told.retry_after = error.retry_after
    elif isinstance(error, LimitExceeded):
        told.limit, told.allowed, told.asked = error.limit, error.allowed, error.asked
    elif isinstance(error, Implausible):
        told.sequence, told.position = error.sequence, error.position
        told.twin = 0 if error.twin is None else error.twin + 1
    return told


def error_of(
    message: pb.Failure, peer: PeerId, *, where: str = "", span: Span | None = None, session: bytes | None = None
) -> SwarmError:
    """The error that a Failure of `peer` stands for, with the peer named, or `where` it is in words."""
    return _error_of(message, where or peer).attach(peer=peer, span=span, session=session)


def _error_of(message: pb.Failure, where: str) -> SwarmError:
    text = f"{where}: {printable(message.message[:1000]) or 'no reason given'}"
    if message.code == pb.Failure.BUSY:
        return ServerBusy(text, retry_after=min(max(message.retry_after, 0.0), 60.0))
    if message.code == pb.Failure.LIMIT:
        return LimitExceeded(text, printable(message.limit[:MAX_LIMIT_NAME]), message.allowed, message.asked)
    if message.code == pb.Failure.IMPLAUSIBLE:
        return Implausible(text, message.sequence, message.position, message.twin - 1 if message.twin else None)
    if message.code in (pb.Failure.MALFORMED, pb.Failure.UNAUTHORIZED):
        return FrameRejected(text)
    return _ERRORS.get(message.code, RemoteError)(text)
