"""The same GGUF file through swarm and through llama.cpp's RPC servers: near and far, one session and eight."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from benchmarks.decode import aggregate_rate, decode_rate
from benchmarks.models import FOLDER
from benchmarks.results import Cell, Result, output_options, ratios, report
from benchmarks.wide import wide_swarm
from swarm.caches import cache_dir

SPANS = ("0:15", "15:30")
SESSIONS = 8
DRIVER = Path(__file__).parent / "llama_rates.cpp"
SOURCE = "llama-cpp-python==0.3.36"
"""Its sdist has the source of llama.cpp."""
FLAGS = (
    "-DGGML_RPC=ON", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_BUILD_APP=OFF", "-DGGML_NATIVE=OFF",
    "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS_RELEASE=-O2 -DNDEBUG", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG",
)  # fmt: skip
INSTRUCTIONS = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI", "avx512vbmi": "AVX512_VBMI", "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI",
}  # fmt: skip
"""What llama.cpp calls those of this processor. Without AMX: its kernels end with an illegal instruction on the machine
that this was tried on."""


@click.command()
@click.option("--llama", type=click.Path(path_type=Path), help="Folder of llama.cpp's programs; else they are built.")
@click.option("--model", help="What swarm serves; by default the GGUF file itself.")
@click.option("--quantization", default="file", show_default=True)
@click.option("--rtts", default="0,20,100", show_default=True, help="Round trips of every link, in ms.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--tokens", default=48, show_default=True)
@output_options
def main(
    llama: Path | None,
    model: str | None,
    quantization: str,
    rtts: str,
    rounds: int,
    tokens: int,
    as_json: bool,
    save: bool,
) -> None:
    """SmolLM2-135M-Instruct in Q4_1, one thread a process. Needs cmake; builds llama.cpp for some minutes at first."""
    import torch

    torch.set_num_threads(1)
    programs, file = llama or build(), gguf()
    rows: list[dict[str, Cell]] = []
    for rtt in map(float, rtts.split(",")):
        theirs = llama_rates(programs, file, rtt, rounds, tokens)
        ours = swarm_rates(model or str(file), quantization, rtt, rounds, tokens)
        for name, their, our in zip(("one session", f"{SESSIONS} sessions"), theirs, ours, strict=True):
            row: dict[str, Cell] = {
                "round trip, ms": rtt,
                "run": name,
                "llama.cpp, tokens/s": their,
                "swarm, tokens/s": our,
            }
            rows.append(row | {"× llama.cpp": ratios(our, their)})
    goal = "0.6 of llama.cpp with one session at 0 ms; ahead from 20 ms on, and with eight sessions"
    notes = [f"{rounds} rounds of {tokens} tokens, medians; rows of swarm: {quantization}"]
    report(Result("peers", "One GGUF file, two servers: swarm and llama.cpp's RPC", rows, goal, notes), as_json, save)


def gguf() -> Path:
    """The real file, downloaded once through pip."""
    import zipfile

    from swarm.demo.smollm2 import MEMBERS, download

    member = next(name for name in MEMBERS if name.endswith(".gguf"))
    file = FOLDER / Path(member).name
    if not file.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(download(FOLDER, True)) as archive:
            file.write_bytes(archive.read(member))
    return file


def build() -> Path:
    """llama.cpp's RPC server and `llama_rates.cpp`, built once out of the package index; the folder that they are in.

    One job, so that a machine that does something else is not disturbed. Raises CalledProcessError.
    """
    folder = cache_dir() / "llama.cpp"
    programs = folder / "build" / "bin"
    if not (programs / "llama-rates").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        subprocess.run([*download, "--dest", str(folder), SOURCE], check=True)
        archive = next(folder.glob("*.tar.gz"))
        subprocess.run(["tar", "-xzf", str(archive), "--strip-components=1", "-C", str(folder)], check=True)
        source, built = folder / "vendor" / "llama.cpp", folder / "build"
        flags = [*FLAGS, *(f"-DGGML_{name}={'ON' if has else 'OFF'}" for name, has in instructions().items())]
        subprocess.run(["cmake", "-S", str(source), "-B", str(built), *flags], check=True)
        subprocess.run(["cmake", "--build", str(built), "-j", "1", "--target", "llama", "ggml-rpc-server"], check=True)
        driver = ["c++", "-O2", "-std=c++17", f"-I{source}/include", f"-I{source}/ggml/include", f"-L{programs}"]
        driver += [str(DRIVER), "-o", str(programs / "llama-rates"), "-lllama", "-lggml", "-lggml-base"]
        subprocess.run([*driver, f"-Wl,-rpath-link,{programs}"], check=True)
    return programs


def instructions() -> dict[str, bool]:
    """Which of `INSTRUCTIONS` this processor has; none of them where /proc does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {name: flag in flags for flag, name in INSTRUCTIONS.items()}


def llama_rates(programs: Path, file: Path, rtt: float, rounds: int, tokens: int) -> tuple[list[float], list[float]]:
    """Tokens a second of one sequence and of several at once, by round."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(programs)}
    with ExitStack() as stack:
        servers = []
        for _ in SPANS:
            port = free_port()
            command = [str(programs / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_for(port)
            servers.append(f"127.0.0.1:{stack.enter_context(line_to(port, rtt)) if rtt else port}")
        command = [str(programs / "llama-rates"), str(file), ",".join(servers), str(tokens), f"1,{SESSIONS}"]
        found: list[list[float]] = [[], []]
        for _ in range(rounds):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            for rates, line in zip(found, done.stdout.split(), strict=True):
                rates.append(float(line))
    return found[0], found[1]


def swarm_rates(model: str, quantization: str, rtt: float, rounds: int, tokens: int) -> tuple[list[float], list[float]]:
    """The same through two servers of swarm."""
    from swarm import DistributedLlama

    with wide_swarm(Path(model), SPANS, rtt, 0.0, "--quantization", quantization) as swarm:
        client = DistributedLlama.from_pretrained(model, swarm=swarm, quantization=quantization, progress=False)
        decode_rate(client, 4)
        one = [decode_rate(client, tokens) for _ in range(rounds)]
        many = [aggregate_rate(client, tokens, SESSIONS) for _ in range(rounds)]
    return one, many


# ---- long lines for TCP ----------------------------------------------------------------------------------------


@contextmanager
def line_to(port: int, rtt: float) -> Iterator[int]:
    """A port whose bytes reach another half a round trip later, in both directions."""
    loop, own = asyncio.new_event_loop(), free_port()

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 20):
            loop.call_later(rtt / 2000, target.write, data)
        loop.call_later(rtt / 2000, target.close)

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        for end in (writer, back):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(carry(reader, back), carry(there, writer))

    loop.run_until_complete(asyncio.start_server(joined, "127.0.0.1", own))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    try:
        yield own
    finally:
        loop.call_soon_threadsafe(loop.stop)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int, attempts: Sequence[float] = (0.1,) * 100) -> None:
    """Until somebody listens. Raises ConnectionError."""
    import time

    for pause in attempts:
        with socket.socket() as found:
            if found.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(pause)
    raise ConnectionError(f"nobody listens on port {port}")


if __name__ == "__main__":
    main()
