"""Who did how much for whom: receipts that both sides sign, and the priority that they give. Begin at `account.py`."""
