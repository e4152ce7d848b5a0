"""Numbers for Prometheus: how they are kept and shown. Seconds and bytes; never a label for a peer or a session.

What a process can tell by looking is looked at by a `ScrapeCollector`, when somebody scrapes; only what passes by is
counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from swarm.errors import InvalidInput

REQUEST_LIMIT = 16 * 1024
PATIENCE = 10.0
"""Seconds that a scraper may take to ask."""


class ScrapeCollector(Collector):
    """Metrics that are read off when somebody scrapes."""

    def __init__(self, look: Callable[[], Iterable[Metric]]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        return self._look()

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry would look before there is something to see."""
        return ()


def gauge(name: str, words: str, value: float) -> Metric:
    """One number as it is now."""
    return GaugeMetricFamily(name, words, value=value)


def counter(name: str, words: str, value: float) -> Metric:
    """One number that only grows; its name ends in _total when it is shown."""
    return CounterMetricFamily(name, words, value=value)


def exposition(registry: CollectorRegistry) -> tuple[str, bytes]:
    """Content type and text."""
    return CONTENT_TYPE_LATEST, generate_latest(registry)


async def serve_metrics(
    registry: CollectorRegistry, host: str, port: int, ready: Callable[[str, int], None] = lambda host, port: None
) -> None:
    """Answer scrapers until cancelled; `ready` is told the address. Raises InvalidInput when it cannot be had."""
    try:
        server = await asyncio.start_server(lambda r, w: _answer(registry, r, w), host, port, limit=REQUEST_LIMIT)
    except (OSError, UnicodeError) as error:
        why = (getattr(error, "strerror", None) or str(error)).rpartition(": ")[2]
        raise InvalidInput(f"cannot show metrics on {host}:{port}: {why}; pass another place") from error
    ready(*server.sockets[0].getsockname()[:2])
    async with server:
        await server.serve_forever()


async def _answer(registry: CollectorRegistry, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, whose headers do not matter; anything but GET /metrics is not found."""
    try:
        async with asyncio.timeout(PATIENCE):
            head = await reader.readuntil(b"\r\n\r\n")
            found = head.startswith((b"GET /metrics ", b"GET /metrics?"))
            kind, body = exposition(registry) if found else ("text/plain", b"see /metrics\n")
            status = "200 OK" if found else "404 Not Found"
            fields = f"content-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close"
            writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + body)
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()
