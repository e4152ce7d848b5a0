"""Answers of a given form: which tokens may come next, and which must."""
