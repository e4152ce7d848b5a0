"""Pictures fetched by their addresses: no way into the operator's network, and no more than was asked for."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from swarm.errors import InvalidInput
from swarm.gateway import picture_urls
from swarm.gateway.picture_urls import PictureUrls, PublicBackend, is_public

BODY = b"\x89PNG as it came"
PRIVATE = [
    "127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "localhost", "",
]  # fmt: skip


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        match self.path:
            case "/cat.png":
                self._send(200, BODY)
            case "/large":
                self.send_response(200)
                self.end_headers()
                with_room = bytes(1 << 16)
                try:
                    while True:
                        self.wfile.write(with_room)
                except OSError:
                    pass
            case "/away":
                self._send(302, b"", ("Location", "http://localhost:1/secret"))
            case "/round":
                self._send(302, b"", ("Location", "/round"))
            case "/moved":
                self._send(301, b"", ("Location", "/cat.png"))
            case "/slow":
                threading.Event().wait(2.0)
            case _:
                self._send(404, b"none")

    def _send(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def asked(*urls: str) -> str:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return json.dumps([{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}])


def fetched(messages: str, backend: PublicBackend | None = None, *, any_port: bool = True) -> Any:
    async def run() -> Any:
        urls = PictureUrls(backend, any_port=any_port)
        try:
            return json.loads(await urls.fetched(messages))
        finally:
            await urls.close()

    return asyncio.run(run())


async def one_machine(host: str, port: int) -> list[str]:
    """As a name server would say that knows one public site, and one name of this machine."""
    return {"site.example": ["203.0.113.1"], "localhost": ["127.0.0.1"], "both.example": ["127.0.0.1", "203.0.113.1"]}[
        host
    ]


class Redirected(PublicBackend):
    """The public site is at this machine; nothing else is."""

    def __init__(self) -> None:
        super().__init__(one_machine, lambda address: address == "203.0.113.1")
        inner = self._inner

        class Here:
            async def connect_tcp(self, host: str, *rest: Any) -> Any:
                assert host == "203.0.113.1"
                return await inner.connect_tcp("127.0.0.1", *rest)

        self._inner = Here()  # type: ignore[assignment]


def test_an_address_becomes_the_picture_and_all_else_stays(port: int) -> None:
    mine = "data:image/png;base64,AA=="
    site, both = f"http://site.example:{port}/cat.png", f"http://both.example:{port}/moved"
    (message,) = fetched(asked(site, mine, both), Redirected())
    urls = [part["image_url"]["url"] for part in message["content"][:3]]
    told = f"data:image/*;base64,{base64.b64encode(BODY).decode()}"
    assert urls == [told, mine, told]
    assert message["content"][3] == {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_what_is_public_is_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]"])
def test_this_machine_is_not_asked_whatever_it_is_called(port: int, host: str) -> None:
    with pytest.raises(InvalidInput, match=r"not on the public internet|cannot be fetched") as told:
        fetched(asked(f"http://{host}:{port}/cat.png"))
    assert told.value.field == "messages"


WRONG = {
    "a redirect inside": ("/away", "localhost is not on the public internet"),
    "a circle": ("/round", "again and again"),
    "nothing there": ("/none", "the server says 404"),
    "too large": ("/large", "more than 1 MiB"),
    "too slow": ("/slow", "took more than"),
}


@pytest.mark.parametrize("path, words", WRONG.values(), ids=list(WRONG))
def test_what_goes_wrong_is_told(port: int, path: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_urls, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(picture_urls, "PATIENCE", 1.0 if path == "/slow" else 30.0)
    with pytest.raises(InvalidInput, match=words) as told:
        fetched(asked(f"http://site.example:{port}{path}"), Redirected())
    assert told.value.field == "messages"


@pytest.mark.parametrize(
    "url, words",
    [
        ("http://site.example:22/cat.png", "port 22"),
        ("http://me:secret@site.example/cat.png", "name or password"),
        ("http://", "no URL"),
        ("http://site.example/\x00", "no URL"),
        ("http://site.example:99999/", "no URL"),
        ("http://[::1/", "no URL"),
        (f"http://site.example/{'x' * 3000}", "no URL"),
    ],
)
def test_what_is_no_url_to_fetch_is_not_fetched(url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        fetched(asked(url), Redirected(), any_port=False)


def test_no_more_pictures_are_fetched_than_are_looked_at() -> None:
    with pytest.raises(InvalidInput, match="17 pictures"):
        fetched(asked(*["http://site.example/cat.png"] * 17), Redirected())
