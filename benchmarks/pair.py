"""What most benchmarks run on: two servers of one thread each as processes, and the same model in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.models import llama_250m

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm


@contextmanager
def two_servers(*options: str) -> Iterator[tuple[Any, Swarm, Path]]:
    """Plain transformers with one thread; a client of the servers of blocks 0:8 and 8:16; the model's folder.

    `options`: further ones of swarm-serve.
    """
    import torch
    from transformers import LlamaForCausalLM

    from swarm import connect
    from swarm.demo.local_swarm import LocalSwarm

    torch.set_num_threads(1)
    path = llama_250m()
    local = LlamaForCausalLM.from_pretrained(path)
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        processes.start_server("one", "0:8", *options)
        processes.start_server("two", "8:16", *options)
        processes.wait_until_online("one", "two")
        with connect([processes.peer]) as swarm:
            yield local, swarm, path
