"""Every causal LM of transformers, made small, cut into spans and compared with the library's own whole model."""
