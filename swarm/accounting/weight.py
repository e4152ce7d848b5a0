"""From credit to the share of a busy server. Pure."""

from __future__ import annotations

import math

ANONYMOUS = 1.0
HIGHEST = 8.0
UNIT = 1_000_000_000_000
"""The credit that doubles a share: 1000 positions through a thousand million parameters."""


def weight(credit: int, unit: int = UNIT) -> float:
    """1 for who has no credit, 8 at most; each doubling of credit adds 1."""
    return min(ANONYMOUS + math.log2(1.0 + max(credit, 0) / unit), HIGHEST)
