"""Small checkpoints with random weights, what plain transformers generates from them, and servers of them in here."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from survey.configs import BLOCKS, VOCABULARY, small_config
from survey.reference import build
from swarm.client.model import DistributedModelForCausalLM
from swarm.client.swarm import Swarm
from swarm.config import SCHEMES, ServerConfig
from swarm.models.ends.served import load_served_ends
from swarm.models.linear.experts import expert_weights
from swarm.models.linear.schemes import can_quantize, quantize
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.cost import describe
from swarm.models.span.load import load_span
from swarm.net.loop import shared_loop
from swarm.server.ends import HostedEnds
from swarm.server.handler import Handler
from swarm.server.hosted import Hosted, Limits
from swarm.server.thread_engine import ThreadEngine
from swarm.testing import LinkConditions, MemoryHost, SimulatedNetwork
from swarm.types import ServerRecord, Span

CUTS = {1: (0, 6), 2: (0, 2, 6), 4: (0, 1, 3, 4, 6)}
"""Where the blocks are cut, by the number of spans."""
DECIDED = 1e-3
"""Where the best two differ by less than this share of the largest, a tie may decide."""
assert all(cut[-1] == BLOCKS for cut in CUTS.values())

# These models are so small that threads would only wait for each other.
torch.set_num_threads(1)


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Write a checkpoint of a model type with random weights; `+untied`: with a head of its own."""
    config = small_config(name.removesuffix("+untied"))
    config.tie_word_embeddings = config.tie_word_embeddings and not name.endswith("+untied")
    for entry, value in changes.items():
        setattr(config, entry, value)
    build(config).to(dtype).save_pretrained(folder)
    return folder


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The whole model, as plain transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def prompt(length: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """Token ids `[batch, length]`, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY - 1, (batch, length), generator=generator)


GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every token is a character: "abcdef" are 3 to 8, the others are letters that no keyboard has."""
    alphabet = {chr(0x4E00 + token): token for token in range(VOCABULARY) if not 3 <= token <= 8}
    alphabet |= {letter: token for token, letter in enumerate("abcdef", 3)}
    plain = Tokenizer(models.BPE(alphabet, [], unk_token=chr(0x4E00)))
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=chr(0x4E00), eos_token=chr(0x4E02))


