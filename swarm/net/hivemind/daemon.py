"""p2pd, the go-libp2p daemon that hivemind brings: starting it, watching it, and asking it for things."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import swarm.net.patches  # noqa: F401  isort: skip  (before hivemind)

import base58
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr as HivemindMultiaddr
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from swarm.config import NetworkConfig
from swarm.errors import DaemonFailed, NetworkError, SwarmError
from swarm.net.forwarding.reach import Reach
from swarm.net.hivemind.heard import HeardReader, connect
from swarm.net.identity import Identity
from swarm.net.patches import folder_of
from swarm.types import PeerId
from swarm.wire.framing import read_frame, write_frame

log = logging.getLogger(__name__)

STREAM_BUFFER = 256 * 1024
"""Bytes of a stream that are read ahead; about twice as many are held before the other side has to wait."""

_CONTROL_LIMIT = 1 << 20
_LOG_LINES = 20
_STOP_TIMEOUT = 3.0
_SOCKET_PATH_LIMIT = 100
_FOLDER_PREFIX = "swarm-p2pd-"
_SHORT_PLACE = Path("/tmp")
"""For folders where the paths of sockets elsewhere are too long."""
_LOCKED_WITHIN = 600.0
"""Seconds after which a folder without a lock belongs to nobody."""

# Run in a process of its own: p2pd shall not outlive this process, even when it is killed. The second look at the
# parent covers a parent that died before the request reached the kernel.
_LAUNCHER = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that asked for p2pd is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Refused(NetworkError):
    """p2pd could not do what it was asked; its own words."""


class Daemon:
    """A running p2pd. `died` is set when it ends without having been told to; `folder` holds its sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control = folder / "control.sock"
        self.died = asyncio.Event()
        self._claim = _claim(folder)
        self._command: Sequence[str] = ()
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    @classmethod
    async def start(cls, config: NetworkConfig, identity: Identity, reach: Reach = Reach.UNKNOWN) -> Daemon:
        """Start p2pd and wait until it listens; `reach`: who is known to reach it. Raises DaemonFailed."""
        try:
            daemon = cls(_private_folder())
        except OSError as error:
            raise DaemonFailed(f"there is no place for p2pd's sockets, set TMPDIR to one: {error}") from error
        try:
            await daemon._start(config, identity, reach)
        except BaseException:
            await daemon.stop()
            raise
        return daemon

    async def _start(self, config: NetworkConfig, identity: Identity, reach: Reach) -> None:
        key = self.folder / "identity.key"
        key.touch(mode=0o600)
        key.write_bytes(identity.private_bytes)
        self._command = [str(binary()), *_arguments(config, self.control, key, reach)]
        await self._launch(self._command)
        try:
            async with asyncio.timeout(config.daemon_startup):
                await self._ready.wait()
        except TimeoutError:
            raise self._not_started(f"p2pd was not ready within {config.daemon_startup:.0f} s") from None
        if self.died.is_set():
            raise self._not_started("p2pd ended while it started")
        key.unlink()

    async def _launch(self, command: Sequence[str]) -> None:
        environment = {"GOLOG_LOG_LEVEL": "error", **os.environ}
        launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()))
        log.debug("starting %s", " ".join(command))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *launcher,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                # Ctrl-C in a terminal goes to its whole process group: the daemon has to outlast the goodbyes.
                process_group=0,
            )
        except OSError as error:
            raise DaemonFailed(f"p2pd could not be started: {error}") from error
        self._tasks = [asyncio.create_task(self._read_log(self._process), name="p2pd")]

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        """Keep p2pd's last lines, and notice its end."""
        assert process.stdout is not None
        while line := await _line(process.stdout):
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            log.debug("p2pd: %s", text)
            if text.startswith("Peer ID:"):
                self._ready.set()
        await process.wait()
        if not self._stopping:
            self.died.set()
            if self._ready.is_set():
                log.error("%s", self.failure())
        self._ready.set()

    def failure(self) -> DaemonFailed:
        """The error to raise after p2pd died."""
        return self._failure("p2pd died: this process is no longer on the network and has to be restarted")

    def _not_started(self, what: str) -> DaemonFailed:
        failure = self._failure(what)
        failure.details += f"\nIt was started as: {shlex.join(self._command)}"
        return failure

    def _failure(self, what: str) -> DaemonFailed:
        code = self._process.returncode if self._process is not None else None
        said = "\n  ".join(self._lines) or "nothing"
        ended = "" if code is None else f" (exit code {code})" if code >= 0 else f" (killed by signal {-code})"
        return DaemonFailed(f"{what}{ended}. {_advice(said)}", f"Its last lines:\n  {said}")

    async def stop(self) -> None:
        """End p2pd and remove its sockets. May be called twice."""
        self._stopping = True
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Not in a thread: none can be started any more when this runs at the end of the interpreter.
        shutil.rmtree(self.folder, ignore_errors=True)
        self._claim.close()

    # ---- requests ---------------------------------------------------------------------------------------------

    async def identify(self) -> tuple[PeerId, list[str]]:
        """The peer id that p2pd has, and the addresses it believes to have. Raises Refused, DaemonFailed."""
        answer = await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))
        addresses = [str(Multiaddr(address)) for address in answer.identify.addrs]
        return base58.b58encode(answer.identify.id).decode(), addresses

    async def connect(self, peer: bytes, addresses: Iterable[bytes], seconds: float = 60.0) -> None:
        """Connect to a peer unless it is connected, within so many whole seconds. Raises Refused, DaemonFailed."""
        connect = p2pd_pb2.ConnectRequest(peer=peer, addrs=addresses, timeout=max(1, round(seconds)))
        await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connect))

    async def connections(self) -> list[tuple[bytes, str]]:
        """Every connection: the other peer, and the multiaddr at which it is. Raises Refused, DaemonFailed."""
        answer = await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS))
        return [(peer.id, str(Multiaddr(address))) for peer in answer.peers for address in peer.addrs]

    async def disconnect(self, peer: bytes) -> None:
        """Drop the connections to a peer. Raises Refused, DaemonFailed."""
        request = p2pd_pb2.DisconnectRequest(peer=peer)
        await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.DISCONNECT, disconnect=request))

    async def register(self, protocol: str, socket: Path) -> None:
        """Have streams of a protocol delivered to a socket. Raises Refused, DaemonFailed."""
        address = HivemindMultiaddr(f"/unix{socket}").to_bytes()  # multiaddr's own loses the first slash
        handler = p2pd_pb2.StreamHandlerRequest(addr=address, proto=[protocol], balanced=False)
        await self._ask(p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler))

    async def open(self, peer: bytes, protocol: str) -> tuple[HeardReader, StreamWriter, str]:
        """Open a stream; the caller closes the writer. The multiaddr is that of the connection that it is on.

        Raises Refused, DaemonFailed.
        """
        opening = p2pd_pb2.StreamOpenRequest(peer=peer, proto=[protocol])
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening)
        reader, writer = await self._dial()
        try:
            answer = await self._exchange(reader, writer, request)
            address = str(Multiaddr(answer.streamInfo.addr)) if answer.streamInfo.addr else ""
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer, address

    async def _ask(self, request: p2pd_pb2.Request) -> p2pd_pb2.Response:
        reader, writer = await self._dial()
        try:
            return await self._exchange(reader, writer, request)
        finally:
            writer.transport.abort()

    async def _dial(self) -> tuple[HeardReader, StreamWriter]:
        try:
            return await connect(self.control, STREAM_BUFFER)
        except OSError as error:
            if self.died.is_set():
                raise self.failure() from error
            raise DaemonFailed(f"p2pd does not answer: {error}") from error

    async def _exchange(
        self, reader: StreamReader, writer: StreamWriter, request: p2pd_pb2.Request
    ) -> p2pd_pb2.Response:
        try:
            write_frame(writer, request.SerializeToString())
            await writer.drain()
            answer = p2pd_pb2.Response.FromString(await read_frame(reader, _CONTROL_LIMIT))
        except (SwarmError, OSError) as error:
            raise self.failure() if self.died.is_set() else Refused(f"p2pd hung up: {error}") from error
        if answer.type == p2pd_pb2.Response.ERROR:
            raise Refused(answer.error.msg)
        return answer


