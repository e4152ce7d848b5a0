"""The quickstart's code against a swarm of two servers, with nothing but the installed package.

python quickstart.py FOLDER_OF_THE_COMMANDS MODEL [--gateway]

With --gateway a gateway is asked for the same text, and browsers find listeners; this takes the package's extras.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

PATIENCE = 120.0
PROMPT = "A function definition"
TOKENS = 24


def main(commands: Path, name: str, *, gateway: bool) -> None:
    """A bootstrap peer, two servers and perhaps a gateway, and the code that the documentation shows."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        edges = ("--edge-address-file", str(place / "edges")) if gateway else ()
        started = [start(commands, place, "bootstrap", "--address-file", str(place / "addresses"), *edges)]
        try:
            wait((place / ("edges" if gateway else "addresses")).exists)
            peer = (place / "addresses").read_text().splitlines()[0]
            join = ("--initial-peers", peer, "--quiet")
            started += [start(commands, place, "serve", name, "--blocks", blocks, *join) for blocks in ("0:4", "4:8")]
            status = [commands / "swarm-status", name, "--initial-peers", peer, "--wait", "--timeout", str(PATIENCE)]
            subprocess.run(status, check=True)
            right = generate(name, peer)
            say(commands, name, peer, right)
            if gateway:
                started.append(start(commands, place, "gateway", name, "--http", "127.0.0.1:0", *join))
                ask(name, peer, place / f"{len(started)}.log", right)
            print(right)
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


def start(commands: Path, place: Path, command: str, *options: str) -> subprocess.Popen[bytes]:
    """A command with a key and a log of its own, numbered in the order of starting."""
    number = len(list(place.glob("*.log"))) + 1
    own = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--identity-path", str(place / f"{number}.key")]
    with (place / f"{number}.log").open("wb") as log:
        return subprocess.Popen([commands / f"swarm-{command}", *options, *own], stdout=log)


def wait(ready: Callable[[], object]) -> None:
    """Until something is the case."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            sys.exit("a peer did not come up")
        time.sleep(0.1)


def generate(name: str, peer: str) -> str:
    """The model in Python; what comes after the prompt. It must be what the model says on this machine."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from swarm import DistributedLlama

    tokenizer = AutoTokenizer.from_pretrained(name)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    model = DistributedLlama.from_pretrained(name, initial_peers=[peer])
    ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0]
    local = AutoModelForCausalLM.from_pretrained(name)
    if ids.tolist() != local.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0].tolist():
        sys.exit("the swarm says something else than the model on this machine")
    return str(tokenizer.decode(ids[inputs["input_ids"].shape[1] :]))


def say(commands: Path, name: str, peer: str, right: str) -> None:
    """The same text from swarm-chat."""
    how = ("--initial-peers", peer, "--temperature", "0", "--max-new-tokens", str(TOKENS), "--quiet")
    answer = subprocess.run([commands / "swarm-chat", name, *how], input=PROMPT, stdout=subprocess.PIPE, text=True)
    if answer.returncode != 0 or answer.stdout.strip() != right.strip():
        sys.exit(f"swarm-chat says {answer.stdout!r}, and not {right!r}")


def ask(name: str, peer: str, log: Path, right: str) -> None:
    """The same text from the gateway, and its page."""
    import swarm

    url = re.compile(r"^http +(http://.*)/v1$", re.MULTILINE)
    wait(lambda: url.search(log.read_text()))
    with swarm.connect([peer]) as joined:
        text = "".join(joined.ask(Path(name).name, PROMPT, max_tokens=TOKENS, temperature=0.0))
    if text != right:
        sys.exit(f"the gateway says {text!r}, and not {right!r}")
    found = url.search(log.read_text())
    with urllib.request.urlopen(found[1] if found else "") as page:
        if b"<title>" not in page.read():
            sys.exit("the gateway shows no page")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], gateway="--gateway" in sys.argv)
