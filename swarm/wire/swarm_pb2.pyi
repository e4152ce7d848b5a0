from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ControlRequest(_message.Message):
    __slots__ = ("open", "attach", "prepare", "resume", "probe", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: Open
    attach: Attach
    prepare: Prepare
    resume: Resume
    probe: Probe
    close: Close
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("session", "model", "first", "last", "fingerprints", "dtype", "hidden_size", "positions", "quantization")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    model: str
    first: int
    last: int
    fingerprints: _containers.RepeatedScalarFieldContainer[bytes]
    dtype: str
    hidden_size: int
    positions: int
    quantization: str
    def __init__(self, session: _Optional[bytes] = ..., model: _Optional[str] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., fingerprints: _Optional[_Iterable[bytes]] = ..., dtype: _Optional[str] = ..., hidden_size: _Optional[int] = ..., positions: _Optional[int] = ..., quantization: _Optional[str] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("epoch", "sequences", "upstream", "downstream", "relayed", "input_codec", "output_codec")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    DOWNSTREAM_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    INPUT_CODEC_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_CODEC_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequences: _containers.RepeatedCompositeFieldContainer[Sequence]
    upstream: str
    downstream: Downstream
    relayed: bool
    input_codec: str
    output_codec: str
    def __init__(self, epoch: _Optional[int] = ..., sequences: _Optional[_Iterable[_Union[Sequence, _Mapping]]] = ..., upstream: _Optional[str] = ..., downstream: _Optional[_Union[Downstream, _Mapping]] = ..., relayed: _Optional[bool] = ..., input_codec: _Optional[str] = ..., output_codec: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("nonce", "padding", "reply_bytes")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    padding: bytes
    reply_bytes: int
    def __init__(self, nonce: _Optional[int] = ..., padding: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ControlReply(_message.Message):
    __slots__ = ("opened", "have", "progress", "link_down", "leaving", "failure")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LINK_DOWN_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    have: Have
    progress: Progress
    link_down: LinkDown
    leaving: Leaving
    failure: Failure
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., have: _Optional[_Union[Have, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., link_down: _Optional[_Union[LinkDown, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session", "can_rollback", "max_positions", "fingerprints", "codecs")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CAN_ROLLBACK_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    can_rollback: bool
    max_positions: int
    fingerprints: _containers.RepeatedScalarFieldContainer[bytes]
    codecs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session: _Optional[bytes] = ..., can_rollback: _Optional[bool] = ..., max_positions: _Optional[int] = ..., fingerprints: _Optional[_Iterable[bytes]] = ..., codecs: _Optional[_Iterable[str]] = ...) -> None: ...

class Have(_message.Message):
    __slots__ = ("epoch", "held")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    held: _containers.RepeatedCompositeFieldContainer[Held]
    def __init__(self, epoch: _Optional[int] = ..., held: _Optional[_Iterable[_Union[Held, _Mapping]]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("sequence", "length", "history")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    length: int
    history: int
    def __init__(self, sequence: _Optional[int] = ..., length: _Optional[int] = ..., history: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("nonce", "epoch", "beat", "moved", "queue", "padding")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    epoch: int
    beat: int
    moved: _containers.RepeatedCompositeFieldContainer[Moved]
    queue: int
    padding: bytes
    def __init__(self, nonce: _Optional[int] = ..., epoch: _Optional[int] = ..., beat: _Optional[int] = ..., moved: _Optional[_Iterable[_Union[Moved, _Mapping]]] = ..., queue: _Optional[int] = ..., padding: _Optional[bytes] = ...) -> None: ...

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
    __slots__ = ("code", "message", "retry_after", "epoch")
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
    UNKNOWN: Failure.Code
    BUSY: Failure.Code
    SESSION_NOT_FOUND: Failure.Code
    CONTRACT_MISMATCH: Failure.Code
    COMPUTE_FAILED: Failure.Code
    MALFORMED: Failure.Code
    UNAUTHORIZED: Failure.Code
    GAP: Failure.Code
    TOO_LONG: Failure.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    code: Failure.Code
    message: str
    retry_after: float
    epoch: int
    def __init__(self, code: _Optional[_Union[Failure.Code, str]] = ..., message: _Optional[str] = ..., retry_after: _Optional[float] = ..., epoch: _Optional[int] = ...) -> None: ...

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

class Record(_message.Message):
    __slots__ = ("model", "first", "last", "fingerprints", "state", "addresses", "dtype", "free_tokens", "decode_ms", "prefill_rate", "queue", "relayed", "codecs", "quantization", "version", "name")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_RATE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    RELAYED_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    model: str
    first: int
    last: int
    fingerprints: bytes
    state: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    dtype: str
    free_tokens: int
    decode_ms: float
    prefill_rate: float
    queue: int
    relayed: bool
    codecs: _containers.RepeatedScalarFieldContainer[str]
    quantization: str
    version: str
    name: str
    def __init__(self, model: _Optional[str] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., fingerprints: _Optional[bytes] = ..., state: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., dtype: _Optional[str] = ..., free_tokens: _Optional[int] = ..., decode_ms: _Optional[float] = ..., prefill_rate: _Optional[float] = ..., queue: _Optional[int] = ..., relayed: _Optional[bool] = ..., codecs: _Optional[_Iterable[str]] = ..., quantization: _Optional[str] = ..., version: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

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