def binary() -> Path:
    """Where hivemind keeps p2pd. Raises DaemonFailed when it is not there."""
    path = folder_of("hivemind") / "hivemind_cli" / "p2pd"
    if not os.access(path, os.X_OK):
        raise DaemonFailed(
            f"p2pd is not at {path}, or may not be run: install hivemind from a wheel made for this platform "
            "(Linux and macOS have one; on Windows use WSL)"
        )
    return path


def _arguments(config: NetworkConfig, control: Path, key: Path, reach: Reach) -> list[str]:
    public = reach is Reach.PUBLIC
    # Not where we see to it: what it tells others they dial beside what we say, also when it is lost.
    finds_relays = reach is Reach.UNKNOWN and bool(config.initial_peers)
    flags: dict[str, object] = {
        "listen": f"/unix{control}",
        "id": key,
        "hostAddrs": ",".join(config.host_maddrs),
        "announceAddrs": ",".join(config.announce_maddrs),
        # Whom it tells others to reach it through, when it finds itself behind NAT. With two addresses of one peer it
        # would wait three minutes for a second peer.
        "trustedRelays": ",".join(one_each(config.initial_peers)) if finds_relays else "",
        "relayDiscovery": 0,
        "dhtServer": 1,
        "autonat": 1,
        "autoRelay": int(finds_relays),
        "relay": 1,
        # Where it believes that everybody reaches it, it relays all the same, and cuts every circuit after 128 KiB: the
        # forwarder takes that protocol over, which it can where this belief does not come later.
        "relayService": 0,
        "forceReachabilityPublic": int(public),
        "forceReachabilityPrivate": int(reach is Reach.NAT),
        "natPortMap": 1,
        "connManager": 1,
        # Those who are reached through a bootstrap peer stay connected to it.
        **({"connLo": 2048, "connHi": 4096} if public else {}),
        "tls": 1,
    }
    return [f"-{name}={value}" for name, value in flags.items() if value != ""]


