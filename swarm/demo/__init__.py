"""A swarm to look at: a small real model, servers of it as processes on this machine, and a story that is told."""
