"""GGUF files as checkpoints: configuration, tokenizer and tensors out of one file or its parts."""
