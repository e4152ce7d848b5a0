"""Every error that swarm raises, as one tree.

SwarmError
├── InvalidInput              you passed something that cannot work; fix the argument (also a ValueError)
│   ├── ContextTooLong        prompt + new tokens exceed the model's context; nothing was computed
│   └── NobodyFound           no address was given, and nobody on the local network has a swarm
├── ModelError
│   ├── ModelNotFound         no such model, revision or file, or no access to it
│   ├── BadCheckpoint         the files are there but broken, incomplete or of a refused format
│   ├── NotEnoughMemory       what is to be here of the model does not fit; the message says what would
│   └── UnsupportedModel      this architecture cannot be cut into spans; the message says what is in the way
├── NetworkError
│   ├── DaemonFailed          p2pd did not start, or died; the message holds its log and what to do
│   ├── EdgeFailed            a listener for browsers did not start, or they all ended; the message says why
│   ├── PeerUnreachable       nobody answers at the peer's addresses
│   │   └── WrongSwarmKey     it answers, and does not have the key of our swarm
│   ├── StreamClosed          the other side closed or lost the stream
│   └── RecordRefused         a directory record is unsigned, forged, too big or too long-lived
├── ProtocolError             the other side broke the protocol
│   ├── MalformedFrame        bytes that are no valid message
│   ├── FrameTooLarge         a frame above the limit of its protocol; it was not read
│   └── Unauthorized          a peer acted on a session or a link that is not its own
├── RemoteError               a server said no
│   ├── ServerBusy            no room now; `retry_after` says when to ask again
│   ├── LimitExceeded         more than one session may ever have there; `limit`, `allowed`, `asked` say of what
│   ├── SessionNotFound       the server does not know the session (restart, expiry); it is opened anew and replayed
│   ├── Gap                   the session is there, positions before those that came are not; they are sent again
│   ├── ContractMismatch      model, fingerprints, dtype or span differ from what the session needs
│   ├── ComputeFailed         the server's engine failed on this step
│   ├── Unsigned              the server has stopped: what it did on an account was not signed for
│   ├── Implausible           what a server sent cannot be hidden states; `position` of `sequence` is the first
│   └── FrameRejected         the server calls our frame malformed or unauthorised: a bug, here or there
├── BadEvidence               a file that is to show what a server computed is broken, forged or of another form
├── MissingBlocks             `max_wait` passed and some blocks still have no server
│   └── NoServerFits          there are servers, and none computes what is asked; said at once, with each one's reason
├── Refuted                   outputs that were given have turned out wrong, from `position` of `sequence` on
├── GenerationFailed          the same step failed on every server tried
├── BookFailed                the database of receipts cannot be read or written; the message says which and why
├── ProcessFailed             a process of a swarm on this machine did not come up; the message holds what it said
├── StepVoid                  the sequence was rolled back while this step of it was on its way
└── SessionClosed             the session was closed or cancelled while in use

A failure of a server or of a link is not in this list of things that reach you: the session reroutes.

Each has `peer`, `span` and `session`, where it is about one: set once, where the error leaves the network, and shown
behind the message. All can be pickled and copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class SwarmError(Exception):
    """The root of all errors of swarm.

    `peer`: with whom it happened, a peer id; `span`: the blocks that were wanted there, a `Span`; `session`: its id, 16
    bytes, shown as eight hex digits. None where that is not known, or where there is none.
    """

    peer: str | None = None
    span: object | None = None
    session: bytes | None = None

    @property
    def message(self) -> str:
        """What happened, without where."""
        return str(self.args[0]) if self.args else ""

    def attach(self, *, peer: str | None = None, span: object | None = None, session: bytes | None = None) -> Self:
        """Say where it happened, as far as that was not said before: who is nearest to it knows best."""
        self.peer = peer if self.peer is None else self.peer
        self.span = span if self.span is None else self.span
        self.session = session if self.session is None else self.session
        return self

    def __str__(self) -> str:
        message = self.message
        session = None if self.session is None else self.session.hex()[:8]
        about = [("peer", self.peer), ("blocks", self.span), ("session", session)]
        shown = [f"{what} {value}" for what, value in about if value is not None and str(value) not in message]
        return f"{message} ({', '.join(shown)})" if shown else message


class InvalidInput(SwarmError, ValueError):
    """An argument cannot work; the message says which and what to pass instead. `field`: which one of a query."""

    def __init__(self, message: str = "", field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NobodyFound(InvalidInput):
    """There was nobody to join through on the local network, and nobody was named; later there may be."""


class ContextTooLong(InvalidInput):
    """The sequence would exceed the model's context length; raised before any work begins."""


class ModelError(SwarmError):
    """Something is wrong with the model, not with the network."""


