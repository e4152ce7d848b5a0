"""A server's part of a model: the blocks of a span, run by the model's own code."""
