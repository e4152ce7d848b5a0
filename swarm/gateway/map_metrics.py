"""What a peer without a model tells Prometheus: of the directory, and of who looks at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from swarm.gateway.map import MapService
from swarm.metrics import ScrapeCollector, gauge
from swarm.net.directory import HivemindDirectory


def watch_directory(
    registry: CollectorRegistry, directory: HivemindDirectory, maps: MapService, streams: Callable[[], int]
) -> None:
    """Look at these when somebody scrapes. `streams`: how many browsers' streams are open."""

    def look() -> Iterable[Metric]:
        yield gauge("swarm_directory_keys", "Keys that this node keeps for the swarm", directory.stored)
        yield gauge("swarm_directory_peers", "Peers in this node's routing table", directory.known)
        yield gauge("swarm_map_watchers", "Who looks at the map of the swarm", maps.lookers)
        yield gauge("swarm_edge_streams", "Streams of browsers", streams())

    registry.register(ScrapeCollector(look))
