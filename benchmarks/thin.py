"""A client with the ends of a 405B model, held to little memory: loading and a token, by where the head is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click

from benchmarks.models import random_llama
from benchmarks.results import Result, output_options, report

ENDS = {"vocab_size": 128256, "hidden_size": 16384}
"""Of Llama 3.1 405B."""
BLOCKS = {
    "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
    "head_dim": 64,
}  # fmt: skip
"""Small, since others compute them."""


@click.command()
@click.option("--limit", default=1.0, show_default=True, help="GB that the client may have (RLIMIT_DATA).")
@click.option("--heads", default="disk,int4", show_default=True)
@click.option("--tokens", default=8, show_default=True)
@click.option("--whole/--no-whole", default=True, help="Compare with plain transformers, which takes 9 GB.")
@output_options
def main(limit: float, heads: str, tokens: int, whole: bool, as_json: bool, save: bool) -> None:
    """Each client is a process of its own, beside a server of the blocks; without a limit where it would not fit."""
    from swarm.demo.local_swarm import LocalSwarm

    folder, rows = random_llama("llama-405b-ends", ENDS | BLOCKS), []
    with LocalSwarm(folder, dtype="bfloat16", patience=600) as swarm:
        swarm.start_bootstrap()
        swarm.start_server("blocks", f"0:{BLOCKS['num_hidden_layers']}")
        swarm.wait_until_online("blocks")
        for head in heads.split(","):
            rows += [_run(str(folder), swarm.peer, head, str(limit), str(tokens))]
            if "refused" in rows[-1]:
                rows += [_run(str(folder), swarm.peer, head, "0", str(tokens))]
    notes = [f"embeddings and head {ENDS['vocab_size']} x {ENDS['hidden_size']} in bfloat16, 4.2 GB each; one thread"]
    if whole:
        right = _run(str(folder), "", "memory", "0", str(tokens))["text"]
        notes.append(f"plain transformers: {right}")
    report(
        Result("thin", "A thin client of a 405B model", rows, f"peak at most {limit} GB with the head on disk", notes),
        as_json,
        save,
    )


def _run(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.thin", "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(folder: str, peer: str, head: str, limit: str, tokens: str) -> None:
    """Load and generate, in a swarm or, without a peer, alone; prints a line of JSON."""
    import resource
    import time

    if float(limit):
        resource.setrlimit(resource.RLIMIT_DATA, (int(float(limit) * 1e9), resource.RLIM_INFINITY))
    import torch
    from transformers import AutoModelForCausalLM

    from swarm.client.model import DistributedModelForCausalLM
    from swarm.errors import NotEnoughMemory

    torch.set_num_threads(1)
    said, began = {"head": head, "limit, GB": float(limit) or "none"}, time.perf_counter()
    try:
        if peer:
            model = DistributedModelForCausalLM.from_pretrained(folder, initial_peers=peer, head=head, progress=False)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    except NotEnoughMemory as error:
        print(json.dumps(said | {"refused": str(error)}))
        return
    loaded, times, text = time.perf_counter(), [], torch.tensor([[1, 5000, 70000, 128000]])
    for _ in range(int(tokens)):
        start = time.perf_counter()
        text = model.generate(text, do_sample=False, max_new_tokens=1, eos_token_id=None, pad_token_id=0)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    said |= {"load, s": loaded - began, "a token, s": sorted(times)[len(times) // 2], "peak, GB": peak}
    print(json.dumps(said | {"text": " ".join(map(str, text[0].tolist()))}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
