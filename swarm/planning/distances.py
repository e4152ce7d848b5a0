"""How far servers are from here: round trips and rates, by asking each of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from swarm.client.link import HopLink
from swarm.config import ClientConfig
from swarm.errors import SwarmError
from swarm.net.base import Host
from swarm.tasks import Tasks
from swarm.types import Hop, PeerId, ServerRecord
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

PROBES = 5
"""Of which the fastest counts: opening has a connection to make, and other programs get between."""


@dataclass(frozen=True, slots=True)
class Distance:
    """`rtt_ms`: there and back; `bytes_per_second`: the slower direction, 0 where it was not measured."""

    rtt_ms: float
    bytes_per_second: float = 0.0


async def distances(host: Host, records: Sequence[ServerRecord], config: ClientConfig) -> Mapping[PeerId, Distance]:
    """Of each server that answers; a session is opened there, measured and closed."""
    tasks = Tasks(log)
    try:
        one_each = {record.peer_id: record for record in records}
        config = replace(config, codec="auto")  # with it rates are measured
        found = await asyncio.gather(*(_distance(host, record, config, tasks) for record in one_each.values()))
    finally:
        await tasks.close()
    return {peer_id: one for peer_id, one in zip(one_each, found, strict=True) if one is not None}


async def _distance(host: Host, record: ServerRecord, config: ClientConfig, tasks: Tasks) -> Distance | None:
    link = HopLink(host, Hop(record, record.span), config, lambda link, event: None, tasks)
    try:
        await link.open(pb.Open(contract=messages.contract_message(record.contract)))
        async with asyncio.timeout(config.silence):
            rtt_ms = min([await _round_trip(link) for _ in range(PROBES)])
    except (SwarmError, TimeoutError) as error:
        log.info("%s is not measured: %s", record.peer_id, error)
        return None
    finally:
        await link.close()
    rates = [rate for rate in (link.rates.up, link.rates.down) if rate]
    return Distance(rtt_ms, min(rates, default=0.0))


async def _round_trip(link: HopLink) -> float:
    await link.probe()
    return link.rtt_ms or 0.0