def one_each(addresses: Iterable[str]) -> list[str]:
    """Of each peer's addresses the first over TCP, else the first."""
    best: dict[str, str] = {}
    for address in sorted(addresses, key=lambda address: "/tcp/" not in address):
        best.setdefault(address.rpartition("/p2p/")[2], address)
    return list(best.values())


def _advice(said: str) -> str:
    if "address already in use" in said:
        return "Another program listens there: choose other ports with --host-maddrs, or end it."
    if "announce" in said or "multiaddr" in said:
        return "Check the addresses given by --host-maddrs, --announce-maddrs and --initial-peers."
    if "Exec format error" in said:
        return "This p2pd is for another kind of machine: install hivemind from a wheel made for this one."
    if "permission denied" in said.lower():
        return (
            "p2pd may not be run there: the folder may be mounted with noexec, or --host-maddrs need a port above 1023."
        )
    if said == "nothing":
        return "This machine may be too slow or too busy: try again, or allow more time (NetworkConfig.daemon_startup)."
    return "Run with -vv to see all that it said."


def _private_folder() -> Path:
    """A folder for sockets that only we can enter. Raises OSError."""
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    if len(str(folder)) > _SOCKET_PATH_LIMIT - len("/control.sock"):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=_SHORT_PLACE))
    return folder


def _claim(folder: Path) -> BinaryIO:
    """A lock in the folder that the system takes back when this process ends, however it ends. Raises OSError."""
    unseen = folder / "lock.new"
    file = unseen.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    unseen.rename(folder / "lock")
    return file


def _remove_abandoned() -> None:
    """Remove the folders of our processes that were killed, and could not do it themselves."""
    for place in {Path(tempfile.gettempdir()), _SHORT_PLACE}:
        for folder in place.glob(f"{_FOLDER_PREFIX}*"):
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.getuid():
                    _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    """Raises OSError for one whose process lives."""
    lock = folder / "lock"
    if not lock.exists():
        # Killed before it had locked what it had made, unless it is only about to.
        if folder.lstat().st_mtime < time.time() - _LOCKED_WITHIN:
            shutil.rmtree(folder, ignore_errors=True)
        return
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


async def _line(output: StreamReader) -> bytes:
    """The next line; one that is too long is passed over, lest p2pd wait for ever to be rid of the rest."""
    while True:
        with contextlib.suppress(ValueError):
            return await output.readline()


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
