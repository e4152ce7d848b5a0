"""Every default of swarm, once. Times in seconds, sizes in bytes, lengths in positions unless the name says else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swarm.contract import UNQUANTIZED
from swarm.errors import InvalidInput

MIB = 1024 * 1024

INT8, INT4, FILE = "int8", "int4", "file"
SCHEMES: Mapping[str, str] = {UNQUANTIZED: UNQUANTIZED, INT8: "int8-g32-v1", INT4: "int4-g32-v1", FILE: FILE}
"""What the weights of linear layers are on: nothing, a grid of 8 or of 4 bits, the checkpoint's own; and what that is
called in contracts, with all that decides the numbers."""
QUANTIZATIONS = tuple(SCHEMES)
BLOCK_FORMAT = 2
"""Of the files in which blocks are kept, and given to others."""
ANY, PEERS, HUB = "any", "peers", "hub"
BLOCK_SOURCES = (ANY, PEERS, HUB)
"""Where a server gets blocks: from other servers and, what these lack, from the checkpoint; or from one of
the two."""
MEMORY, DISK = "memory", "disk"
HEADS = (MEMORY, DISK, FILE, INT8, INT4)
"""Where a model's head is that is computed here, in the checkpoint's numbers, or the grid that it is put on."""
REMOTE = "remote"
"""Where a model's head, or its embeddings, are that servers have."""
SPECULATIONS = ("none", "ngram")
CODEC_CHOICES = ("raw", "int8", "auto")

SAMPLING: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
"""What sampling takes, from an asker and from a model's authors: least and most."""


def check_speculation(speculation: str) -> None:
    """Raises InvalidInput for a kind that there is not."""
    if speculation not in SPECULATIONS:
        raise InvalidInput(f"speculation={speculation[:40]!r}: there is {', '.join(SPECULATIONS)}")


