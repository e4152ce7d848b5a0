"""Real processes under random faults: `scripts/soak.py`."""
