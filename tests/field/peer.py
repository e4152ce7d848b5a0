"""A peer for tests on machines of the lab: joins, says where it is and echoes; or calls one that does.

`peer.py listen CONFIG` writes a line of JSON, `{"addresses": [...]}`, at first and whenever they change.
`peer.py call CONFIG PEER_ID ADDRESSES WORK...` does what it is told, one line of JSON for each:
`outdated` until its stream could take a shorter way,
`echo:COUNT:BYTES` round trips, `take:BYTES` and `give:BYTES` in one stream, each with seconds since the start.
CONFIG: fields of `NetworkConfig` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any

from swarm import net
from swarm.config import NetworkConfig
from swarm.net.base import Stream
from swarm.net.network import Network

PROTOCOL = "/swarm/field/1"
FRAME = 256 * 1024
BEGAN = time.monotonic()


def say(**what: Any) -> None:
    print(json.dumps({"at": round(time.monotonic() - BEGAN, 3), **what}), flush=True)


async def answer(stream: Stream) -> None:
    """Echo; a frame that begins with `?` asks for so many bytes, one that begins with a zero is not answered."""
    while True:
        frame = await stream.receive(1 << 20)
        if frame[:1] == b"?":
            left = int(frame[1:])
            while left > 0:
                await stream.send(bytes(min(left, FRAME)))
                left -= FRAME
        elif frame[:1] != b"\0":
            await stream.send(frame)


async def listen(config: NetworkConfig) -> None:
    async with await net.open(config) as network:
        await network.host.serve(PROTOCOL, answer)
        said: list[str] = []
        while True:
            if list(network.host.addresses) != said:
                said = list(network.host.addresses)
                say(peer=network.host.peer_id, addresses=said)
            await asyncio.sleep(0.1)


async def call(config: NetworkConfig, peer_id: str, addresses: list[str], works: list[str]) -> None:
    async with await net.open(config) as network:
        say(did="joined")
        for each in works:
            work, *numbers = each.split(":")
            began = time.monotonic()
            try:
                result = await do(network, peer_id, addresses, work, [int(float(number)) for number in numbers])
            except Exception as error:
                result = {"failed": f"{type(error).__name__}: {error}"[:300]}
            say(did=each, seconds=round(time.monotonic() - began, 3), **result)


async def do(network: Network, peer_id: str, addresses: list[str], work: str, numbers: list[int]) -> dict[str, Any]:
    if work == "sleep":
        await asyncio.sleep(numbers[0])
        return {}
    stream = await network.host.open_stream(peer_id, PROTOCOL, addresses)
    try:
        if work == "outdated":
            async with asyncio.timeout(30):
                await stream.outdated.wait()
            return {}
        if work == "echo":
            trips = []
            for _ in range(numbers[0]):
                began = time.monotonic()
                await stream.send(b"e" * numbers[1])
                await stream.receive(1 << 20)
                trips.append(time.monotonic() - began)
            return {"first_ms": round(1000 * trips[0], 1), "median_ms": round(1000 * statistics.median(trips), 1)}
        if work == "take":
            await stream.send(b"?%d" % numbers[0])
            came = 0
            while came < numbers[0]:
                came += len(await stream.receive(1 << 20))
        else:
            for _ in range(numbers[0] // FRAME):
                await stream.send(bytes(FRAME))
            await stream.send(b"!")
            await stream.receive(1 << 20)
        return {}
    finally:
        stream.close()


if __name__ == "__main__":
    mode, fields, *rest = sys.argv[1:]
    joining = NetworkConfig(**json.loads(fields))
    asyncio.run(listen(joining) if mode == "listen" else call(joining, rest[0], json.loads(rest[1]), rest[2:]))