@dataclass(frozen=True, slots=True)
class ForwardConfig:
    """For whom a forwarder carries, and how much."""

    circuits: int = 512
    """Open at a time. Two peers have one circuit between them, however many streams are in it."""
    per_caller: int = 32
    per_target: int = 256
    rate: float = 0.0
    """Bytes per second of all circuits together; 0: no limit."""
    blocked: tuple[str, ...] = ()
    """Peer ids that are neither carried for nor to."""
    idle: float = 600.0
    """A circuit on which nothing has moved for so long is ended."""
    handshake: float = 10.0
    """For a request to come, and for the other side to accept."""


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """What one peer may have of this one, and all together. Beyond it there is a refusal, or a wait."""

    streams: int = 1024
    """Open at a time that a peer has opened: a server that feeds this one has one for each session of its own."""
    all_streams: int = 4096
    openings: float = 100.0
    """Streams that a peer may open a second, and after a pause at once."""
    openings_at_once: float = 512.0
    frames: float = 2000.0
    """That are read a second of what a peer sends; a second's worth at once."""
    flight_bytes: int = 128 * MIB
    """Of a peer's frames that are being read, and of what they brought that has not gone on."""
    all_flight_bytes: int = 512 * MIB
    allow: str | None = None
    """File of the peer ids that are served, one a line; None: everybody."""
    block: str | None = None
    """File of those that are not."""

    def __post_init__(self) -> None:
        for name in ("streams", "all_streams", "openings", "openings_at_once", "frames", "flight_bytes"):
            if not getattr(self, name) > 0:
                raise InvalidInput(f"{name}={getattr(self, name)!r}: it must be more than 0")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """How a peer joins the network."""

    initial_peers: tuple[str, ...] = ()
    host_maddrs: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1")
    announce_maddrs: tuple[str, ...] = ()
    identity_path: str | None = None
    swarm_key: str | None = None
    """File of the key without which nobody takes part: 64 hexadecimal digits. None: everybody may."""
    account: str | None = None
    """Folder of the account in whose name this peer gives and takes; None: it does so in nobody's."""
    public: bool = False
    """Whether everybody is known to reach this peer, as bootstrap peers have to be."""
    dialled: bool = False
    """Whether others have to reach this peer, as they do a server: then it finds out how, and is behind NAT reached
    through forwarders."""
    forward: ForwardConfig | None = None
    """Whether this peer carries between others that cannot dial each other, where everybody reaches it."""
    limits: PeerLimits = field(default_factory=PeerLimits)
    p2pd: bool = True
    """Whether p2pd holds the connections, where it is installed. Without it there is no QUIC and no hole punching, and
    the directory is asked of the initial peers."""
    lan: bool = False
    """Whether peers on the local network are looked for where no initial peers are given, and hear of this one if it
    is to be dialled."""
    begins: bool = False
    """Whether this peer begins a swarm where there is nobody to join through."""
    daemon_startup: float = 30.0
    dial_timeout: float = 10.0
    record_lifetime: float = 60.0
    record_renewal: float = 20.0
    record_max_bytes: int = 4096
    record_max_lifetime: float = 300.0
    max_keys: int = 8192
    """Keys of the directory that this peer stores for the swarm."""
    max_records_per_key: int = 1024
    """Peers that may have a record under one key, here and in the answers of others."""
    rejoin: float = 15.0
    """How often the initial peers are told that we are here; they may have restarted and forgotten everybody."""
    refresh: float = 20.0
    """How often addresses are read anew and initial peers that were lost are dialled again."""
    forwarders: int = 3
    """How many forwarders a peer behind NAT is connected to."""
    redial: float = 2.0
    """How often a forwarder that was lost is dialled again."""
    dial_back: float = 3.0
    """How long somebody may take to dial this peer while it finds out whether others can."""

    def __post_init__(self) -> None:
        for name in ("initial_peers", "host_maddrs", "announce_maddrs"):
            if isinstance(value := getattr(self, name), str):
                raise InvalidInput(f"{name} is a tuple of multiaddrs, not one text: ({value!r},)")
            object.__setattr__(self, name, tuple(value))


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """How browsers reach a peer."""

    host_maddrs: tuple[str, ...] = (
        "/ip4/0.0.0.0/udp/0/webrtc-direct",
        "/ip4/0.0.0.0/udp/0/quic-v1/webtransport",
        "/ip4/0.0.0.0/tcp/0/ws",
    )
    """Where it listens, each of one of these three kinds; a kind that is not here is off. Port 0: any."""
    announce_maddrs: tuple[str, ...] = ()
    """Where browsers should dial instead (port forwarding, a proxy with TLS); certificate hashes and the peer id are
    added to them."""
    identity_path: str | None = None
    """Certificates are kept beside this file, so that addresses outlive a restart; None: nowhere."""
    max_connections: int = 512
    max_connections_per_peer: int = 8
    max_handshakes: int = 64
    """Connections of each kind that may be in their handshakes at a time."""
    max_streams: int = 1024
    max_streams_per_peer: int = 64
    handshake_timeout: float = 15.0
    negotiation_timeout: float = 10.0
    """For a new stream to say its protocol."""
    frame_timeout: float = 30.0
    """A frame of which a part has come must go on coming within so long."""
    send_timeout: float = 60.0
    """A peer that reads nothing of what waits for it for so long loses its stream."""
    linger: float = 10.0
    """How long what was sent before a stream was closed may take to leave."""


