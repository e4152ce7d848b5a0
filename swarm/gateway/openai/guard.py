"""Who may speak to the HTTP side: hosts, origins, keys, and how much. Pure ASGI, in front of everything."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swarm.gateway.openai.errors import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
ANY = "*"
OPEN_PATHS = ("/health", "/version")
"""Of those that keys protect (all of the API), these need none."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Who may use the HTTP side. `hosts` and `origins`: names beyond loopback, or "*"; no `keys`: none are needed."""

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    body_limit: int = 4 << 20
    stuck: float = 60.0
    """An asker that takes nothing for so many seconds is given up."""
    heartbeat: float = 10.0
    """Seconds of silence after which a stream says that it is alive."""


def host_of(header: str) -> str:
    """`127.0.0.1:8000` → `127.0.0.1`."""
    name = header.rpartition(":")[0] if not header.endswith("]") and ":" in header else header
    return name.lower()


def refusal(settings: HttpSettings, headers: Mapping[str, str], path: str) -> ApiError | None:
    """Why a request must not be served; None: it may.

    A page on another site can make a browser send requests here, also by a name that it lets point here; neither has
    a Host and an Origin that are ours.
    """
    host, origin = host_of(headers.get("host", "")), headers.get("origin")
    if ANY not in settings.hosts and host not in (*LOOPBACK, *map(str.lower, settings.hosts)):
        return ApiError(403, f"this gateway is not {host or 'without a name'}; see --allow-host", code="host_refused")
    if origin is not None and not origin_allowed(settings, origin, headers.get("host", "")):
        return ApiError(403, f"pages of {origin} may not use this gateway; see --allow-origin", code="origin_refused")
    if settings.keys and path.startswith("/v1/") and path not in OPEN_PATHS and not _known(settings.keys, headers):
        return ApiError(401, "a valid API key is needed", "authentication_error", "invalid_api_key")
    return None


def origin_allowed(settings: HttpSettings, origin: str, host: str) -> bool:
    """Whether pages of `origin` may ask: our own, those of this machine, and those that the settings name."""
    if ANY in settings.origins or origin in [allowed.rstrip("/") for allowed in settings.origins]:
        return True
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    return parts.netloc.lower() == host.lower() or (f"[{name}]" if ":" in name else name) in LOOPBACK


def _known(keys: Sequence[str], headers: Mapping[str, str]) -> bool:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    given = key.strip().encode(errors="replace")
    matches = [hmac.compare_digest(given, known.encode()) for known in keys]
    return scheme.lower() == "bearer" and any(matches)


class Guard:
    """ASGI middleware: refuses, limits bodies, and tells browsers which origins may read the answers."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if "origin" in headers:
            send = _allowing(headers["origin"], self.settings, headers.get("host", ""), send)
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        error = refusal(self.settings, {**headers, **({"authorization": ""} if preflight else {})}, scope["path"])
        if preflight and (error is None or error.status == 401):
            await _answer_preflight(send, headers.get("access-control-request-headers", ""))
            return
        if error is None and int(_digits(headers.get("content-length", "0"))) > self.settings.body_limit:
            error = self._too_large()
        if error is not None:
            await error.response()(scope, receive, send)
            return
        limit = _Limit(receive, self.settings.body_limit)
        with contextlib.suppress(_TooMuch):
            await self.app(scope, limit.receive, limit.instead(send))
        if limit.exceeded:
            await self._too_large().response()(scope, receive, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"more than {self.settings.body_limit} bytes", code="request_too_large")


class _TooMuch(Exception):
    """More came than may."""


class _Limit:
    """Counts a body. What the application says of one that is too large is not sent: it takes it for broken."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.exceeded = False
        self._receive = receive
        self._left = limit

    async def receive(self) -> Message:
        """The next message. Raises an error when more comes than may."""
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.exceeded = True
            raise _TooMuch
        return message

    def instead(self, send: Send) -> Send:
        """`send`, as long as the limit holds."""

        async def checked(message: Message) -> None:
            if not self.exceeded:
                await send(message)

        return checked


def _digits(text: str) -> str:
    return text if text.isascii() and text.isdigit() else "0"


def _allowing(origin: str, settings: HttpSettings, host: str, send: Send) -> Send:
    async def allowing(message: Message) -> None:
        if message["type"] == "http.response.start" and origin_allowed(settings, origin, host):
            allowed = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
            message = {**message, "headers": [*message["headers"], *allowed]}
        await send(message)

    return allowing


async def _answer_preflight(send: Send, wanted: str) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", wanted.encode("latin-1")),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
