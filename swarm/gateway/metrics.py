"""What a query node tells Prometheus, under the names that vLLM gave these things."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric

from swarm.errors import ServerBusy, SwarmError
from swarm.gateway.answers import Answerer
from swarm.metrics import ScrapeCollector, gauge
from swarm.types import Span

FIRST = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
EACH = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
WHOLE = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


def _gap(answerer: Answerer) -> int:
    missing = answerer.missing
    return 0 if missing is None or not missing.blocks else len(Span(*missing.blocks[0]))


class QueryMetrics:
    """Counts queries as they go by."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._success = Counter("swarm_request_success", "Queries answered", ["finished_reason"], registry=registry)
        self._failed = Counter("swarm_request_failure", "Queries that ended otherwise", ["error"], registry=registry)
        self._prompt = Counter("swarm_prompt_tokens", "Tokens of prompts", registry=registry)
        self._generated = Counter("swarm_generation_tokens", "Tokens generated", registry=registry)
        self._drafted = Counter("swarm_spec_decode_num_draft_tokens", "Guesses verified", registry=registry)
        self._right = Counter("swarm_spec_decode_num_accepted_tokens", "Guesses that were right", registry=registry)
        self._reroutes = Counter("swarm_reroutes", "Routes changed in the middle of a query", registry=registry)
        self._missing = Counter("swarm_waited_for_blocks", "Queries that had to wait for blocks", registry=registry)
        self._first = Histogram(
            "swarm_time_to_first_token_seconds", "Until the first token", registry=registry, buckets=FIRST
        )
        self._each = Histogram(
            "swarm_inter_token_latency_seconds", "Between two tokens", registry=registry, buckets=EACH
        )
        self._whole = Histogram("swarm_e2e_request_latency_seconds", "Until the end", registry=registry, buckets=WHOLE)

    def watch(self, answerers: Sequence[Answerer], adapted: Sequence[Answerer] = ()) -> None:
        """Tell how busy they are together, too; those `adapted` have the blocks of others."""

        def look() -> Iterable[Metric]:
            running = sum(answerer.running for answerer in (*answerers, *adapted))
            capacity = sum(answerer.capacity for answerer in (*answerers, *adapted))
            yield gauge("swarm_num_requests_running", "Queries being answered", running)
            yield gauge("swarm_request_capacity", "Queries that can be answered at a time", capacity)
            yield gauge("swarm_blocks_missing", "Blocks from the first gap on", sum(map(_gap, answerers)))

        self._registry.register(ScrapeCollector(look))

    def accepted(self, prompt_tokens: int) -> None:
        """A query was looked through."""
        self._prompt.inc(prompt_tokens)

    def token(self, seconds: float, *, first: bool) -> None:
        """One more, so long after the one before or the beginning."""
        self._generated.inc()
        (self._first if first else self._each).observe(seconds)

    def verified(self, *, right: bool) -> None:
        """A guess met the token that the model chose."""
        self._drafted.inc()
        self._right.inc(right)

    def rerouted(self) -> None:
        """A server was lost, and replaced."""
        self._reroutes.inc()

    def waiting(self) -> None:
        """Blocks have no server."""
        self._missing.inc()

    def finished(self, reason: str, seconds: float) -> None:
        """A query was answered."""
        self._success.labels(reason).inc()
        self._whole.observe(seconds)

    def failed(self, error: BaseException) -> None:
        """It ended otherwise: refused, given up, or left by who asked."""
        known = isinstance(error, SwarmError)
        name = "full" if isinstance(error, ServerBusy) else type(error).__name__ if known else "left"
        self._failed.labels(name).inc()
