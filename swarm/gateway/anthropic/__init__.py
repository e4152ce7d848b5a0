"""Anthropic's HTTP API over an `Answerer`."""
