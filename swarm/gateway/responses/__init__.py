"""OpenAI's newer API, of responses, over an `Answerer`."""