@dataclass(frozen=True, slots=True)
class MapConfig:
    """How a peer shows the swarm to those who take no part in the directory."""

    interval: float = 5.0
    """How often the directory is read while somebody looks; a swarm that takes long to read is read less often."""
    max_lookers: int = 1024
    open_timeout: float = 10.0
    """How long an asker may take to say what it wants."""
    stuck: float = 60.0
    """A watcher that takes nothing for so long is left."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How a server serves."""

    cache_bytes: int = 1024 * MIB
    """Budget for KV cache and history together."""
    history_share: float = 0.25
    """History never takes more than this share of `cache_bytes`."""
    prefix_share: float = 0.25
    """Beginnings of prompts are kept for those to come in at most this share of `cache_bytes`; 0: they are not."""
    prefix_chunk: int = 8
    """Prompts are compared in steps of so many positions; where a frame ends between two, what follows is computed."""
    share_prefixes: bool = False
    """Whether what one client's prompt left may serve another's: how soon the answer comes then tells the other that
    somebody has asked the same."""
    max_sessions: int = 256
    max_sessions_per_peer: int = 128
    cache_share_per_peer: float = 1.0
    """Of `cache_bytes`, what the sessions of one peer may have. Who has more than an equal share gives way to others
    in any case; less than 1 leaves room even while nobody else is there."""
    max_sequences: int = 256
    """Sequences that one session may hold at once."""
    batch_positions: int = 1024
    """Positions in one forward pass."""
    chunk_positions: int = 256
    """Positions that one sequence may put into one forward pass beside others."""
    prefill_slice: float = 0.1
    """Seconds for which prompts may hold up the decode steps of others."""
    rebalance_every: float = 120.0
    """How often a server looks whether other blocks need it more; it may move that often while some have nobody."""
    residence: float = 600.0
    """How long it stays with its blocks, but for that."""
    grace: float = 30.0
    """How long a session lives on without a control stream."""
    idle_expiry: float = 600.0
    """KV cache untouched for so long is dropped; the session stays and is replayed."""
    evict_after: float = 5.0
    """When the cache is full, sessions idle for so long lose theirs."""
    inbox_bytes: int = 16 * MIB
    """Received but not yet sent on, per session; beyond it the server stops reading."""
    open_timeout: float = 10.0
    """How long a peer may take to say what a new stream is for."""
    stuck: float = 60.0
    """Who takes nothing of what is sent to it for so long is hung up on."""
    drain_timeout: float = 60.0
    offer_rate: float = 32.0 * MIB
    """Bytes a second of blocks that are given to servers that join; a quarter of it while there are sessions. 0: no
    limit."""
    offer_streams: int = 16
    offer_streams_per_peer: int = 4
    training_bytes: int = 512 * MIB
    """For what is kept of training passes, and what of them is under way. 0: no training is served."""
    training_share_per_peer: float = 0.5
    """Of `training_bytes`, `activation_bytes` and `adapter_bytes`, what one peer may have."""
    activation_bytes: int = 2048 * MIB
    """For what is kept of training passes so that blocks need not be computed again for their gradients, where they are
    computed. 0: nothing is."""
    adapter_bytes: int = 256 * MIB
    """For the adapters of clients."""
    training_expiry: float = 600.0
    """Inputs whose gradients nobody asks for within so long are forgotten."""
    training_streams: int = 128
    training_streams_per_peer: int = 32
    ends_streams: int = 64
    ends_streams_per_peer: int = 16
    ends_idle: float = 30.0
    """A client that asks nothing of the ends for so long loses its stream."""

    def __post_init__(self) -> None:
        if not 0.0 < self.cache_share_per_peer <= 1.0:
            raise InvalidInput(f"cache_share_per_peer={self.cache_share_per_peer!r}: it must be more than 0, at most 1")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How a client keeps its sessions alive."""

    max_wait: float | None = None
    """How long a session waits for blocks without a server; None: for ever."""
    view_refresh: float = 5.0
    open_timeout: float = 10.0
    """For opening a hop, preparing it, and hearing back."""
    late_after: float = 1.0
    """A step without a sign of life for so long is looked into: at the latest, where the session's steps are faster."""
    probe_interval: float = 0.5
    silence: float = 3.0
    """A hop that answers no probe for so long is taken for dead: at the latest, as `late_after`."""
    stall: float = 5.0
    """A link that moves nothing for so long though both its ends live is taken for broken."""
    engine_stall: float = 30.0
    """An engine that has work and does not move for so long is taken for hung."""
    slowest_rate: float = 50_000.0
    """Bytes per second below which a link counts as stalled."""
    avoid_peer: float = 10.0
    """First time that a failed peer is avoided; doubles with each failure."""
    avoid_link: float = 30.0
    max_avoid: float = 300.0
    retry_base: float = 0.1
    retry_max: float = 5.0
    max_step_failures: int = 5
    """Failures of compute on one and the same step before it is given up."""
    standby: int = 0
    """1: a second route on other servers computes everything, too, a step behind, and goes on at once where the first
    is late or fails. It costs the swarm twice the work and twice the KV cache; 0: none."""
    race: bool = False
    """Whether the second route of a standby computes every step at once: the first answer wins."""
    compare: int = 1
    """2: every step is computed by two routes that have no server in common, and nothing is given before both have come
    to the same; where they do not, others decide. It costs the swarm twice the work."""
    evidence: str | None = None
    """Folder for what servers that were found out have signed, in files that `swarm-audit` checks; None: nowhere."""
    standings: str | None = None
    """File in which what audits and comparisons have shown is kept, for the next time; None: nowhere."""
    audits: bool = False
    """Whether some of what servers computed is computed once more by others, by chance, and who was wrong is left for
    good. Of who is not known half of it, of who has always been right a hundredth."""
    chunk_positions: int | None = None
    """Positions in one frame of a long prompt; None: as many as make it soonest, by what its servers announce."""
    quantization: str | None = None
    """Only servers that compute with it are used: each is another model, though near. None: as the checkpoint is, on
    its own grid where it has one."""
    codec: str = "raw"
    """How hidden states travel: `raw`, exact; `int8`, a quarter to a half of the bytes and about half a percent off;
    `auto`, int8 on the links that would otherwise hold up a prompt, by a measurement when each server is opened."""

    @property
    def commits(self) -> bool:
        """Whether servers are to sign what they send."""
        return self.audits or self.compare == 2

    def __post_init__(self) -> None:
        if self.standby not in (0, 1):
            raise InvalidInput(f"standby={self.standby!r}: there is 0 (none) and 1")
        if self.compare not in (1, 2):
            raise InvalidInput(f"compare={self.compare!r}: there is 1 (one route) and 2")
        if self.compare == 2 and (self.standby or self.codec != "raw"):
            raise InvalidInput("compare=2 has a second route, and compares what came raw: leave out standby and codec")
        if self.race and not self.standby:
            raise InvalidInput("race is between a route and its standby: standby=1, too")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise InvalidInput(f"quantization={self.quantization!r}: there is {', '.join(QUANTIZATIONS)}")
        if self.codec not in CODEC_CHOICES:
            raise InvalidInput(f"codec={self.codec!r}: there is {', '.join(CODEC_CHOICES)}")


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """How a query node answers."""

    capacity: int = 64
    """Queries at a time; one more is told to come again."""
    max_tokens: int = 1024
    """Of an answer, where neither the asker nor the model's authors say how many."""
    speculation: str = "none"
    """Whether guesses are sent ahead where the asker does not say: `ngram`, what followed the same words before."""
    retry_after: float = 2.0
    """When to come again, who was turned away."""
    open_timeout: float = 10.0
    """How long a peer may take to say what it asks."""
    stuck: float = 60.0
    """An asker that takes nothing for so long is given up."""
    heartbeat: float = 2.0
    """A query node that has nothing to say for so long gives a sign of life."""

    def __post_init__(self) -> None:
        check_speculation(self.speculation)


