"""OpenAI's HTTP API over an `Answerer`."""
