"""swarm-status --watch: a model's part of the swarm as it changes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swarm.cli.report import as_text, missing, served_by
from swarm.errors import NetworkError
from swarm.types import ModelInfo, PeerId, ServerRecord, ServerState, Span

EVERY = 2.0
"""Seconds between two looks at the directory."""
RECENT = 20.0
"""Seconds for which a server that came or left is marked."""
SHADES = ("red", "yellow", "green", "bright_green")
"""Of blocks with no server, one, two, and more."""


@dataclass(slots=True)
class Seen:
    """What was seen so far: when servers came and left, and since when blocks have no server. Times in seconds."""

    came: dict[PeerId, float] = field(default_factory=dict)
    left: dict[PeerId, float] = field(default_factory=dict)
    gaps: dict[Span, float] = field(default_factory=dict)
    names: dict[PeerId, str] = field(default_factory=dict)

    def look(self, records: Sequence[ServerRecord], blocks: int, now: float) -> None:
        """Take in a reading."""
        there = {record.peer_id for record in records}
        first = not self.names
        for peer in there - self.came.keys():
            self.came[peer] = float("-inf") if first else now
        for peer in self.came.keys() - there:
            del self.came[peer]
            self.left[peer] = now
        self.left = {peer: at for peer, at in self.left.items() if peer not in there and now - at < RECENT}
        self.names |= {record.peer_id: record.name or record.peer_id[-8:] for record in records}
        self.gaps = {gap: self.gaps.get(gap, now) for gap in missing(records, blocks)}


def picture(info: ModelInfo, records: Sequence[ServerRecord], seen: Seen, now: float) -> RenderableType:
    """What is shown."""
    online = [record for record in records if record.state is ServerState.ONLINE]
    head = Text.assemble((info.name, "bold"), f"  {info.blocks} blocks, {len(online)} servers online")
    return Group(head, bar(served_by(records, info.blocks)), *troubles(info, seen, now), table(records, seen, now))


def bar(counts: Sequence[int]) -> Text:
    """A cell for each block, by how many serve it."""
    text = Text()
    for count in counts:
        text.append("░" if count == 0 else "█", SHADES[min(count, len(SHADES) - 1)])
    return text


def troubles(info: ModelInfo, seen: Seen, now: float) -> list[Text]:
    """Blocks without a server, in words; who left a moment ago."""
    gone = [Text(f"{seen.names[peer]} has left", "dim") for peer in seen.left]
    return [
        Text(f"blocks {gap} of {info.name} have no server since {now - since:.0f} s", "bold red")
        for gap, since in seen.gaps.items()
    ] + gone


def table(records: Sequence[ServerRecord], seen: Seen, now: float) -> Table:
    """One row a server, in the order of their blocks."""
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("server", "blocks", "state", "decode", "prefill", "free cache", "queue"):
        shown.add_column(name, justify="left" if name in ("server", "blocks", "state") else "right", no_wrap=True)
    for record in sorted(records, key=lambda record: (record.span, record.peer_id)):
        new = now - seen.came.get(record.peer_id, float("-inf")) < RECENT
        state = {"online": "green", "draining": "yellow"}.get(record.state.value, "dim")
        shown.add_row(
            Text(seen.names[record.peer_id] + (" new" if new else ""), "bold" if new else ""),
            str(record.span),
            Text(record.state.value, state),
            f"{record.decode_ms:.1f} ms",
            f"{record.prefill_rate:,.0f}/s",
            f"{record.free_tokens:,}",
            str(record.queue),
        )
    return shown


async def watch(info: ModelInfo, lookup: Callable[[], asyncio.Future[list[ServerRecord]]]) -> None:
    """Show the model until cancelled; in a file or a pipe the report, whenever it is another."""
    if sys.stdout.isatty():
        await _watch_live(info, lookup)
    else:
        await _watch_lines(info, lookup)


async def _watch_live(info: ModelInfo, lookup: Callable[[], asyncio.Future[list[ServerRecord]]]) -> None:
    seen, records = Seen(), list[ServerRecord]()
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            words = Text(time.strftime("%H:%M:%S") + "  Ctrl-C leaves", "dim")
            try:
                records = await lookup()
            except NetworkError as error:
                words = Text(f"the directory cannot be read: {error}", "red")
            seen.look(records, info.blocks, time.monotonic())
            live.update(Group(picture(info, records, seen, time.monotonic()), words), refresh=True)
            await asyncio.sleep(EVERY)


async def _watch_lines(info: ModelInfo, lookup: Callable[[], asyncio.Future[list[ServerRecord]]]) -> None:
    shown: Mapping[PeerId, tuple[object, ...]] | None = None
    while True:
        records = await lookup()
        now = {record.peer_id: (record.span, record.state) for record in records}
        if now != shown:
            click.echo(as_text(info, records) + "\n")
            shown = now
        await asyncio.sleep(EVERY)
