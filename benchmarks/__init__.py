"""Benchmarks: `python -m benchmarks NAME`. Each prints ratios against a baseline measured in the same run."""
