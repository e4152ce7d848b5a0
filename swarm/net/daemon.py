"""The libp2p daemon (`p2pd`, shipped inside hivemind's wheel) as a child process that never outlives its parent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
import tempfile
from collections import deque
from importlib import resources
from pathlib import Path

from swarm.config import NetworkConfig
from swarm.errors import DaemonFailed

log = logging.getLogger(__name__)

READY = "Peer ID:"
LOG_LINES = 20

# The kernel kills the daemon when its parent dies, however it dies. The daemon is exec'ed by a short Python that asks
# for this, because a hook between fork and exec is not safe in a process with threads.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

ADVICE = """What to do:
  - if an address is in use, choose another with --host-maddrs (port 0 takes any free port)
  - if the identity is in use by another process, give this one its own --identity-path
  - the daemon needs to create sockets in {sockets}; see that the directory is writable and not full
  - on a slow or busy machine, wait longer: NetworkConfig(daemon_startup=...) seconds"""


class Daemon:
    """A running p2pd. `control` and `listener`: the unix sockets between it and this process."""

    def __init__(self, process: asyncio.subprocess.Process, directory: tempfile.TemporaryDirectory[str]) -> None:
        self.process = process
        self._directory = directory
        self.control = f"/unix{directory.name}/d"
        self.listener = f"/unix{directory.name}/c"
        self.last_lines: deque[str] = deque(maxlen=LOG_LINES)
        self.died = asyncio.Event()
        """Set when the process has ended, whatever the reason."""
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @classmethod
    async def start(cls, config: NetworkConfig, identity_file: Path, binary: Path | None = None) -> Daemon:
        """Start p2pd and wait until it listens. Raises DaemonFailed: what was tried, its log, and what to do."""
        binary = binary or Path(str(resources.files("hivemind.hivemind_cli").joinpath("p2pd")))
        directory = tempfile.TemporaryDirectory(prefix=f"swarm-{secrets.token_hex(3)}-")
        arguments = _arguments(config, identity_file, directory.name)
        try:
            process = await asyncio.create_subprocess_exec(
                *_tied_to_parent(str(binary), arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            directory.cleanup()
            raise DaemonFailed(_explain(str(error), binary, arguments, [], directory.name)) from error
        daemon = cls(process, directory)
        daemon._reader = asyncio.ensure_future(daemon._read())
        await daemon._wait_until_ready(binary, arguments, config.daemon_startup)
        return daemon

    async def _wait_until_ready(self, binary: Path, arguments: list[str], patience: float) -> None:
        ready = asyncio.ensure_future(self._ready.wait())
        died = asyncio.ensure_future(self.died.wait())
        await asyncio.wait({ready, died}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        died.cancel()
        if not self._ready.is_set():
            code = self.process.returncode
            reason = f"it exited with code {code}" if code is not None else f"it was not ready after {patience:.0f} s"
            directory = self._directory.name
            await self.close()
            raise DaemonFailed(_explain(reason, binary, arguments, list(self.last_lines), directory))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            self.last_lines.append(text)
            log.debug("p2pd: %s", text)
            if text.startswith(READY):
                self._ready.set()
        await self.process.wait()
        self.died.set()

    async def close(self) -> None:
        """End the daemon and remove its sockets."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), 2.0)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        self._directory.cleanup()


def _arguments(config: NetworkConfig, identity_file: Path, sockets: str) -> list[str]:
    arguments = [
        f"-listen=/unix{sockets}/d",
        f"-id={identity_file}",
        f"-hostAddrs={','.join(config.host_maddrs)}",
        "-connManager=1",
        "-autonat=1",
        "-natPortMap=1",
        "-relay=1",
        f"-relayHopLimit={16 if config.relay else 0}",
        "-tls=1",
        "-dhtServer=1",
        "-idleTimeout=30s",
        "-persistentConnMaxMsgSize=4194304",
        f"-b={int(bool(config.initial_peers))}",
    ]
    if config.initial_peers:
        arguments.append(f"-bootstrapPeers={','.join(config.initial_peers)}")
    if config.announce_maddrs:
        arguments.append(f"-announceAddrs={','.join(config.announce_maddrs)}")
    return arguments


def _tied_to_parent(binary: str, arguments: list[str]) -> list[str]:
    if not sys.platform.startswith("linux"):
        return [binary, *arguments]
    import os

    return [sys.executable, "-S", "-E", "-c", _DIE_WITH_PARENT, str(os.getpid()), binary, *arguments]


def _explain(reason: str, binary: Path, arguments: list[str], lines: list[str], sockets: str) -> str:
    said = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
    tried = " ".join([str(binary), *arguments])
    return f"p2pd did not start: {reason}\ntried: {tried}\nits log:\n{said}\n{ADVICE.format(sockets=sockets)}"
