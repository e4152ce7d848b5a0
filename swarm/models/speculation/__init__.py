"""Speculation that computes: a decoding method for `generate`, and guesses by a smaller model."""
