"""A peer without p2pd: its connections are held by libp2p's Python implementation."""
