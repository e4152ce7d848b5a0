"""Attention over rows of many sequences."""
