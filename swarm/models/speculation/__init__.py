"""Speculation that computes: a decoding method for `generate`, and drafts by a smaller model."""