@dataclass(frozen=True, slots=True)
class AskerConfig:
    """How a query is kept alive by who asked it."""

    open_timeout: float = 10.0
    """How long a query node that is asked may take to say something."""
    silence: float = 8.0
    """A query node that gives no sign of life for so long is taken for dead."""
    waiting: float = 20.0
    """How long a node may wait for blocks before another is tried, which may know a way; doubles each time."""
    avoid: float = 5.0
    """How long a node that failed is left alone; doubles while one after the other fails."""
    failures: int = 8
    """Nodes that may fail one after the other without a token between; then the query is given up."""
    retry_base: float = 0.2
    retry_max: float = 5.0
    """Pauses between looks into the directory while no node can be asked, the first and the longest."""
    max_wait: float | None = None
    """How long to look for a query node that answers; None: for ever."""


PREFILL_POSITIONS = 128
"""Positions of the prefill by which servers measure the `prefill_rate` of their records, where their context allows."""
FRAME_LIMIT = 64 * MIB
QUERY_FRAME_LIMIT = 4 * MIB
BLOCKS_FRAME_LIMIT = MIB + 64 * 1024
CONTROL_FRAME_LIMIT = MIB
MAP_FRAME_LIMIT = MIB
TRAINING_FRAME_LIMIT = MIB + 64 * 1024
ENDS_FRAME_LIMIT = 2 * MIB + 64 * 1024
