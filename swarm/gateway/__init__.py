"""Query nodes: clients that answer queries of others, over the network and over HTTP."""
