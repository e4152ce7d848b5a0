"""What `pip install swarm-llm` leaves out, and how to have it."""

from __future__ import annotations

PACKAGES = {
    "gateway": ("fastapi", "llguidance", "openai", "pydantic", "starlette", "uvicorn"),
    "images": ("PIL",),
    "adapters": ("peft",),
    "edge": ("aioice", "aioquic", "aiortc", "libp2p", "trio", "wsproto"),
}
"""By extra, what its code imports."""
PURPOSES = {
    "gateway": "answering queries over HTTP",
    "images": "reading pictures",
    "adapters": "reading adapters",
    "edge": "listening for browsers",
}


def how_to_have(module: str | None) -> str | None:
    """What to install where `module` is missing; None for what is no extra's."""
    package = (module or "").partition(".")[0]
    extra = next((extra for extra, packages in PACKAGES.items() if package in packages), None)
    if extra is None:
        return None
    return f'{PURPOSES[extra]} needs {package}, which is not installed: pip install "swarm-llm[{extra}]"'
