"""Who may speak to the HTTP side: hosts, origins, keys, and how much. In front of everything."""

from __future__ import annotations

import contextlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swarm.errors import InvalidInput
from swarm.gateway.http.errors import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LOOPBACK_ORIGINS = rf"https?://({'|'.join(map(re.escape, LOOPBACK))})(:\d+)?"
PROTECTED = "/v1/"
"""What keys protect, where there are some."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Who may use the HTTP side. `hosts` and `origins`: names beyond loopback, or "*"; no `keys`: none are needed.

    Raises InvalidInput for a host with a * that is not all of it, nor its first part.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    body_limit: int = 4 << 20
    stuck: float = 60.0
    """An asker that takes nothing for so many seconds is given up."""
    heartbeat: float = 10.0
    """Seconds of silence after which a stream says that it is alive."""
    image_urls: bool = False
    """Whether pictures are fetched from where messages say."""

    def __post_init__(self) -> None:
        for host in self.hosts:
            if host != "*" and "*" in host.removeprefix("*."):
                raise InvalidInput(f"a host is a name, *.name or *, not {host!r}")


def protect(app: Starlette, settings: HttpSettings) -> None:
    """Let in only what `settings` allow. A page on another site can make a browser send requests here, also by a name
    that it lets point here; neither has a Host and an Origin that are ours."""
    # What is added last is asked first.
    app.add_middleware(Body, limit=settings.body_limit)
    app.add_middleware(Keys, keys=settings.keys)
    app.add_middleware(
        Origins,
        allow_origins=[origin.rstrip("/") for origin in settings.origins],
        allow_origin_regex=LOOPBACK_ORIGINS,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        allow_private_network=True,
    )
    app.add_middleware(Hosts, hosts=[*LOOPBACK, *settings.hosts])


class Hosts:
    """Starlette's check of the Host, with a refusal of ours."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def serve(scope: Scope, receive: Receive, _: Send) -> None:
            await self._app(scope, receive, send)

        async def refuse(message: Message) -> None:
            if message["type"] == "http.response.start":
                await refusal.response(scope["path"])(scope, receive, send)

        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        words = f"this gateway is not {host[:100] or 'without a name'}; see --allow-host"
        refusal = ApiError(403, words, code="host_refused")
        await TrustedHostMiddleware(serve, self._hosts, www_redirect=False)(scope, receive, refuse)


class Origins(CORSMiddleware):
    """Starlette's answers to browsers, and a refusal for pages that may not ask: reading is not all they could do."""

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:
        """Serve, or refuse."""
        origin = request_headers.get("origin")
        if origin is None or self.is_allowed_origin(origin) or is_own(origin, request_headers.get("host", "")):
            await super().simple_response(scope, receive, send, request_headers)
            return
        words = f"pages of {origin[:100]} may not use this gateway; see --allow-origin"
        await ApiError(403, words, code="origin_refused").response(scope["path"])(scope, receive, send)


def is_own(origin: str, host: str) -> bool:
    """Whether a page comes from where the request goes."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


class Keys:
    """Refuses requests without one of some keys, where there are some."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or not scope["path"].startswith(PROTECTED) or self._known(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(401, "a valid API key is needed", "authentication_error", "invalid_api_key")
        await error.response(scope["path"])(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = [key] if scheme.lower() == "bearer" else []
        # Anthropic's clients have a header of their own.
        given.append(headers.get("x-api-key", ""))
        tried = [each.strip().encode(errors="replace") for each in given]
        matches = [hmac.compare_digest(each, known.encode()) for each in tried for known in self._keys]
        return any(matches)


class Body:
    """Refuses bodies of more than `limit` bytes, whether they say so or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = Headers(scope=scope).get("content-length", "0") if scope["type"] == "http" else "0"
        limit = _Limit(receive, self._limit)
        limit.exceeded = said.isascii() and said.isdigit() and int(said[:20]) > self._limit
        if not limit.exceeded:
            with contextlib.suppress(_TooMuch):
                await self._app(scope, limit.receive, limit.instead(send))
        if limit.exceeded:
            error = ApiError(413, f"more than {self._limit} bytes", code="request_too_large")
            await error.response(scope["path"])(scope, receive, send)


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
