"""The network over hivemind: streams through its daemon p2pd, a directory in its DHT."""
