"""What a swarm would do, before it is there: arithmetic over machines and a model, by the functions that servers and
clients decide with."""
