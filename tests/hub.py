"""A hub on this machine: one repository's files over HTTP, as huggingface.co gives them, with what goes wrong there."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "c" * 40


class Hub:
    """Serves a folder as `org/model`.

    `sent`: bytes of bodies, by file. `ranges`: whether it knows ranges; `cuts`: after how many bytes of a body to end a
    connection, one answer after the other; `token`: without which nothing is given; `elsewhere`: it redirects.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: dict[str, int] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.ranges = True
        self.cuts: list[int] = []
        self.token: str | None = None
        self.elsewhere = False
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def tensors_sent(self) -> int:
        """Bytes of files of tensors that left."""
        return sum(count for file, count in self.sent.items() if file.endswith(".safetensors"))

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            with hub.lock:
                hub.asked.append((self.command, self.path, self.headers.get("Range")))
            found = re.fullmatch(r"/(?:cdn/)?org/model/resolve/([^/]+)/(.+)", self.path)
            path = hub.folder / found[2] if found else None
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._end(
                    401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to org/model is restricted."}
                )
            if found is None or path is None or not path.is_file() or found[1] not in ("main", COMMIT):
                return self._end(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            if hub.elsewhere and body and not self.path.startswith("/cdn"):
                return self._end(302, {"Location": f"{hub.url}/cdn{self.path}"})
            return self._file(found[2], path, body)

        def _file(self, name: str, path: Path, body: bool) -> None:
            stat = path.stat()
            tag = hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
            first, end, status = 0, stat.st_size, 200
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked is not None and hub.ranges:
                first, end, status = int(asked[1]), min(int(asked[2]) + 1, stat.st_size), 206
                headers["Content-Range"] = f"bytes {first}-{end - 1}/{stat.st_size}"
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(end - first)}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                with path.open("rb") as file:
                    file.seek(first)
                    self._send(name, file.read(end - first))

        def _send(self, name: str, part: bytes) -> None:
            with hub.lock:
                cut = hub.cuts.pop(0) if hub.cuts and name.endswith(".safetensors") else len(part)
                # Counted before: whoever has it may look at once.
                hub.sent[name] = hub.sent.get(name, 0) + len(part[:cut])
            try:
                self.wfile.write(part[:cut])
            except OSError:  # who asked for it has left
                with hub.lock:
                    hub.sent[name] -= len(part[:cut])
                return
            if cut < len(part):
                self.wfile.flush()
                self.close_connection = True

        def _end(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": "0"}).items():
                self.send_header(key, value)
            self.end_headers()

    return Handler


@contextmanager
def hub_of(folder: Path, monkeypatch: pytest.MonkeyPatch, caches: Path) -> Iterator[Hub]:
    """A hub of a folder, asked by the library and by us; nothing is cached but in `caches`."""
    with Hub(folder) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(caches / "hub"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(caches / "ours"))
        yield hub
