"""swarm: run language models that are too large for one machine, together."""
