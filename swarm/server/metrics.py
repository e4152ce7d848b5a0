"""What a server tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric

from swarm.errors import BookFailed
from swarm.metrics import ScrapeCollector, counter, gauge
from swarm.types import ServerState

if TYPE_CHECKING:
    from swarm.accounting.account import Account
    from swarm.server.engine import Pass
    from swarm.server.hosted import HostedStatistics
    from swarm.server.server import Server
    from swarm.server.session import Session

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerMetrics:
    """Counts passes, and looks at a server when somebody scrapes."""

    def __init__(self, registry: CollectorRegistry, server: Server) -> None:
        phase = ["phase"]
        self._seconds = Histogram("swarm_pass_seconds", "Forward passes", phase, registry=registry, buckets=SECONDS)
        self._steps = Histogram("swarm_pass_steps", "Steps in a pass", phase, registry=registry, buckets=SIZES)
        self._positions = Counter("swarm_positions", "Positions computed", phase, registry=registry)
        self._server = server
        server.on_pass = self.observe
        registry.register(ScrapeCollector(self._look))

    def observe(self, done: Pass) -> None:
        """A pass is over."""
        phase = "decode" if done.decoding else "prefill"
        self._seconds.labels(phase).observe(done.seconds)
        self._steps.labels(phase).observe(done.steps)
        self._positions.labels(phase).inc(done.positions)

    def _look(self) -> Iterable[Metric]:
        handler, draining = self._server.handler, self._server.handler.draining
        yield gauge("swarm_blocks_served", "Blocks announced as online", self._blocks())
        yield gauge("swarm_server_draining", "1 while it leaves", float(draining))
        guard = self._server.guard
        yield gauge("swarm_streams_open", "Streams of peers", guard.streams.held)
        yield gauge("swarm_bytes_in_flight", "Of peers, that have come and not gone on", guard.flight.places.held)
        streams = Counter("swarm_streams_refused", "Streams that were refused", ["limit"], registry=None)
        for name, count in guard.refused.items():
            streams.labels(name).inc(count)
        yield from streams.collect()
        if handler.account is not None:
            yield from _accounts(handler.account, handler.sessions)
        if not handler.hosted:
            return
        yield from _occupancy([hosted.statistics() for hosted in handler.hosted])
        prefixes = [hosted.prefixes for hosted in handler.hosted]
        hits, positions = (sum(getattr(each, name) for each in prefixes) for name in ("hits", "positions"))
        yield counter("swarm_prefix_cache_hits", "Prompts that began as one before", hits)
        yield counter("swarm_prefix_cache_hit_positions", "Positions that were not computed again", positions)
        refused = Counter("swarm_sessions_refused", "Sessions that were refused", ["error"], registry=None)
        for name, count in handler.refused.items():
            refused.labels(name).inc(count)
        yield from refused.collect()

    def _blocks(self) -> int:
        lives = [life for life in self._server.spans if life.state is ServerState.ONLINE and life.span is not None]
        return sum(len(life.span) for life in lives if life.span is not None)


def _accounts(account: Account, sessions: Iterable[Session]) -> Iterable[Metric]:
    """Work in thousands of millions of parameters times positions."""
    bills = [session.receipts for session in sessions if session.receipts is not None]
    unsigned = sum(bill.tab.computed - bill.tab.signed for bill in bills)
    yield gauge("swarm_sessions_on_accounts", "Sessions of clients that sign receipts", len(bills))
    yield gauge("swarm_work_unsigned", "Done and not signed for yet", unsigned / 1e9)
    try:
        sums = account.statistics()
    except BookFailed:
        return
    yield counter("swarm_work_given", "Done for others, signed by them", sums.given / 1e9)
    yield counter("swarm_work_taken", "Done by others, signed for", sums.taken / 1e9)
    yield counter("swarm_receipts_refused", "Receipts that were no good", sums.refused)
    yield gauge("swarm_accounts_cheating", "Accounts that have signed what contradicts itself", sums.cheats)


def _occupancy(spans: Sequence[HostedStatistics]) -> Iterable[Metric]:
    """Of all spans together."""

    def total(name: str) -> int:
        return sum(int(getattr(each, name)) for each in spans)

    usage = total("kv_bytes") / max(total("budget_bytes"), 1)
    yield gauge("swarm_num_sessions_running", "Sessions", total("sessions"))
    yield gauge("swarm_num_steps_waiting", "Steps that wait or are being computed", total("queue"))
    yield gauge("swarm_kv_cache_usage_ratio", "Of the cache's budget", usage)
    yield gauge("swarm_kv_cache_bytes", "KV cache of sessions", total("kv_bytes"))
    yield gauge("swarm_history_bytes", "Outputs that can be sent again", total("history_bytes"))
    yield gauge("swarm_prefix_cache_bytes", "Kept of prompts for those to come", total("prefix_bytes"))
    yield counter("swarm_sessions_opened", "Sessions", total("opened"))
