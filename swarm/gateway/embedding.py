"""A text as one vector: what the model makes of it before its head, pooled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from swarm.client.session import Session
from swarm.gateway.ends_batcher import Embed, EndsBatcher
from swarm.types import Rows


async def embedded(session: Session, ends: EndsBatcher, prompt: Sequence[int], pooling: str) -> list[float]:
    """Of the tokens of a text, by a session of their own, which ends with it. `pooling`: "mean" of all positions, or
    "last". Raises what `Session.step` raises."""
    try:
        hidden = await ends.embed(Embed(prompt))
        want = 1 if pooling == "last" else len(prompt)
        (output,) = await session.step([Rows(1, hidden, want)])
        return await ends.pool(output, want)
    finally:
        await asyncio.shield(session.close())
