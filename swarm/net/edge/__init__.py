"""What browsers can dial: a host beside the daemon's, with the same peer id, over libp2p's Python implementation."""
