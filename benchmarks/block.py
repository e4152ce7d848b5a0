"""One block of a model at its real shape, out of shards of random numbers: loading, memory, and a decode step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.models import FOLDER
from benchmarks.results import Result, output_options, report

SHAPES: dict[str, dict[str, Any]] = {
    "llama-405b": {
        "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
    "llama-70b": {
        "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
}  # fmt: skip
BLOCK = 3
STEPS = 8
PAST = 32


@click.command()
@click.option("--shape", type=click.Choice([*SHAPES]), default="llama-405b", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--schemes", default="int4,int8,none", show_default=True, help="In bfloat16 with none.")
@output_options
def main(shape: str, threads: int, schemes: str, as_json: bool, save: bool) -> None:
    """Each scheme in a process of its own; peak: of memory over what the process has before it loads."""
    folder = written(shape)
    rows = []
    for scheme in schemes.split(","):
        command = [sys.executable, "-m", "benchmarks.block", "--child", str(folder), scheme, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"scheme": scheme, **json.loads(done.stdout.splitlines()[-1])})
    goal = "405B: a step in 0.25 s with int4 and 0.3 s with int8; peak at most the result and 0.8 GB; no file mapped"
    notes = [f"block {BLOCK} of {shape}, {threads} threads; a step after {PAST} positions, the median of {STEPS}"]
    report(Result("block", "A block at its real shape", rows, goal, notes), as_json, save)


def written(shape: str) -> Path:
    """A folder whose shards hold one block, in bfloat16; written once."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder = FOLDER / f"{shape}-block"
    if (folder / "model.safetensors.index.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**SHAPES[shape], dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    files, generator = {}, torch.Generator().manual_seed(0)
    for number, (name, size) in enumerate(shapes.items()):
        full, file = f"model.layers.{BLOCK}.{name}.weight", f"model-{number:05}.safetensors"
        tensor = torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        save_file({full: tensor if len(size) == 2 else torch.ones(size, dtype=torch.bfloat16)}, folder / file)
        files[full] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def child(folder: str, scheme: str, threads: str) -> None:
    """Load and run; prints a line of JSON."""
    import resource
    import statistics
    import time

    import torch

    from swarm.jobs import Forward
    from swarm.models.span.load import load_span
    from swarm.types import Segment, Span

    torch.set_num_threads(int(threads))
    torch.ones(64, 64) @ torch.ones(64, 64)
    import transformers.models.llama.modeling_llama  # noqa: F401 - what it takes is not the block's

    before, began, span = resident(), time.perf_counter(), Span(BLOCK, BLOCK + 1)
    dtype = "bfloat16" if scheme == "none" else None
    model = load_span(folder, span, quantization=scheme, dtype=dtype, progress=False)
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    held, mapped = resident() - before, Path("/proc/self/maps").read_text().count(str(folder))

    def run(start: int, count: int) -> float:
        rows = torch.randn(count, model.hidden_size).to(model.dtype)
        began = time.perf_counter()
        model.run(Forward(span, [Segment((b"a", 0), start, count)], rows))
        return time.perf_counter() - began

    prompt = run(0, PAST)
    steps = [run(PAST + number, 1) for number in range(STEPS)]
    found = {"load, s": took, "held, GB": held / 1e9, "peak − held, GB": (peak - held) / 1e9, "files mapped": mapped}
    print(json.dumps(found | {f"prompt of {PAST}, s": prompt, "step, s": statistics.median(steps)}))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
