"""The quickstart's code against a swarm of two servers, with nothing but the installed package.

python quickstart.py FOLDER_OF_THE_COMMANDS MODEL
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = 120.0


def main(commands: Path, name: str) -> None:
    """A bootstrap peer, two servers, and the code that the README shows."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = [start(commands, place, "swarm-bootstrap", "--address-file", str(place / "addresses"), "--no-edge")]
        try:
            wait(lambda: (place / "addresses").exists())
            peer = (place / "addresses").read_text().splitlines()[0]
            for blocks in ("0:4", "4:8"):
                server = start(commands, place, "swarm-serve", name, "--blocks", blocks, "--initial-peers", peer)
                started.append(server)
            status = [commands / "swarm-status", name, "--initial-peers", peer, "--wait", "--timeout", str(PATIENCE)]
            subprocess.run(status, check=True)
            print(use(name, peer))
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


def start(commands: Path, place: Path, command: str, *options: str) -> subprocess.Popen[bytes]:
    key = place / f"{command}-{'-'.join(options[:3]).replace('/', '_')}.key"
    listen = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--identity-path", str(key)]
    return subprocess.Popen([commands / command, *options, *listen], stdout=subprocess.DEVNULL)


def wait(ready: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():  # type: ignore[operator]
        if time.monotonic() > deadline:
            sys.exit("a peer did not come up")
        time.sleep(0.1)


def use(name: str, peer: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from swarm import DistributedLlama

    tokenizer = AutoTokenizer.from_pretrained(name)
    inputs = tokenizer("A function definition", return_tensors="pt")
    model = DistributedLlama.from_pretrained(name, initial_peers=[peer])
    ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0]
    local = AutoModelForCausalLM.from_pretrained(name)
    if ids.tolist() != local.generate(**inputs, max_new_tokens=24, do_sample=False)[0].tolist():
        sys.exit("the swarm says something else than the model on this machine")
    return str(tokenizer.decode(ids))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
