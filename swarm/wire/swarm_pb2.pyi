from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Contract(_message.Message):
    __slots__ = ("model", "first", "last", "fingerprints", "dtype", "quantization", "adapters", "hidden_size", "row_bytes", "joined", "places")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    model: str
    first: int
    last: int
    fingerprints: bytes
    dtype: str
    quantization: str
    adapters: _containers.RepeatedScalarFieldContainer[str]
    hidden_size: int
    row_bytes: int
    joined: _containers.RepeatedScalarFieldContainer[int]
    places: int
    def __init__(self, model: _Optional[str] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., fingerprints: _Optional[bytes] = ..., dtype: _Optional[str] = ..., quantization: _Optional[str] = ..., adapters: _Optional[_Iterable[str]] = ..., hidden_size: _Optional[int] = ..., row_bytes: _Optional[int] = ..., joined: _Optional[_Iterable[int]] = ..., places: _Optional[int] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("open", "attach", "prepare", "resume", "probe", "close", "receipt", "settle", "recall")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SETTLE_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    open: Open
    attach: Attach
    prepare: Prepare
    resume: Resume
    probe: Probe
    close: Close
    receipt: Entry
    settle: Settle
    recall: Recall
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., receipt: _Optional[_Union[Entry, _Mapping]] = ..., settle: _Optional[_Union[Settle, _Mapping]] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session", "contract", "positions", "adapter", "accounting", "commit")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTING_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    contract: Contract
    positions: int
    adapter: bytes
    accounting: Accounting
    commit: bool
    def __init__(self, session: _Optional[bytes] = ..., contract: _Optional[_Union[Contract, _Mapping]] = ..., positions: _Optional[int] = ..., adapter: _Optional[bytes] = ..., accounting: _Optional[_Union[Accounting, _Mapping]] = ..., commit: _Optional[bool] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("epoch", "sequences", "upstream", "downstream", "relayed", "input_codec", "output_codec", "rollback", "moves", "recalls", "check_inputs")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    DOWNSTREAM_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    INPUT_CODEC_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_CODEC_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    RECALLS_FIELD_NUMBER: _ClassVar[int]
    CHECK_INPUTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequences: _containers.RepeatedCompositeFieldContainer[Sequence]
    upstream: str
    downstream: Downstream
    relayed: bool
    input_codec: str
    output_codec: str
    rollback: bool
    moves: bool
    recalls: bool
    check_inputs: bool
    def __init__(self, epoch: _Optional[int] = ..., sequences: _Optional[_Iterable[_Union[Sequence, _Mapping]]] = ..., upstream: _Optional[str] = ..., downstream: _Optional[_Union[Downstream, _Mapping]] = ..., relayed: _Optional[bool] = ..., input_codec: _Optional[str] = ..., output_codec: _Optional[str] = ..., rollback: _Optional[bool] = ..., moves: _Optional[bool] = ..., recalls: _Optional[bool] = ..., check_inputs: _Optional[bool] = ...) -> None: ...

class Sequence(_message.Message):
    __slots__ = ("id", "length", "parent", "parent_length")
    ID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PARENT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    id: int
    length: int
    parent: int
    parent_length: int
    def __init__(self, id: _Optional[int] = ..., length: _Optional[int] = ..., parent: _Optional[int] = ..., parent_length: _Optional[int] = ...) -> None: ...

class Downstream(_message.Message):
    __slots__ = ("session", "record")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    record: bytes
    def __init__(self, session: _Optional[bytes] = ..., record: _Optional[bytes] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("epoch", "cuts", "replays", "wants")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    REPLAYS_FIELD_NUMBER: _ClassVar[int]
    WANTS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    cuts: _containers.RepeatedCompositeFieldContainer[Position]
    replays: _containers.RepeatedCompositeFieldContainer[Position]
    wants: _containers.RepeatedCompositeFieldContainer[Position]
    def __init__(self, epoch: _Optional[int] = ..., cuts: _Optional[_Iterable[_Union[Position, _Mapping]]] = ..., replays: _Optional[_Iterable[_Union[Position, _Mapping]]] = ..., wants: _Optional[_Iterable[_Union[Position, _Mapping]]] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("sequence", "position")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    position: int
    def __init__(self, sequence: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("nonce", "padding", "reply_bytes", "tallies", "commit")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TALLIES_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    padding: bytes
    reply_bytes: int
    tallies: bool
    commit: bool
    def __init__(self, nonce: _Optional[int] = ..., padding: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ..., tallies: _Optional[bool] = ..., commit: _Optional[bool] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Settle(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Recall(_message.Message):
    __slots__ = ("contract", "digest")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    contract: Contract
    digest: bytes
    def __init__(self, contract: _Optional[_Union[Contract, _Mapping]] = ..., digest: _Optional[bytes] = ...) -> None: ...

class ControlReply(_message.Message):
    __slots__ = ("opened", "have", "progress", "link_down", "leaving", "failure", "claim", "receipt", "commitment", "shorter_way", "kept")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LINK_DOWN_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SHORTER_WAY_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    have: Have
    progress: Progress
    link_down: LinkDown
    leaving: Leaving
    failure: Failure
    claim: Claim
    receipt: Entry
    commitment: Commitment
    shorter_way: ShorterWay
    kept: Kept
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., have: _Optional[_Union[Have, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., link_down: _Optional[_Union[LinkDown, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., claim: _Optional[_Union[Claim, _Mapping]] = ..., receipt: _Optional[_Union[Entry, _Mapping]] = ..., commitment: _Optional[_Union[Commitment, _Mapping]] = ..., shorter_way: _Optional[_Union[ShorterWay, _Mapping]] = ..., kept: _Optional[_Union[Kept, _Mapping]] = ...) -> None: ...

class ShorterWay(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class Kept(_message.Message):
    __slots__ = ("sequence", "positions", "digest")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    positions: int
    digest: bytes
    def __init__(self, sequence: _Optional[int] = ..., positions: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session", "can_rollback", "max_positions", "fingerprints", "codecs", "max_sequences", "max_total_positions", "prefix_chunk", "accounting", "rollback", "commits")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CAN_ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOTAL_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CHUNK_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTING_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    can_rollback: bool
    max_positions: int
    fingerprints: _containers.RepeatedScalarFieldContainer[bytes]
    codecs: _containers.RepeatedScalarFieldContainer[str]
    max_sequences: int
    max_total_positions: int
    prefix_chunk: int
    accounting: Accounting
    rollback: int
    commits: bool
    def __init__(self, session: _Optional[bytes] = ..., can_rollback: _Optional[bool] = ..., max_positions: _Optional[int] = ..., fingerprints: _Optional[_Iterable[bytes]] = ..., codecs: _Optional[_Iterable[str]] = ..., max_sequences: _Optional[int] = ..., max_total_positions: _Optional[int] = ..., prefix_chunk: _Optional[int] = ..., accounting: _Optional[_Union[Accounting, _Mapping]] = ..., rollback: _Optional[int] = ..., commits: _Optional[bool] = ...) -> None: ...

class Commitment(_message.Message):
    __slots__ = ("promise", "public_key", "signature")
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    promise: bytes
    public_key: bytes
    signature: bytes
    def __init__(self, promise: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Promise(_message.Message):
    __slots__ = ("session", "number", "contract", "leaves", "root", "time")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    number: int
    contract: Contract
    leaves: int
    root: bytes
    time: float
    def __init__(self, session: _Optional[bytes] = ..., number: _Optional[int] = ..., contract: _Optional[_Union[Contract, _Mapping]] = ..., leaves: _Optional[int] = ..., root: _Optional[bytes] = ..., time: _Optional[float] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("model", "commitments", "inputs", "first", "outputs", "leaves")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    model: str
    commitments: _containers.RepeatedCompositeFieldContainer[Commitment]
    inputs: bytes
    first: int
    outputs: bytes
    leaves: _containers.RepeatedCompositeFieldContainer[Leaf]
    def __init__(self, model: _Optional[str] = ..., commitments: _Optional[_Iterable[_Union[Commitment, _Mapping]]] = ..., inputs: _Optional[bytes] = ..., first: _Optional[int] = ..., outputs: _Optional[bytes] = ..., leaves: _Optional[_Iterable[_Union[Leaf, _Mapping]]] = ...) -> None: ...

class Leaf(_message.Message):
    __slots__ = ("commitment", "index", "path")
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    commitment: int
    index: int
    path: bytes
    def __init__(self, commitment: _Optional[int] = ..., index: _Optional[int] = ..., path: _Optional[bytes] = ...) -> None: ...

class Have(_message.Message):
    __slots__ = ("epoch", "held")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    held: _containers.RepeatedCompositeFieldContainer[Held]
    def __init__(self, epoch: _Optional[int] = ..., held: _Optional[_Iterable[_Union[Held, _Mapping]]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("sequence", "length", "history", "rollback")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    length: int
    history: int
    rollback: int
    def __init__(self, sequence: _Optional[int] = ..., length: _Optional[int] = ..., history: _Optional[int] = ..., rollback: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("nonce", "epoch", "beat", "moved", "queue", "padding", "tallies")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    TALLIES_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    epoch: int
    beat: int
    moved: _containers.RepeatedCompositeFieldContainer[Moved]
    queue: int
    padding: bytes
    tallies: _containers.RepeatedCompositeFieldContainer[Tally]
    def __init__(self, nonce: _Optional[int] = ..., epoch: _Optional[int] = ..., beat: _Optional[int] = ..., moved: _Optional[_Iterable[_Union[Moved, _Mapping]]] = ..., queue: _Optional[int] = ..., padding: _Optional[bytes] = ..., tallies: _Optional[_Iterable[_Union[Tally, _Mapping]]] = ...) -> None: ...

class Tally(_message.Message):
    __slots__ = ("phase", "steps", "positions", "queue", "compute")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PREFILL: _ClassVar[Tally.Phase]
        DECODE: _ClassVar[Tally.Phase]
    PREFILL: Tally.Phase
    DECODE: Tally.Phase
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    phase: Tally.Phase
    steps: int
    positions: int
    queue: float
    compute: float
    def __init__(self, phase: _Optional[_Union[Tally.Phase, str]] = ..., steps: _Optional[int] = ..., positions: _Optional[int] = ..., queue: _Optional[float] = ..., compute: _Optional[float] = ...) -> None: ...

class Moved(_message.Message):
    __slots__ = ("sequence", "received", "computed", "forwarded")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    FORWARDED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    received: int
    computed: int
    forwarded: int
    def __init__(self, sequence: _Optional[int] = ..., received: _Optional[int] = ..., computed: _Optional[int] = ..., forwarded: _Optional[int] = ...) -> None: ...

class LinkDown(_message.Message):
    __slots__ = ("epoch", "reason")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    reason: str
    def __init__(self, epoch: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ("deadline",)
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    deadline: float
    def __init__(self, deadline: _Optional[float] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "retry_after", "epoch", "limit", "allowed", "asked", "sequence", "position", "twin")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Failure.Code]
        BUSY: _ClassVar[Failure.Code]
        SESSION_NOT_FOUND: _ClassVar[Failure.Code]
        CONTRACT_MISMATCH: _ClassVar[Failure.Code]
        COMPUTE_FAILED: _ClassVar[Failure.Code]
        MALFORMED: _ClassVar[Failure.Code]
        UNAUTHORIZED: _ClassVar[Failure.Code]
        GAP: _ClassVar[Failure.Code]
        TOO_LONG: _ClassVar[Failure.Code]
        INVALID: _ClassVar[Failure.Code]
        MISSING_BLOCKS: _ClassVar[Failure.Code]
        LIMIT: _ClassVar[Failure.Code]
        IMPLAUSIBLE: _ClassVar[Failure.Code]
        UNSIGNED: _ClassVar[Failure.Code]
        REFUTED: _ClassVar[Failure.Code]
    UNKNOWN: Failure.Code
    BUSY: Failure.Code
    SESSION_NOT_FOUND: Failure.Code
    CONTRACT_MISMATCH: Failure.Code
    COMPUTE_FAILED: Failure.Code
    MALFORMED: Failure.Code
    UNAUTHORIZED: Failure.Code
    GAP: Failure.Code
    TOO_LONG: Failure.Code
    INVALID: Failure.Code
    MISSING_BLOCKS: Failure.Code
    LIMIT: Failure.Code
    IMPLAUSIBLE: Failure.Code
    UNSIGNED: Failure.Code
    REFUTED: Failure.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TWIN_FIELD_NUMBER: _ClassVar[int]
    code: Failure.Code
    message: str
    retry_after: float
    epoch: int
    limit: str
    allowed: int
    asked: int
    sequence: int
    position: int
    twin: int
    def __init__(self, code: _Optional[_Union[Failure.Code, str]] = ..., message: _Optional[str] = ..., retry_after: _Optional[float] = ..., epoch: _Optional[int] = ..., limit: _Optional[str] = ..., allowed: _Optional[int] = ..., asked: _Optional[int] = ..., sequence: _Optional[int] = ..., position: _Optional[int] = ..., twin: _Optional[int] = ...) -> None: ...

class Data(_message.Message):
    __slots__ = ("hello", "step", "failure")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    step: Step
    failure: Failure
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("session", "epoch", "role")
    class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        INPUTS: _ClassVar[Hello.Role]
        RESULTS: _ClassVar[Hello.Role]
    INPUTS: Hello.Role
    RESULTS: Hello.Role
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    epoch: int
    role: Hello.Role
    def __init__(self, session: _Optional[bytes] = ..., epoch: _Optional[int] = ..., role: _Optional[_Union[Hello.Role, str]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("operations", "rows", "hidden")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    rows: _containers.RepeatedCompositeFieldContainer[Rows]
    hidden: bytes
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., rows: _Optional[_Iterable[_Union[Rows, _Mapping]]] = ..., hidden: _Optional[bytes] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("kind", "source", "target", "length")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FORK: _ClassVar[Operation.Kind]
        MOVE: _ClassVar[Operation.Kind]
        FREE: _ClassVar[Operation.Kind]
    FORK: Operation.Kind
    MOVE: Operation.Kind
    FREE: Operation.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    kind: Operation.Kind
    source: int
    target: int
    length: int
    def __init__(self, kind: _Optional[_Union[Operation.Kind, str]] = ..., source: _Optional[int] = ..., target: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("sequence", "start", "count", "want")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    start: int
    count: int
    want: int
    def __init__(self, sequence: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., want: _Optional[int] = ...) -> None: ...

class BlocksRequest(_message.Message):
    __slots__ = ("block", "piece")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    block: BlockWanted
    piece: int
    def __init__(self, block: _Optional[_Union[BlockWanted, _Mapping]] = ..., piece: _Optional[int] = ...) -> None: ...

class BlockWanted(_message.Message):
    __slots__ = ("model", "block", "quantization", "format")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    model: str
    block: int
    quantization: str
    format: int
    def __init__(self, model: _Optional[str] = ..., block: _Optional[int] = ..., quantization: _Optional[str] = ..., format: _Optional[int] = ...) -> None: ...

class BlocksReply(_message.Message):
    __slots__ = ("manifest", "piece", "failure")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    manifest: BlockManifest
    piece: bytes
    failure: Failure
    def __init__(self, manifest: _Optional[_Union[BlockManifest, _Mapping]] = ..., piece: _Optional[bytes] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class BlockManifest(_message.Message):
    __slots__ = ("fingerprint", "size", "pieces")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    size: int
    pieces: bytes
    def __init__(self, fingerprint: _Optional[bytes] = ..., size: _Optional[int] = ..., pieces: _Optional[bytes] = ...) -> None: ...

class EndsRequest(_message.Message):
    __slots__ = ("open", "head", "embed")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    open: EndsWanted
    head: HeadWanted
    embed: Tokens
    def __init__(self, open: _Optional[_Union[EndsWanted, _Mapping]] = ..., head: _Optional[_Union[HeadWanted, _Mapping]] = ..., embed: _Optional[_Union[Tokens, _Mapping]] = ...) -> None: ...

class EndsWanted(_message.Message):
    __slots__ = ("model", "dtype", "fingerprint")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    model: str
    dtype: str
    fingerprint: bytes
    def __init__(self, model: _Optional[str] = ..., dtype: _Optional[str] = ..., fingerprint: _Optional[bytes] = ...) -> None: ...

class HeadWanted(_message.Message):
    __slots__ = ("rows", "hidden", "best")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    rows: int
    hidden: bytes
    best: int
    def __init__(self, rows: _Optional[int] = ..., hidden: _Optional[bytes] = ..., best: _Optional[int] = ...) -> None: ...

class EndsReply(_message.Message):
    __slots__ = ("opened", "logits", "embedded", "failure")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    opened: EndsOpened
    logits: Logits
    embedded: bytes
    failure: Failure
    def __init__(self, opened: _Optional[_Union[EndsOpened, _Mapping]] = ..., logits: _Optional[_Union[Logits, _Mapping]] = ..., embedded: _Optional[bytes] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class EndsOpened(_message.Message):
    __slots__ = ("fingerprint", "vocabulary", "hidden_size")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    vocabulary: int
    hidden_size: int
    def __init__(self, fingerprint: _Optional[bytes] = ..., vocabulary: _Optional[int] = ..., hidden_size: _Optional[int] = ...) -> None: ...

class Logits(_message.Message):
    __slots__ = ("tokens", "values")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    tokens: bytes
    values: bytes
    def __init__(self, tokens: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class TrainingRequest(_message.Message):
    __slots__ = ("contract", "wanted", "data", "adapter", "handed", "recall")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    HANDED_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    contract: Contract
    wanted: Pass
    data: bytes
    adapter: Adapter
    handed: Handed
    recall: bool
    def __init__(self, contract: _Optional[_Union[Contract, _Mapping]] = ..., wanted: _Optional[_Union[Pass, _Mapping]] = ..., data: _Optional[bytes] = ..., adapter: _Optional[_Union[Adapter, _Mapping]] = ..., handed: _Optional[_Union[Handed, _Mapping]] = ..., recall: _Optional[bool] = ...) -> None: ...

class Pass(_message.Message):
    __slots__ = ("id", "counts", "inputs", "gradients", "unwanted", "adapter", "seed", "fixed", "upstream", "onward", "again")
    ID_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    UNWANTED_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIXED_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    ONWARD_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    counts: _containers.RepeatedScalarFieldContainer[int]
    inputs: bool
    gradients: bool
    unwanted: bool
    adapter: bytes
    seed: int
    fixed: bool
    upstream: str
    onward: Onward
    again: bool
    def __init__(self, id: _Optional[bytes] = ..., counts: _Optional[_Iterable[int]] = ..., inputs: _Optional[bool] = ..., gradients: _Optional[bool] = ..., unwanted: _Optional[bool] = ..., adapter: _Optional[bytes] = ..., seed: _Optional[int] = ..., fixed: _Optional[bool] = ..., upstream: _Optional[str] = ..., onward: _Optional[_Union[Onward, _Mapping]] = ..., again: _Optional[bool] = ...) -> None: ...

class Onward(_message.Message):
    __slots__ = ("record", "id")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    id: bytes
    def __init__(self, record: _Optional[bytes] = ..., id: _Optional[bytes] = ...) -> None: ...

class Handed(_message.Message):
    __slots__ = ("id", "size")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    size: int
    def __init__(self, id: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("digest", "size")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    size: int
    def __init__(self, digest: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class TrainingReply(_message.Message):
    __slots__ = ("opened", "computed", "data", "working", "missing", "failure")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    opened: bool
    computed: Computed
    data: bytes
    working: Working
    missing: Missing
    failure: Failure
    def __init__(self, opened: _Optional[bool] = ..., computed: _Optional[_Union[Computed, _Mapping]] = ..., data: _Optional[bytes] = ..., working: _Optional[_Union[Working, _Mapping]] = ..., missing: _Optional[_Union[Missing, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Computed(_message.Message):
    __slots__ = ("rows", "adapter", "handed")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    HANDED_FIELD_NUMBER: _ClassVar[int]
    rows: int
    adapter: int
    handed: bool
    def __init__(self, rows: _Optional[int] = ..., adapter: _Optional[int] = ..., handed: _Optional[bool] = ...) -> None: ...

class Working(_message.Message):
    __slots__ = ("beat", "waiting")
    BEAT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    beat: int
    waiting: bool
    def __init__(self, beat: _Optional[int] = ..., waiting: _Optional[bool] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ("inputs", "adapter")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    inputs: bool
    adapter: bool
    def __init__(self, inputs: _Optional[bool] = ..., adapter: _Optional[bool] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("id", "model", "text", "messages", "tokens", "tools", "sampling", "generated", "sent_bytes", "trace", "tool_choice")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    model: str
    text: str
    messages: str
    tokens: Tokens
    tools: str
    sampling: Sampling
    generated: _containers.RepeatedScalarFieldContainer[int]
    sent_bytes: int
    trace: bool
    tool_choice: ToolChoice
    def __init__(self, id: _Optional[bytes] = ..., model: _Optional[str] = ..., text: _Optional[str] = ..., messages: _Optional[str] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., tools: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., generated: _Optional[_Iterable[int]] = ..., sent_bytes: _Optional[int] = ..., trace: _Optional[bool] = ..., tool_choice: _Optional[_Union[ToolChoice, _Mapping]] = ...) -> None: ...

class ToolChoice(_message.Message):
    __slots__ = ("names", "single")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    SINGLE_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    single: bool
    def __init__(self, names: _Optional[_Iterable[str]] = ..., single: _Optional[bool] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop", "logprobs", "top_logprobs", "bias", "ignore_eos", "speculation", "constraint")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: bool
    top_logprobs: int
    bias: _containers.RepeatedCompositeFieldContainer[Bias]
    ignore_eos: bool
    speculation: str
    constraint: Constraint
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: _Optional[bool] = ..., top_logprobs: _Optional[int] = ..., bias: _Optional[_Iterable[_Union[Bias, _Mapping]]] = ..., ignore_eos: _Optional[bool] = ..., speculation: _Optional[str] = ..., constraint: _Optional[_Union[Constraint, _Mapping]] = ...) -> None: ...

class Constraint(_message.Message):
    __slots__ = ("json_schema", "regex", "grammar")
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    regex: str
    grammar: str
    def __init__(self, json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., grammar: _Optional[str] = ...) -> None: ...

class Bias(_message.Message):
    __slots__ = ("token", "value")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    token: int
    value: float
    def __init__(self, token: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class QueryReply(_message.Message):
    __slots__ = ("accepted", "delta", "route", "waiting", "finished", "failure")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    delta: Delta
    route: RouteInUse
    waiting: Waiting
    finished: Finished
    failure: Failure
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., route: _Optional[_Union[RouteInUse, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("model", "name", "prompt_tokens", "seed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    prompt_tokens: int
    seed: int
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("tokens", "text", "logprobs", "sent_bytes")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[Logprob]
    sent_bytes: int
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[Logprob, _Mapping]]] = ..., sent_bytes: _Optional[int] = ...) -> None: ...

class Logprob(_message.Message):
    __slots__ = ("token", "logprob", "text", "top")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    text: bytes
    top: _containers.RepeatedCompositeFieldContainer[Logprob]
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ..., text: _Optional[bytes] = ..., top: _Optional[_Iterable[_Union[Logprob, _Mapping]]] = ...) -> None: ...

class RouteInUse(_message.Message):
    __slots__ = ("hops", "reroutes", "reason")
    HOPS_FIELD_NUMBER: _ClassVar[int]
    REROUTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    hops: _containers.RepeatedCompositeFieldContainer[RouteHop]
    reroutes: int
    reason: str
    def __init__(self, hops: _Optional[_Iterable[_Union[RouteHop, _Mapping]]] = ..., reroutes: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RouteHop(_message.Message):
    __slots__ = ("peer_id", "name", "first", "last")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    name: str
    first: int
    last: int
    def __init__(self, peer_id: _Optional[str] = ..., name: _Optional[str] = ..., first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("first", "last", "since", "words")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    since: float
    words: str
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ..., since: _Optional[float] = ..., words: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "prompt_tokens", "completion_tokens", "seconds", "trace", "stop")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STOP: _ClassVar[Finished.Reason]
        LENGTH: _ClassVar[Finished.Reason]
        TOOL_CALLS: _ClassVar[Finished.Reason]
    STOP: Finished.Reason
    LENGTH: Finished.Reason
    TOOL_CALLS: Finished.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    reason: Finished.Reason
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    trace: _containers.RepeatedCompositeFieldContainer[TraceSpan]
    stop: str
    def __init__(self, reason: _Optional[_Union[Finished.Reason, str]] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., trace: _Optional[_Iterable[_Union[TraceSpan, _Mapping]]] = ..., stop: _Optional[str] = ...) -> None: ...

class TraceSpan(_message.Message):
    __slots__ = ("name", "peer_id", "start", "seconds", "count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    peer_id: str
    start: float
    seconds: float
    count: int
    def __init__(self, name: _Optional[str] = ..., peer_id: _Optional[str] = ..., start: _Optional[float] = ..., seconds: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...

class MapRequest(_message.Message):
    __slots__ = ("watch",)
    WATCH_FIELD_NUMBER: _ClassVar[int]
    watch: bool
    def __init__(self, watch: _Optional[bool] = ...) -> None: ...

class SwarmMap(_message.Message):
    __slots__ = ("time", "models", "servers", "nodes")
    TIME_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    time: float
    models: _containers.RepeatedCompositeFieldContainer[Model]
    servers: _containers.RepeatedCompositeFieldContainer[MapServer]
    nodes: _containers.RepeatedCompositeFieldContainer[QueryNode]
    def __init__(self, time: _Optional[float] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., servers: _Optional[_Iterable[_Union[MapServer, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[QueryNode, _Mapping]]] = ...) -> None: ...

class MapServer(_message.Message):
    __slots__ = ("peer_id", "contract", "state", "name", "decode_ms", "prefill_rate", "queue", "free_tokens", "version", "relayed")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_RATE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    contract: Contract
    state: str
    name: str
    decode_ms: float
    prefill_rate: float
    queue: int
    free_tokens: int
    version: str
    relayed: bool
    def __init__(self, peer_id: _Optional[str] = ..., contract: _Optional[_Union[Contract, _Mapping]] = ..., state: _Optional[str] = ..., name: _Optional[str] = ..., decode_ms: _Optional[float] = ..., prefill_rate: _Optional[float] = ..., queue: _Optional[int] = ..., free_tokens: _Optional[int] = ..., version: _Optional[str] = ..., relayed: _Optional[bool] = ...) -> None: ...

class QueryNode(_message.Message):
    __slots__ = ("peer_id", "contract", "name", "addresses", "edges", "running", "capacity", "version", "converses", "codec", "instance", "constrains", "sees")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONVERSES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINS_FIELD_NUMBER: _ClassVar[int]
    SEES_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    contract: Contract
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    edges: _containers.RepeatedScalarFieldContainer[str]
    running: int
    capacity: int
    version: str
    converses: bool
    codec: str
    instance: int
    constrains: bool
    sees: bool
    def __init__(self, peer_id: _Optional[str] = ..., contract: _Optional[_Union[Contract, _Mapping]] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., edges: _Optional[_Iterable[str]] = ..., running: _Optional[int] = ..., capacity: _Optional[int] = ..., version: _Optional[str] = ..., converses: _Optional[bool] = ..., codec: _Optional[str] = ..., instance: _Optional[int] = ..., constrains: _Optional[bool] = ..., sees: _Optional[bool] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("contract", "state", "addresses", "free_tokens", "decode_ms", "prefill_rate", "queue", "relayed", "codecs", "version", "name", "prefill_positions", "instance", "training", "coordinate", "near", "account", "ends")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_RATE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREFILL_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    COORDINATE_FIELD_NUMBER: _ClassVar[int]
    NEAR_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    contract: Contract
    state: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    free_tokens: int
    decode_ms: float
    prefill_rate: float
    queue: int
    relayed: bool
    codecs: _containers.RepeatedScalarFieldContainer[str]
    version: str
    name: str
    prefill_positions: int
    instance: int
    training: bool
    coordinate: Coordinate
    near: _containers.RepeatedCompositeFieldContainer[Near]
    account: Head
    ends: Ends
    def __init__(self, contract: _Optional[_Union[Contract, _Mapping]] = ..., state: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., free_tokens: _Optional[int] = ..., decode_ms: _Optional[float] = ..., prefill_rate: _Optional[float] = ..., queue: _Optional[int] = ..., relayed: _Optional[bool] = ..., codecs: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., name: _Optional[str] = ..., prefill_positions: _Optional[int] = ..., instance: _Optional[int] = ..., training: _Optional[bool] = ..., coordinate: _Optional[_Union[Coordinate, _Mapping]] = ..., near: _Optional[_Iterable[_Union[Near, _Mapping]]] = ..., account: _Optional[_Union[Head, _Mapping]] = ..., ends: _Optional[_Union[Ends, _Mapping]] = ...) -> None: ...

class Ends(_message.Message):
    __slots__ = ("fingerprint", "vocabulary", "head_ms")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    HEAD_MS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    vocabulary: int
    head_ms: float
    def __init__(self, fingerprint: _Optional[bytes] = ..., vocabulary: _Optional[int] = ..., head_ms: _Optional[float] = ...) -> None: ...

class Near(_message.Message):
    __slots__ = ("peer", "rtt_ms")
    PEER_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    rtt_ms: float
    def __init__(self, peer: _Optional[bytes] = ..., rtt_ms: _Optional[float] = ...) -> None: ...

class Coordinate(_message.Message):
    __slots__ = ("point", "height", "error")
    POINT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    point: _containers.RepeatedScalarFieldContainer[float]
    height: float
    error: float
    def __init__(self, point: _Optional[_Iterable[float]] = ..., height: _Optional[float] = ..., error: _Optional[float] = ...) -> None: ...

class Accounting(_message.Message):
    __slots__ = ("account", "proof", "parameters")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    account: bytes
    proof: bytes
    parameters: int
    def __init__(self, account: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., parameters: _Optional[int] = ...) -> None: ...

class Claim(_message.Message):
    __slots__ = ("total", "signed", "settles")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SIGNED_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    total: int
    signed: int
    settles: bool
    def __init__(self, total: _Optional[int] = ..., signed: _Optional[int] = ..., settles: _Optional[bool] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("account", "other", "number", "previous", "gives", "work", "given", "taken", "pair_given", "pair_taken", "session", "answers", "time", "signature")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    GIVES_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    PAIR_GIVEN_FIELD_NUMBER: _ClassVar[int]
    PAIR_TAKEN_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    account: bytes
    other: bytes
    number: int
    previous: bytes
    gives: bool
    work: int
    given: int
    taken: int
    pair_given: int
    pair_taken: int
    session: bytes
    answers: bytes
    time: int
    signature: bytes
    def __init__(self, account: _Optional[bytes] = ..., other: _Optional[bytes] = ..., number: _Optional[int] = ..., previous: _Optional[bytes] = ..., gives: _Optional[bool] = ..., work: _Optional[int] = ..., given: _Optional[int] = ..., taken: _Optional[int] = ..., pair_given: _Optional[int] = ..., pair_taken: _Optional[int] = ..., session: _Optional[bytes] = ..., answers: _Optional[bytes] = ..., time: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("account", "number", "digest", "given", "taken", "signature")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    account: bytes
    number: int
    digest: bytes
    given: int
    taken: int
    signature: bytes
    def __init__(self, account: _Optional[bytes] = ..., number: _Optional[int] = ..., digest: _Optional[bytes] = ..., given: _Optional[int] = ..., taken: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ReceiptsRequest(_message.Message):
    __slots__ = ("between", "links", "proven")
    BETWEEN_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    between: Between
    links: Links
    proven: Proven
    def __init__(self, between: _Optional[_Union[Between, _Mapping]] = ..., links: _Optional[_Union[Links, _Mapping]] = ..., proven: _Optional[_Union[Proven, _Mapping]] = ...) -> None: ...

class Between(_message.Message):
    __slots__ = ("account", "others")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    account: bytes
    others: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, account: _Optional[bytes] = ..., others: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Links(_message.Message):
    __slots__ = ("account", "first")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    account: bytes
    first: int
    def __init__(self, account: _Optional[bytes] = ..., first: _Optional[int] = ...) -> None: ...

class Proven(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReceiptsReply(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, entries: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("coordinate",)
    COORDINATE_FIELD_NUMBER: _ClassVar[int]
    coordinate: Coordinate
    def __init__(self, coordinate: _Optional[_Union[Coordinate, _Mapping]] = ...) -> None: ...

class RecordsRequest(_message.Message):
    __slots__ = ("model", "blocks")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    model: str
    blocks: int
    def __init__(self, model: _Optional[str] = ..., blocks: _Optional[int] = ...) -> None: ...

class RecordsReply(_message.Message):
    __slots__ = ("records", "age", "more")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    age: float
    more: bool
    def __init__(self, records: _Optional[_Iterable[bytes]] = ..., age: _Optional[float] = ..., more: _Optional[bool] = ...) -> None: ...

class DirectoryRequest(_message.Message):
    __slots__ = ("keys", "records")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[_Iterable[str]] = ..., records: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DirectoryReply(_message.Message):
    __slots__ = ("records", "more", "refused")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    more: bool
    refused: str
    def __init__(self, records: _Optional[_Iterable[bytes]] = ..., more: _Optional[bool] = ..., refused: _Optional[str] = ...) -> None: ...

class SignedRecord(_message.Message):
    __slots__ = ("public_key", "record", "expires", "key", "signature")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    record: bytes
    expires: float
    key: str
    signature: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., record: _Optional[bytes] = ..., expires: _Optional[float] = ..., key: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("key", "name", "blocks", "hidden_size", "context_length")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    key: str
    name: str
    blocks: int
    hidden_size: int
    context_length: int
    def __init__(self, key: _Optional[str] = ..., name: _Optional[str] = ..., blocks: _Optional[int] = ..., hidden_size: _Optional[int] = ..., context_length: _Optional[int] = ...) -> None: ...