class ModelNotFound(ModelError):
    """No such model, revision or file, or no permission to read it."""


class BadCheckpoint(ModelError):
    """The checkpoint is incomplete, damaged, or in a format that is not read (pickle)."""


class NotEnoughMemory(ModelError):
    """What is to be here of the model takes more memory than there is; raised before it is loaded."""


class UnsupportedModel(ModelError):
    """This architecture cannot be cut into spans; the message says what is in the way."""


class NetworkError(SwarmError):
    """Something is wrong between peers."""


class DaemonFailed(NetworkError):
    """p2pd did not start or died; the message says what was tried and what to do, `details` what its log said."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details

    def __str__(self) -> str:
        return "\n".join(filter(None, (super().__str__(), self.details)))


class EdgeFailed(NetworkError):
    """The edge cannot listen at an address it was given, or ended unasked; the message says which and why."""


class PeerUnreachable(NetworkError):
    """No connection to the peer could be made at any of its addresses."""


class WrongSwarmKey(PeerUnreachable):
    """The peer is there and does not prove that it has this swarm's key: it has another, or none."""


class StreamClosed(NetworkError):
    """The stream ended: the other side closed it, or the connection was lost."""


class RecordRefused(NetworkError):
    """A directory record is unsigned, forged, expired, too large or claims too long a life."""


class ProtocolError(SwarmError):
    """The other side broke the protocol."""


class MalformedFrame(ProtocolError):
    """The bytes are no valid message of this protocol."""


class FrameTooLarge(ProtocolError):
    """The frame is above its protocol's limit; it was not read."""


class Unauthorized(ProtocolError):
    """A peer acted on a session, or as an upstream, that is not its own."""


class RemoteError(SwarmError):
    """A server said no."""


class ServerBusy(RemoteError):
    """The server has no room now. `retry_after`: seconds after which to ask again."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SessionNotFound(RemoteError):
    """The server does not know this session: it restarted, or the session expired."""


class LimitExceeded(RemoteError):
    """One session may not have so much, now or later. `limit`: sequences or positions; of these there may be `allowed`,
    and would have been `asked`."""

    def __init__(self, message: str, limit: str = "", allowed: int = 0, asked: int = 0) -> None:
        super().__init__(message)
        self.limit = limit
        self.allowed = allowed
        self.asked = asked


class Gap(RemoteError):
    """Positions are missing before those that came: the cache was evicted, or the hop before left something out."""


class ContractMismatch(RemoteError):
    """The server serves another model, other weights, another dtype or other blocks."""


class ComputeFailed(RemoteError):
    """The server's engine failed on this step."""


class Implausible(RemoteError):
    """What a server sent cannot be hidden states of this text: `position` of `sequence` is the first such.

    `twin`: the position whose hidden state it is, where it is that of another.
    """

    def __init__(self, message: str, sequence: int = 0, position: int = 0, twin: int | None = None) -> None:
        super().__init__(message)
        self.sequence = sequence
        self.position = position
        self.twin = twin


class Unsigned(RemoteError):
    """A server does no more on an account on which it was not signed for what it did."""


class FrameRejected(RemoteError):
    """The server says that we broke the protocol: a bug in this client, or in that server."""


class BadEvidence(SwarmError):
    """Bytes that are no evidence: broken, or not signed by the server they speak of."""


class MissingBlocks(SwarmError):
    """No server hosts some blocks, and `max_wait` has passed. `blocks`: half-open ranges without a server."""

    def __init__(self, message: str, blocks: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__(message)
        self.blocks = tuple(blocks)


class NoServerFits(MissingBlocks):
    """There are servers for these blocks, and none will ever do what is asked; the message says why, of each.

    `beyond`: the error to raise where all are too small.
    """

    def __init__(self, message: str, blocks: Sequence[tuple[int, int]] = (), beyond: SwarmError | None = None) -> None:
        super().__init__(message, blocks)
        self.beyond = beyond


class Refuted(SwarmError):
    """A server computed wrong, as was found out after its outputs were given: all from `position` of `sequence` on.

    The server is not used any more. Begin again, with another cache; `generate` does so by itself.
    """

    def __init__(self, message: str, sequence: int = 0, position: int = 0) -> None:
        super().__init__(message)
        self.sequence = sequence
        self.position = position


class GenerationFailed(SwarmError):
    """The same step failed on every server that was tried; the last failure is the cause."""


class BookFailed(SwarmError):
    """The database of receipts cannot be read or written."""


class ProcessFailed(SwarmError):
    """A process that was started on this machine ended or did not come up; the message holds what it printed."""


class StepVoid(SwarmError):
    """The step's sequence was ended, by a rollback that came after it: its outputs are of no use and will not come."""


class SessionClosed(SwarmError):
    """The session was closed or cancelled while it was in use."""
