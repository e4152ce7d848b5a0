"""What Prometheus reads, and that nobody who asks for it can do harm."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from swarm.errors import GenerationFailed, InvalidInput, ServerBusy
from swarm.gateway.metrics import QueryMetrics
from swarm.metrics import ScrapeCollector, counter, exposition, gauge, serve_metrics
from tests.gateway.scripted import Scripted


def values(registry: CollectorRegistry) -> dict[str, float]:
    families = text_string_to_metric_families(exposition(registry)[1].decode())
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_is_looked_at_is_what_is_there_at_the_time() -> None:
    registry, now = CollectorRegistry(), [1.0]
    registry.register(ScrapeCollector(lambda: [gauge("swarm_x", "x", now[0]), counter("swarm_y", "y", 2)]))
    assert values(registry) == {"swarm_x": 1.0, "swarm_y_total": 2.0}
    now[0] = 3.0
    assert values(registry)["swarm_x"] == 3.0


def test_scrapers_are_answered_and_others_do_no_harm() -> None:
    async def main() -> None:
        registry = CollectorRegistry()
        registry.register(ScrapeCollector(lambda: [gauge("swarm_x", "x", 1.0)]))
        bound: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        ready = lambda host, port: bound.set_result((host, port))  # noqa: E731
        serving = asyncio.create_task(serve_metrics(registry, "127.0.0.1", 0, ready))
        host, port = await bound
        with pytest.raises(InvalidInput, match=str(port)):
            await serve_metrics(registry, host, port)
        for junk in (b"", b"\r\n\r\n", b"x" * 100_000, b"POST /metrics HTTP/1.1\r\n\r\n", b"\x00\xff\r\n\r\n"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(junk)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                assert b"swarm_x" not in await reader.read()
            writer.close()
        async with httpx.AsyncClient() as client:
            assert "swarm_x 1.0" in (await client.get(f"http://{host}:{port}/metrics")).text
            assert (await client.get(f"http://{host}:{port}/")).status_code == 404
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(main())


def test_queries_are_counted_as_they_end() -> None:
    registry = CollectorRegistry()
    metrics = QueryMetrics(registry)
    metrics.watch([Scripted(capacity=3)])
    metrics.accepted(7)
    metrics.token(0.3, first=True)
    metrics.token(0.01, first=False)
    metrics.finished("stop", 2.0)
    for error in (ServerBusy("x"), GenerationFailed("x"), asyncio.CancelledError(), GeneratorExit()):
        metrics.failed(error)
    seen = values(registry)
    assert seen["swarm_prompt_tokens_total"] == 7
    assert seen["swarm_generation_tokens_total"] == 2
    assert seen["swarm_time_to_first_token_seconds_sum"] == 0.3
    assert seen["swarm_request_success_total,finished_reason=stop"] == 1
    assert {key: seen[f"swarm_request_failure_total,error={key}"] for key in ("full", "GenerationFailed", "left")} == {
        "full": 1,
        "GenerationFailed": 1,
        "left": 2,
    }
    assert seen["swarm_request_capacity"] == 3


def test_no_metric_has_a_label_for_a_peer() -> None:
    registry = CollectorRegistry()
    QueryMetrics(registry)
    allowed = {"finished_reason", "error", "phase", "le"}
    for family in text_string_to_metric_families(exposition(registry)[1].decode()):
        assert family.name.startswith("swarm_")
        assert all(set(sample.labels) <= allowed for sample in family.samples)
