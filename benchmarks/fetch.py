"""One block of a model at its real shape, out of shards on a hub: bytes that are fetched, memory, later starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import click

from benchmarks.block import BLOCK, SHAPES, resident
from benchmarks.models import FOLDER
from benchmarks.results import Result, output_options, report


@click.command()
@click.option("--shape", type=click.Choice([*SHAPES]), default="llama-405b", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--schemes", default="int4,int8", show_default=True)
@output_options
def main(shape: str, threads: int, schemes: str, as_json: bool, save: bool) -> None:
    """Each start is a process of its own; the hub is one more, on the same cores."""
    folder, rows = written(shape), []
    needed = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries(shape, [BLOCK]).values())
    kept = FOLDER / "fetched"
    shutil.rmtree(kept, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.fetch", "--hub", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdin is not None and hub.stdout is not None
        url, before = hub.stdout.readline().strip(), 0
        for scheme in schemes.split(","):
            for start in ("first", "with its tensors here", "with its quantized block here"):
                if start == "with its tensors here":
                    shutil.rmtree(kept / "blocks")
                command = [sys.executable, "-m", "benchmarks.fetch", "--child", url, scheme, str(threads), str(kept)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print("", file=hub.stdin, flush=True)
                sent = int(hub.stdout.readline())
                rows.append({"scheme": scheme, "start": start, **json.loads(done.stdout.splitlines()[-1])})
                rows[-1]["fetched, × its tensors"] = (sent - before) / needed
                before = sent
            shutil.rmtree(kept)
        hub.terminate()
    goal = "1.02 of the tensors fetched; peak at most the result and 0.8 GB; the third start in a third of the first"
    notes = [f"block {BLOCK} of {shape}, {needed / 1e9:.2f} GB in bfloat16; {threads} threads"]
    report(Result("fetch", "A block from the hub", rows, goal, notes), as_json, save)


def entries(shape: str, blocks: list[int], part: slice = slice(None)) -> dict[str, Any]:
    """Some tensors of some blocks, as a header of safetensors tells them."""
    sizes = SHAPES[shape]
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    shapes = [
        ("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (keys, hidden)),
        ("self_attn.v_proj", (keys, hidden)), ("self_attn.o_proj", (hidden, hidden)),
        ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)), ("mlp.down_proj", (hidden, inner)),
        ("input_layernorm", (hidden,)), ("post_attention_layernorm", (hidden,)),
    ]  # fmt: skip
    found, end = {}, 0
    for block in blocks:
        for name, size in shapes[part]:
            begin, end = end, end + 2 * prod(size)
            entry = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
            found[f"model.layers.{block}.{name}.weight"] = entry
    return found


def written(shape: str) -> Path:
    """A folder of shards with the block in random numbers; the block beside it is a hole in the files."""
    import torch
    from transformers import LlamaConfig

    folder = FOLDER / f"{shape}-shards"
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    LlamaConfig(**SHAPES[shape], dtype="bfloat16", architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    files, generator = {}, torch.Generator().manual_seed(0)
    for number, part in enumerate((slice(0, 5), slice(5, None))):
        told, file = entries(shape, [BLOCK - 1, BLOCK], part), f"model-{number + 1:05}-of-00191.safetensors"
        header = json.dumps(told).encode()
        begin = 8 + len(header)
        with (folder / file).open("wb") as shard:
            shard.write(len(header).to_bytes(8, "little") + header)
            shard.truncate(begin + max(entry["data_offsets"][1] for entry in told.values()))
            for name, entry in told.items():
                files[name] = file
                if f".{BLOCK}." in name:
                    numbers = torch.empty(entry["shape"], dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
                    shard.seek(begin + entry["data_offsets"][0])
                    shard.write((numbers if numbers.dim() == 2 else numbers.fill_(1)).view(torch.uint8).numpy().data)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def serve(folder: str) -> None:
    """Be a hub; tells its address, and for each line that comes how many bytes of tensors have left."""
    from tests.hub import Hub

    with Hub(Path(folder)) as hub:
        print(hub.url, flush=True)
        for _ in sys.stdin:
            print(hub.tensors_sent(), flush=True)


def child(url: str, scheme: str, threads: str, kept: str) -> None:
    """Load; prints a line of JSON."""
    import resource
    import time

    import torch
    from huggingface_hub import constants

    from swarm.models.linear.compiled import kernel
    from swarm.models.loading.checkpoint import open_checkpoint
    from swarm.models.span.load import load_span
    from swarm.types import Span

    torch.set_num_threads(int(threads))
    kernel()
    import transformers.models.llama.modeling_llama  # noqa: F401 - what it takes is not the block's

    constants.ENDPOINT, constants.HF_HUB_CACHE = url, f"{kept}/hub"
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    os.environ["XDG_CACHE_HOME"] = f"{kept}/ours"
    before, began = resident(), time.perf_counter()
    how: dict[str, Any] = {"quantization": scheme, "progress": False, "keep": Path(kept) / "blocks"}
    model = load_span(open_checkpoint("org/model"), Span(BLOCK, BLOCK + 1), **how)
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    held = resident() - before
    mapped = Path("/proc/self/maps").read_text().count(kept)
    found = {"load, s": took, "held, GB": held / 1e9, "peak − held, GB": (peak - held) / 1e9, "files mapped": mapped}
    print(json.dumps(found | {"fingerprint": model.fingerprints[0].hex()[:8]}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    elif sys.argv[1:2] == ["--hub"]:
        serve(sys.argv[2])
    else:
        main()
