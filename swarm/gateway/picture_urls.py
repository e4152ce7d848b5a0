"""Pictures that messages only have the addresses of, fetched for operators who say so: from the public internet alone.

What a stranger may name is never a way into the operator's network: names are looked up here, each address that is
dialled is public, and a redirect is an address like any other.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import httpcore

from swarm.errors import InvalidInput
from swarm.models.picture_parts import KIND, MOST_PICTURES, is_address
from swarm.models.pictures import MOST_BYTES

PATIENCE = 15.0
"""Seconds for all of a conversation's pictures."""
REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
LONGEST = 2048
AT_A_TIME = 8
"""Downloads of all queries."""
TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
"""IPv6 addresses that routers turn into IPv4 ones."""


class Resolve(Protocol):
    """Looks a name up: its addresses. Raises OSError."""

    async def __call__(self, host: str, port: int) -> Iterable[str]: ...


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, whatever it is embedded in. Pure."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip.sixtofour is not None or ip.teredo is not None or any(ip in network for network in TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system resolves it. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class PublicBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses alone, and to the very ones that it has checked."""

    def __init__(self, resolve: Resolve = look_up, allowed: Callable[[str], bool] = is_public) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises InvalidInput where no address of the host is public."""
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"there is no {host}") from error
        allowed = [address for address in addresses if self._allowed(address)]
        if not allowed:
            raise InvalidInput(f"{host} is not on the public internet")
        return await self._inner.connect_tcp(allowed[0], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Between tries."""
        await asyncio.sleep(seconds)


class PictureUrls:
    """Fetches what messages name. Ports are those of http and https, unless `ports` says otherwise."""

    def __init__(self, backend: PublicBackend | None = None, *, any_port: bool = False) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl.create_default_context(), max_connections=AT_A_TIME, network_backend=backend or PublicBackend()
        )
        self._any_port = any_port

    async def fetched(self, messages: str) -> str:
        """The messages, JSON as of a query, with the pictures themselves in place of their addresses.

        Raises InvalidInput, with what is the matter with one.
        """
        read = json.loads(messages)
        parts = [part for part in _parts(read) if is_address(_url(part))]
        if len(parts) > MOST_PICTURES:
            raise _refused(f"messages: {len(parts)} pictures; at most {MOST_PICTURES} are looked at")
        try:
            async with asyncio.timeout(PATIENCE):
                left = MOST_BYTES
                for part in parts:  # one after the other: a conversation takes one place
                    data = await self._fetch(_url(part), left)
                    left -= len(data)
                    part[KIND] = {"url": f"data:image/*;base64,{base64.b64encode(data).decode()}"}
        except TimeoutError:
            raise _refused(f"messages: fetching the pictures took more than {PATIENCE:.0f} s") from None
        return json.dumps(read)

    async def _fetch(self, url: str, most: int) -> bytes:
        try:
            return await self._get(url, most, REDIRECTS)
        except InvalidInput as error:
            raise _refused(f"{url[:200]}: {error}") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise _refused(f"{url[:200]} cannot be fetched: {' '.join(str(error).split())[:200]}") from error

    async def _get(self, url: str, most: int, redirects: int) -> bytes:
        self._check(url)
        headers = [("Accept", "image/*"), ("User-Agent", "swarm-gateway")]
        async with self._pool.stream("GET", url, headers=headers) as response:
            if response.status in (301, 302, 303, 307, 308):
                if redirects == 0:
                    raise InvalidInput("it is redirected again and again")
                told = {name.lower(): value for name, value in response.headers}.get(b"location", b"")
                return await self._get(urljoin(url, told.decode("latin-1")), most, redirects - 1)
            if response.status != 200:
                raise InvalidInput(f"the server says {response.status}")
            data = bytearray()
            async for piece in response.aiter_stream():
                data += piece
                if len(data) > most:
                    raise InvalidInput(f"pictures of more than {MOST_BYTES >> 20} MiB; make them smaller")
            return bytes(data)

    def _check(self, url: str) -> None:
        try:
            asked = urlsplit(url)
            host, port = asked.hostname, asked.port
        except ValueError:
            raise InvalidInput("this is no URL") from None
        if asked.scheme not in PORTS or not host or len(url) > LONGEST or not url.isascii() or not url.isprintable():
            raise InvalidInput("this is no URL of http or https, in ASCII")
        if asked.username is not None or asked.password is not None:
            raise InvalidInput("a URL with a name or password in it is not fetched")
        if port not in (None, PORTS[asked.scheme]) and not self._any_port:
            raise InvalidInput(f"port {port} is not fetched from")

    async def close(self) -> None:
        """Drop all connections."""
        await self._pool.aclose()


def _parts(messages: Any) -> list[dict[str, Any]]:
    turns = [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    contents = [each["content"] for each in turns if isinstance(each.get("content"), list)]
    parts = [part for content in contents for part in content]
    return [part for part in parts if isinstance(part, dict) and part.get("type") == KIND]


def _url(part: dict[str, Any]) -> str:
    image = part.get(KIND)
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) else ""


def _refused(words: str) -> InvalidInput:
    return InvalidInput(words, field="messages")
