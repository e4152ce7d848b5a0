"""The ends of a model on the wire: how much may be asked for at once, and the checks of foreign bytes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.config import MIB
from swarm.contract import FINGERPRINT_BYTES
from swarm.errors import MalformedFrame
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import DIGEST, MAX_TEXT, require

ENDS_PROTOCOL = "/swarm/ends/1.0.0"
MOST_BYTES = 2 * MIB
"""Of rows, of logits with their tokens, and of embeddings, in one frame."""
MOST_TOKENS = 4096
"""Whose embeddings are asked for at once."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TOKEN_BYTES = 4


def rows_at_once(row_bytes: int, vocabulary: int, best: int, dtype: str) -> int:
    """How many rows may go into the head together; 0: not even one has room for what comes of it."""
    return MOST_BYTES // max(row_bytes, logit_bytes(vocabulary, best, dtype))


def logit_bytes(vocabulary: int, best: int, dtype: str) -> int:
    """What comes of one row."""
    return (best * TOKEN_BYTES if best else 0) + (best or vocabulary) * ITEM_BYTES[dtype]


def tokens_at_once(row_bytes: int) -> int:
    """Whose embeddings may be asked for together."""
    return min(MOST_TOKENS, MOST_BYTES // row_bytes)


def check_wanted(message: pb.EndsWanted) -> pb.EndsWanted:
    """Bounds of an EndsWanted. Raises MalformedFrame."""
    require(0 < len(message.model) <= MAX_TEXT and message.dtype in ITEM_BYTES, "these are no ends of a model")
    require(len(message.fingerprint) in (0, FINGERPRINT_BYTES), f"a fingerprint has {FINGERPRINT_BYTES} bytes")
    return message


def check_head(message: pb.HeadWanted, row_bytes: int, vocabulary: int, dtype: str) -> pb.HeadWanted:
    """Bounds of a HeadWanted, and that its rows are as many as it says. Raises MalformedFrame."""
    require(message.best < vocabulary, f"{message.best} of {vocabulary} logits: 0 asks for all")
    most = rows_at_once(row_bytes, vocabulary, message.best, dtype)
    require(0 < message.rows <= most, f"{message.rows} rows at once, of {most} at most")
    size = message.rows * row_bytes
    require(len(message.hidden) == size, f"{len(message.hidden)} bytes for {message.rows} rows of {row_bytes}")
    return message


def check_embed(message: pb.Tokens, row_bytes: int) -> Sequence[int]:
    """The tokens whose embeddings are asked for. Raises MalformedFrame."""
    most = tokens_at_once(row_bytes)
    require(0 < len(message.ids) <= most, f"{len(message.ids)} embeddings at once, of {most} at most")
    return list(message.ids)


def check_opened(message: pb.EndsOpened, fingerprint: bytes, vocabulary: int, row_bytes: int, dtype: str) -> bytes:
    """The whole fingerprint of ends that have these shapes. Raises MalformedFrame where they are others."""
    require(len(message.fingerprint) == DIGEST, f"a fingerprint has {DIGEST} bytes")
    require(message.fingerprint.startswith(fingerprint), "it has other ends than it announces")
    size = message.hidden_size * ITEM_BYTES[dtype]
    if (message.vocabulary, size) != (vocabulary, row_bytes):
        raise MalformedFrame(f"its head has {message.vocabulary} outputs of rows of {size} bytes")
    return message.fingerprint


def check_logits(message: pb.Logits, rows: int, vocabulary: int, best: int, dtype: str) -> tuple[bytes, bytes]:
    """Tokens and logits of so many rows. Raises MalformedFrame where there are more or fewer."""
    require(len(message.tokens) == rows * best * TOKEN_BYTES, "logits of more or fewer tokens than were asked for")
    size = rows * (best or vocabulary) * ITEM_BYTES[dtype]
    require(len(message.values) == size, f"{len(message.values)} bytes of logits, not {size}")
    return message.tokens, message.values