def left_padded(lengths: Sequence[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of prompts of these lengths as the model takes it; the columns before each are padding."""
    ids, mask = prompt(max(lengths), seed, len(lengths)), torch.ones(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, : max(lengths) - length] = mask[row, : max(lengths) - length] = 0
    return {"input_ids": ids, "attention_mask": mask}


def settled(
    whole: Any, make: Callable[[int], dict[str, torch.Tensor]], new: int, **options: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The first inputs `make(seed)` after which no tie decides any of `new` tokens, and what `whole` generates then."""
    for seed in range(40):
        inputs = make(seed)
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        text = whole.generate(**inputs, **GREEDY, max_new_tokens=new, **options)
        mask = torch.nn.functional.pad(mask, (0, new), value=True)
        if all(_decided(whole, row[real], new) for row, real in zip(text, mask, strict=True)):
            return inputs, text
    raise AssertionError("a tie decides after each of the prompts")


@torch.no_grad()
def _decided(whole: Any, ids: torch.Tensor, new: int) -> bool:
    """Whether no tie decides any of the last `new` of `ids` `[n]`, nor an expert anywhere; and whether they vary."""
    options = {"output_router_logits": True} if hasattr(whole.config, "output_router_logits") else {}
    output = whole(ids.unsqueeze(0), **options)
    routers = getattr(output, "router_logits", None) or ()
    gaps = [_smallest_gap(scores, whole.config.num_experts_per_tok) for scores in routers]
    return (
        min([_smallest_gap(output.logits[:, -new - 1 : -1], 1), *gaps]) > DECIDED and len(set(ids[-new:].tolist())) >= 4
    )


def _smallest_gap(scores: torch.Tensor, chosen: int) -> float:
    best = scores.float().topk(chosen + 1, dim=-1).values
    return float(((best[..., chosen - 1] - best[..., chosen]) / scores.abs().amax()).min())


@torch.no_grad()
def put_on_grids(blocks: Iterable[nn.Module], quantization: str) -> None:
    """The plain linear layers and experts of blocks compute with the numbers that a scheme has in place of theirs."""
    for block in blocks:
        for module in block.modules():
            if type(module) is nn.Linear and can_quantize(module.in_features):
                module.weight.copy_(quantize(module.weight, quantization).dense())
        for owner, name in expert_weights(block):
            for expert in getattr(owner, name):
                rows = expert.T if owner.is_transposed else expert
                rows.copy_(quantize(rows.contiguous(), quantization).dense())


class Served:
    """Servers of a checkpoint in this process, on a network without delay, and a client. `ends`: the servers that have
    the ends, too."""

    def __init__(
        self,
        folder: Path,
        spans: Sequence[Span],
        dtype: str = "float32",
        quantization: str = "none",
        codecs: tuple[str, ...] = ("raw",),
        ends: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.codecs = codecs
        self.ends = ends
        self.quantization = quantization
        self.dtype = dtype
        self.network = SimulatedNetwork(conditions=LinkConditions(delay=0))
        self.handlers: list[Handler] = []
        self.hosted: list[Hosted] = []
        self.hosts: list[MemoryHost] = []
        self.info = describe(folder).info
        shared_loop().run(self._start(spans))
        self.swarm = self.client("client")

    def client(self, name: str) -> Swarm:
        """A client with a host of its own."""
        return Swarm(self.network.join(name), shared_loop())

    async def _start(self, spans: Sequence[Span]) -> None:
        for index, span in enumerate(spans):
            await self._serve(f"server{index}", span)

    async def _serve(self, name: str, span: Span) -> None:
        host = self.network.host(name)
        directory = self.network.directory(host)
        model = load_span(self.folder, span, dtype=self.dtype, quantization=self.quantization, progress=False)
        contract = replace(
            self.info.contract(self.dtype, model.row_bytes, SCHEMES[self.quantization], model.hidden_size).on(span),
            fingerprints=tuple(model.fingerprints),
            joined=model.proven.joined,
            places=model.proven.places,
        )
        limits, config = Limits(directory.verify, model.max_positions or 0, self.codecs), ServerConfig()
        how = {"dtype": getattr(torch, self.dtype), "quantization": self.quantization, "progress": False}
        served = HostedEnds(load_served_ends(open_checkpoint(self.folder), **how)) if name in self.ends else None
        hosted = Hosted(
            host=host, engine=ThreadEngine(model), contract=contract, limits=limits, config=config, ends=served
        )
        handler = Handler(host=host, config=config)
        handler.add(hosted)
        await handler.start()
        self.hosts.append(host)
        self.handlers.append(handler)
        self.hosted.append(hosted)
        expires = asyncio.get_running_loop().time() + 1e6
        addresses = tuple(host.addresses)
        record = ServerRecord(
            name,
            contract.announced,
            addresses=addresses,
            free_tokens=10_000,
            expires=expires,
            codecs=self.codecs,
            training=hosted.trains,
            ends=None if served is None else served.announced,
        )
        await directory.announce(record, self.info)

    def model(self, kind: type[DistributedModelForCausalLM] = DistributedModelForCausalLM, **options: Any) -> Any:
        """The distributed model."""
        options = {"swarm": self.swarm, "dtype": self.dtype, "quantization": self.quantization, **options}
        return kind.from_pretrained(str(self.folder), **options)

    def kill(self, name: str) -> None:
        """As SIGKILL does to a server; its record stays."""

        async def kill() -> None:
            self.network.kill(name)

        shared_loop().run(kill())

    def held(self) -> list[tuple[int, int]]:
        """Sessions, and bytes of KV cache that are not the prefix cache's, by server."""

        async def look() -> list[tuple[int, int]]:
            return [(h.statistics().sessions, h.engine.runner.bytes_held() - h.prefixes.kv_bytes) for h in self.hosted]

        return shared_loop().run(look())

    def assert_free(self, patience: float = 5.0) -> None:
        """Soon, no server holds anything."""
        gc.collect()
        assert wait_until(lambda: not any(sum(held) for held in self.held()), patience), self.held()

    def close(self) -> None:
        """End the servers. Raises what escaped from any of them."""
        shared_loop().run(self._close())

    async def _close(self) -> None:
        for handler in self.handlers:
            await handler.close()
        for hosted in self.hosted:
            await hosted.engine.close()
        for host in self.hosts:
            await host.close()
            if host.failures:
                raise host.failures[0]


def spans_of(count: int) -> list[Span]:
    """The blocks in so many spans."""
    return [Span(first, last) for first, last in pairwise(CUTS[count])]


def wait_until(true: Callable[[], bool], patience: float) -> bool:
    """Look again and again for at most `patience` seconds."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
