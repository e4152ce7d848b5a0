"""A swarm on one machine, from nothing: it generates, loses a server in the middle of a sentence, and finishes it."""

from __future__ import annotations

import os
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from swarm.demo.local_swarm import LocalSwarm

if TYPE_CHECKING:
    from swarm.client.session import Notice
    from swarm.types import Route

MODEL = Path(__file__).parent.parent / "models" / "tiny-llama"
SPANS = {"alice": "0:3", "bob": "3:6", "carol": "6:8", "dave": "2:5", "erin": "4:8", "frank": "0:2"}
PROMPT = "A function definition"


@click.command()
@click.option("--prompt", default=PROMPT, show_default=True, help="What the text begins with.")
@click.option("--tokens", default=96, show_default=True, help="How many tokens to generate.")
@click.option("--keep", is_flag=True, help="Leave the swarm up afterwards, for swarm-chat; Ctrl-C ends it.")
def main(prompt: str, tokens: int, keep: bool) -> None:
    """Start a bootstrap peer and six servers, generate, kill a server midway, compare with a local run."""
    with LocalSwarm(MODEL) as swarm:
        peer = start(swarm)
        story = Story(swarm, peer, prompt, tokens)
        story.tell()
        if keep:
            stay(peer)
    sys.exit(0 if story.equal else 1)


def start(swarm: LocalSwarm) -> str:
    """Bring up every process and wait until all serve."""
    from tqdm import tqdm

    peer = swarm.start_bootstrap()
    print(f"bootstrap peer  {peer}")
    for name, blocks in SPANS.items():
        swarm.start_server(name, blocks)
    for name in tqdm(SPANS, desc="servers", leave=False):
        swarm.wait_until_online(name)
    for name, blocks in SPANS.items():
        print(f"server          {name:<6} blocks {blocks}  pid {swarm.processes[name].pid}")
    swarm.wait_until_served()
    return peer


def stay(peer: str) -> None:
    """Keep the swarm until Ctrl-C."""
    print(f"\nthe swarm stays up. In another terminal:\n\n    .venv/bin/swarm-chat {MODEL} --dtype float32 -p {peer}\n")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("ending the swarm")


class Story:
    """The generation through the swarm, and the one to compare it with."""

    def __init__(self, swarm: LocalSwarm, peer: str, prompt: str, tokens: int) -> None:
        import torch
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(1)
        self.swarm = swarm
        self.peer = peer
        self.tokens = tokens
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.inputs = self.tokenizer(prompt, return_tensors="pt")
        self.equal = False
        self.times: list[float] = []
        self.killed_at: int | None = None

    def tell(self) -> None:
        """Run both, print both, compare."""
        import torch
        from transformers import AutoModelForCausalLM

        from swarm import DistributedLlama

        model = DistributedLlama.from_pretrained(MODEL, initial_peers=[self.peer], dtype="float32", on_notice=self.show)
        print()
        self.generate(model, quietly=True)
        swarm_ids = self.generate(model, kill=True)
        failed, self.times = self.times, []
        calm_ids = self.generate(model, quietly=True)
        calm = self.times
        local = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        self.times = []
        local_ids = self.generate(local, quietly=True)
        self.equal = torch.equal(swarm_ids, local_ids) and torch.equal(calm_ids, local_ids)
        self.table(failed, calm, self.times)

    def show(self, notice: Notice) -> None:
        """Reroutes, as they happen."""
        if self.killed_at is not None and notice.kind == "rerouted" and notice.route is not None:
            print(f"\n\033[33m[rerouted: {self.named(notice.route)}]\033[0m", flush=True)

    def named(self, route: Route) -> str:
        """A route with the names of the processes."""
        return " → ".join(f"{self.swarm.name_of(hop.peer_id)} {hop.span}" for hop in route.hops)

    def generate(self, model: Any, *, kill: bool = False, quietly: bool = False) -> Any:
        """Generate, streaming; with `kill`, a serving process gets SIGKILL in the middle."""
        self.times = []
        teller = Teller(self, model, kill=kill, quietly=quietly)
        return model.generate(**self.inputs, max_new_tokens=self.tokens, do_sample=False, streamer=teller)

    def table(self, failed: list[float], calm: list[float], local: list[float]) -> None:
        """What it cost."""
        lost = max(after - before for before, after in pairwise(failed))
        rows = [
            ("one process, no swarm", rate(local), ""),
            ("swarm, undisturbed", rate(calm), ""),
            ("swarm, a server killed", rate(failed), f"{lost:.2f} s until the next token after the kill"),
        ]
        print("\n\n" + "-" * 78)
        for what, speed, note in rows:
            print(f"{what:<26}{speed:>8.1f} tokens/s   {note}")
        verdict = "equal, token for token" if self.equal else "DIFFERENT"
        print(f"{'text of all three':<26}{verdict:>8}")
        print("-" * 78)


class Teller:
    """A streamer: prints text as it comes, notes the times, and kills a server midway if it is told to."""

    def __init__(self, story: Story, model: Any, *, kill: bool, quietly: bool) -> None:
        self.story = story
        self.model = model
        self.kill = kill
        self.quietly = quietly
        self.ids: list[int] = []
        self.printed = 0

    def put(self, value: Any) -> None:
        """Called by transformers with the prompt, then with each token."""
        self.ids += value.flatten().tolist()
        self.story.times.append(time.perf_counter())
        if not self.quietly:
            text = self.story.tokenizer.decode(self.ids)
            print(text[self.printed :], end="", flush=True)
            self.printed = len(text)
        if self.kill and len(self.story.times) == self.story.tokens // 2:
            self.strike()

    def strike(self) -> None:
        """SIGKILL the middle server of the route in use."""
        route = self.model.route
        hop = route.hops[len(route.hops) // 2]
        name = self.story.swarm.name_of(hop.peer_id)
        print(f"\n\033[31m[killing {name}, who serves blocks {hop.span} of the route {self.story.named(route)}]\033[0m")
        self.story.killed_at = len(self.ids)
        self.story.swarm.kill(name)

    def end(self) -> None:
        """Called by transformers at the end."""


def rate(times: list[float]) -> float:
    """Tokens per second, from the first token on."""
    return (len(times) - 2) / (times[-1] - times[1])


if __name__ == "__main__":
    main()
