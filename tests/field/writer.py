"""A client for tests on a machine of the lab: `writer.py MODEL PEER[,PEER] PROMPT TOKENS [PAUSE]`.

Generates TOKENS after a prompt of PROMPT positions, says when each came since it began to connect, and which they were.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import torch

from swarm import DistributedLlama
from swarm.client.swarm import connect


class Times:
    def __init__(self, pause: float) -> None:
        self.pause, self.count, self.began = pause, 0, time.monotonic()

    def put(self, value: torch.Tensor) -> None:
        if self.count:
            print(json.dumps({"token": self.count, "at": round(time.monotonic() - self.began, 3)}), flush=True)
            time.sleep(self.pause)
        self.count += 1

    def end(self) -> None:
        pass


def main(model: str, peers: str, prompt: str, tokens: str, pause: str = "0") -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(5, 200, (1, int(prompt)))
    times: Any = Times(float(pause))
    joined = connect(peers.split(","))
    remote = DistributedLlama.from_pretrained(model, swarm=joined, dtype="float32")
    print(json.dumps({"connected": round(time.monotonic() - times.began, 3)}), flush=True)
    out = remote.generate(ids, max_new_tokens=int(tokens), min_new_tokens=int(tokens), do_sample=False, streamer=times)
    print(json.dumps({"text": out[0, int(prompt) :].tolist()}), flush=True)
    joined.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
