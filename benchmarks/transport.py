"""Round trips between two processes: through p2pd at both ends, over plain TCP, and over TCP with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import multiprocessing
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.results import Result, output_options, ratios, report

SIZES = {"8 KB": 8 * 1024, "32 KB": 32 * 1024, "1 MB": 1024 * 1024}
PROTOCOL = "/swarm/benchmark/1.0.0"
LIMIT = 2 * 1024 * 1024
BUFFER = 256 * 1024

RoundTrip = Callable[[bytes], Awaitable[None]]


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--trips", default=100, show_default=True, help="Round trips a round; a tenth of it for 1 MB.")
@output_options
def main(rounds: int, trips: int, as_json: bool, save: bool) -> None:
    """An open stream echoes a frame: what a hop adds to a token, and the processor's time that it takes."""
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder), rounds, trips))
    report(result(rows, rounds), as_json, save)


async def measure(folder: Path, rounds: int, trips: int) -> list[dict[str, Any]]:
    """All three, interleaved."""
    certificate = self_signed(folder)
    ways = {"p2pd": daemon_trip, "TCP": tcp_trip, "TCP with TLS": tls_trip}
    seconds: dict[tuple[str, str], list[float]] = {(size, way): [] for size in SIZES for way in ways}
    burnt: dict[tuple[str, str], list[float]] = {key: [] for key in seconds}
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    echo = context.Process(target=serve_echo, args=(there, str(certificate)), daemon=True)
    echo.start()
    try:
        addresses = await asyncio.to_thread(here.recv)
        async with contextlib.AsyncExitStack() as stack:
            opened = {way: await begin(addresses, certificate, stack) for way, begin in ways.items()}
            for _, (size, nbytes) in itertools.product(range(rounds), SIZES.items()):
                count = trips // 10 if nbytes > BUFFER else trips
                for way, trip in opened.items():
                    await timed(trip, nbytes, 3)
                    spent = cpu_seconds()
                    seconds[size, way].append(statistics.median(await timed(trip, nbytes, count)))
                    burnt[size, way].append((cpu_seconds() - spent) / count)
    finally:
        here.send("end")
        await asyncio.to_thread(echo.join, 10)
    return [
        {
            "frame": size,
            "over": way,
            "ms": [1000 * each for each in seconds[size, way]],
            "× TCP": ratios(seconds[size, way], seconds[size, "TCP"]),
            "processor ms": [1000 * each for each in burnt[size, way]],
        }
        for size, way in seconds
    ]


async def timed(trip: RoundTrip, nbytes: int, count: int) -> list[float]:
    """Seconds of each of `count` round trips."""
    frame, times = bytes(nbytes), []
    for _ in range(count):
        begin = time.perf_counter()
        await trip(frame)
        times.append(time.perf_counter() - begin)
    return times


def cpu_seconds() -> float:
    """Processor time so far of this process and of all that it began, and they."""
    import psutil

    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


# ---- the asking side --------------------------------------------------------------------------------------------


async def daemon_trip(addresses: dict[str, Any], certificate: Path, stack: contextlib.AsyncExitStack) -> RoundTrip:
    """A stream of our own host."""
    from swarm.config import NetworkConfig
    from swarm.net.hivemind.host import create_host

    host = await create_host(NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",)))
    stack.push_async_callback(host.close)
    stream = await host.open_stream(addresses["peer_id"], PROTOCOL, addresses["maddrs"])

    async def trip(frame: bytes) -> None:
        await stream.send(frame)
        await stream.receive(LIMIT)

    return trip


async def tcp_trip(addresses: dict[str, Any], certificate: Path, stack: contextlib.AsyncExitStack) -> RoundTrip:
    """Bare asyncio streams with the same framing."""
    return await _trip(addresses["tcp"], None, stack)


async def tls_trip(addresses: dict[str, Any], certificate: Path, stack: contextlib.AsyncExitStack) -> RoundTrip:
    """The same inside TLS."""
    return await _trip(addresses["tls"], ssl.create_default_context(cafile=str(certificate)), stack)


async def _trip(port: int, context: ssl.SSLContext | None, stack: contextlib.AsyncExitStack) -> RoundTrip:
    from swarm.wire.framing import read_frame, write_frame

    name = None if context is None else "localhost"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name, limit=BUFFER)
    stack.callback(writer.close)

    async def trip(frame: bytes) -> None:
        write_frame(writer, frame)
        await writer.drain()
        await read_frame(reader, LIMIT)

    return trip


# ---- the answering side -----------------------------------------------------------------------------------------


def serve_echo(pipe: Any, certificate: str) -> None:
    """The other process: echoes on all three until it is told to end."""
    asyncio.run(_serve_echo(pipe, certificate))


async def _serve_echo(pipe: Any, certificate: str) -> None:
    from swarm.config import NetworkConfig
    from swarm.errors import StreamClosed
    from swarm.net.hivemind.host import create_host
    from swarm.wire.framing import read_frame, write_frame

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                write_frame(writer, await read_frame(reader, LIMIT))
                await writer.drain()
        except Exception:
            writer.close()

    async def answer_stream(stream: Any) -> None:
        with contextlib.suppress(StreamClosed):
            while True:
                await stream.send(await stream.receive(LIMIT))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    tcp = await asyncio.start_server(answer, "127.0.0.1", 0, limit=BUFFER)
    tls = await asyncio.start_server(answer, "127.0.0.1", 0, limit=BUFFER, ssl=context)
    host = await create_host(NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",)))
    await host.serve(PROTOCOL, answer_stream)
    ports = {name: server.sockets[0].getsockname()[1] for name, server in (("tcp", tcp), ("tls", tls))}
    pipe.send({"peer_id": host.peer_id, "maddrs": list(host.addresses), **ports})
    await asyncio.to_thread(pipe.recv)
    await host.close()


def self_signed(folder: Path) -> Path:
    """A certificate for localhost and its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1)
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(private + signed.public_bytes(encoding))
    return path


def result(rows: list[dict[str, Any]], rounds: int) -> Result:
    """Each size over each way."""
    return Result(
        name="transport",
        title="A round trip on an open stream between two processes on this machine",
        rows=rows,
        notes=[
            "p2pd: our host at both ends, each with its daemon, Noise or TLS and yamux between them;",
            f"processor ms: of all processes that take part, a round trip; {rounds} rounds, medians",
        ],
        plot=["ms"],
    )
