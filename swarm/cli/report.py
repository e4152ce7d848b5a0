"""What a swarm serves, as text and as JSON. Pure: records in, a report out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from swarm.net.addresses import FORWARDED, forwarders_of, way_to
from swarm.types import ModelInfo, ServerRecord, ServerState, Span


def served_by(records: Iterable[ServerRecord], blocks: int) -> list[int]:
    """For each block how many servers take sessions on it now."""
    counts = [0] * blocks
    for record in records:
        if record.state is ServerState.ONLINE:
            for block in range(record.span.first, min(record.span.last, blocks)):
                counts[block] += 1
    return counts


def missing(records: Iterable[ServerRecord], blocks: int) -> list[Span]:
    """The runs of blocks that no server takes sessions on."""
    return [span for span, count in _runs(served_by(records, blocks)) if not count]


def lacking(records: Sequence[ServerRecord], blocks: int) -> str | None:
    """Why no session can run through all blocks now, and who may mend it; None: one can.

    A session needs every block from servers that compute alike: in one dtype and quantization.
    """
    holes = missing(records, blocks)
    if holes:
        return f"nobody serves {_listed(holes)}{_coming(records, holes)}"
    ways = {record.contract.numbers for record in records if record.state is ServerState.ONLINE}
    lacks = {way: missing([record for record in records if record.contract.numbers == way], blocks) for way in ways}
    if not all(lacks.values()):
        return None
    told = "; ".join(f"nobody serves {_listed(gaps)} in {way}" for way, gaps in sorted(lacks.items()))
    return f"every block is served, but not all of them alike: {told}"


def _coming(records: Sequence[ServerRecord], holes: Sequence[Span]) -> str:
    """Who has announced some of the blocks that are missing."""
    words = {ServerState.JOINING: "is still loading", ServerState.DRAINING: "is leaving"}
    concerned = [r for r in records if any(r.span.first < hole.last and hole.first < r.span.last for hole in holes)]
    told = [f"{r.name or r.peer_id[-8:]} {r.span} {words[r.state]}" for r in concerned if r.state in words]
    return f" ({', '.join(told)})" if told else ""


def _listed(spans: Iterable[Span]) -> str:
    return ", ".join(map(str, spans))


def _runs(counts: Sequence[int]) -> Iterator[tuple[Span, int]]:
    first = 0
    for count, run in groupby(counts):
        last = first + len(list(run))
        yield Span(first, last), count
        first = last


def as_text(model: ModelInfo, records: Sequence[ServerRecord]) -> str:
    """Coverage of each run of blocks, then a line for each server."""
    whole = lacking(records, model.blocks) or "every block is served"
    lines = [f"{model.name}  {model.blocks} blocks  key {model.key[:12]}  {whole}", ""]
    for span, count in _runs(served_by(records, model.blocks)):
        servers = f"{count} server{'s' * (count != 1)}" if count else "missing"
        lines.append(f"  blocks {span!s:>9}  {servers}")
    heads = [record for record in records if record.ends is not None and record.state is ServerState.ONLINE]
    if heads:
        lines.append(f"  head and embeddings  {len(heads)} server{'s' * (len(heads) != 1)}")
    return "\n".join([*lines, "", *_table(records)] if records else lines)


HEADER = ("server", "blocks", "state", "reached", "decode", "prefill", "free cache", "queue", "dtype", "name")


def _table(records: Sequence[ServerRecord]) -> list[str]:
    rows = [HEADER, *(_row(record) for record in sorted(records, key=lambda r: (r.span, r.peer_id)))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _row(record: ServerRecord) -> tuple[str, ...]:
    speed = (f"{record.decode_ms:.1f} ms/block", f"{record.prefill_rate:,.0f} pos/s/block")
    joining = record.state is ServerState.JOINING
    return (
        record.peer_id[-8:],
        str(record.span),
        record.state.value,
        reached(record.addresses),
        *(("-", "-", "-") if joining else (*speed, f"{record.free_tokens:,} tokens")),
        str(record.queue),
        record.contract.numbers,
        record.name,
    )


def reached(addresses: Sequence[str]) -> str:
    """How others reach a peer that announces these addresses, in words."""
    way, through = way_to(addresses), [f"…{peer_id[-6:]}" for peer_id in forwarders_of(addresses)]
    return f"{way} by {', '.join(through)}" if way == FORWARDED else way


def as_json(model: ModelInfo, records: Sequence[ServerRecord]) -> dict[str, Any]:
    """The same for programs. Units as in ServerRecord."""
    return {
        "model": asdict(model),
        "whole": not missing(records, model.blocks),
        "lacking": lacking(records, model.blocks),
        "missing": [[span.first, span.last] for span in missing(records, model.blocks)],
        "servers_per_block": served_by(records, model.blocks),
        "servers": [_server(record) for record in sorted(records, key=lambda r: (r.span, r.peer_id))],
    }


def _server(record: ServerRecord) -> dict[str, Any]:
    return {
        "peer_id": record.peer_id,
        "name": record.name,
        "first": record.span.first,
        "last": record.span.last,
        "state": record.state.value,
        "addresses": list(record.addresses),
        "dtype": record.contract.dtype,
        "quantization": record.contract.quantization,
        "fingerprints": [fingerprint.hex() for fingerprint in record.fingerprints],
        "free_tokens": record.free_tokens,
        "decode_ms": record.decode_ms,
        "prefill_rate": record.prefill_rate,
        "queue": record.queue,
        "ends": None if record.ends is None else {"head_ms": record.ends.head_ms, "vocabulary": record.ends.vocabulary},
        "reached": way_to(record.addresses),
        "forwarders": forwarders_of(record.addresses),
        "version": record.version,
        "expires": record.expires,
    }
