"""How peers reach each other: `swarm.net.open` joins; hosts, streams and the directory are as in `swarm.net.base`."""

from swarm.net.network import Network, open  # noqa: A004

__all__ = ["Network", "open"]
