"""Libraries that write a line for everything that a peer does wrong."""

from __future__ import annotations

import logging


def quieten(*libraries: str) -> None:
    """What a peer does wrong is no news: these write a line, some of them to stderr, for everything."""
    for library in libraries:
        logger = logging.getLogger(library)
        logger.addHandler(logging.NullHandler())
        logger.setLevel(logging.CRITICAL)
