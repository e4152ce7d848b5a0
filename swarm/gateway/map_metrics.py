"""What a peer without a model tells Prometheus: of the directory, and of who looks at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from swarm.gateway.map import MapService
from swarm.metrics import ScrapeCollector, gauge
from swarm.net.base import Directory


def watch_directory(
    registry: CollectorRegistry, directory: Directory, maps: MapService, streams: Callable[[], int]
) -> None:
    """Look at these when somebody scrapes. `streams`: how many browsers' streams are open."""

    def look() -> Iterable[Metric]:
        held = directory.statistics()
        yield gauge("swarm_directory_keys", "Keys that this node keeps for the swarm", held.keys)
        yield gauge("swarm_directory_peers", "Peers in this node's routing table", held.peers)
        yield gauge("swarm_map_watchers", "Who looks at the map of the swarm", maps.lookers)
        yield gauge("swarm_edge_streams", "Streams of browsers", streams())

    registry.register(ScrapeCollector(look))
