"""Starts commands in processes forked off one that has imported what they import: that takes them most of their start.

They are processes of their own as any, with their own files, signals and session, and children of whoever asked for
them. Tests of how commands start, and of what they import, start them as users do.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: orphans below this process become its children."""
LARGEST = 1 << 20


class Warm:
    """One process to fork off. A context manager."""

    def __init__(self) -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "this process cannot become a subreaper")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.processes.warm", str(theirs.fileno())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()

    def start(
        self, module: str, arguments: Sequence[str], output: IO[bytes], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Run a module in a session of its own; what it prints goes to `output`."""
        asked = json.dumps([module, *arguments]).encode() + b"\0" + json.dumps(dict(environment)).encode()
        files = array.array("i", [output.fileno()])
        self._socket.sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        pid = int(self._socket.recv(64))
        started: Any = subprocess.Popen.__new__(subprocess.Popen)
        # As Popen has them of a process that it has started.
        started.__dict__.update(
            {
                "args": [module, *arguments],
                "pid": pid,
                "returncode": None,
                "stdin": None,
                "stdout": None,
                "stderr": None,
                "_child_created": True,
                "_waitpid_lock": threading.Lock(),
                "_communication_started": False,
                "_input": None,
            }
        )
        return started  # type: ignore[no-any-return]


def _serve(asking: socket.socket) -> None:
    """Fork for whoever asks, until nobody does."""
    while True:
        asked, extra, *_ = asking.recvmsg(LARGEST, socket.CMSG_SPACE(4))
        if not asked:
            return
        (output,) = array.array("i", extra[0][2])
        told, tell = os.pipe()
        if not (child := os.fork()):
            asking.detach()  # closed by its number
            _leave_orphan(asked, output, tell)
        os.close(output)
        os.close(tell)
        os.waitpid(child, 0)
        with os.fdopen(told, "rb") as pid:
            asking.send(pid.read())


def _leave_orphan(asked: bytes, output: int, tell: int) -> None:
    """Fork once more, and end: the grandchild becomes a child of the subreaper above."""
    if pid := os.fork():
        os.write(tell, str(pid).encode())
        os._exit(0)
    os.close(tell)
    os.setsid()
    words, environment = (json.loads(part) for part in asked.split(b"\0", 1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(here, there)
    os.closerange(3, max(output, nothing) + 1)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import swarm.gateway.node
    import swarm.server.hosting  # noqa: F401

    _serve(socket.socket(fileno=int(sys.argv[1])))
