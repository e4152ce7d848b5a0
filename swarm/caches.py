"""Where what can be had or made again is kept on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def cache_dir(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """By the platform's convention."""
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "swarm"
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "swarm"
