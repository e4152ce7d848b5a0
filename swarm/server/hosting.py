"""What this machine can host of a model: decided before it joins, and loaded once it knows which blocks."""

from __future__ import annotations

import gc
import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from swarm.caches import cache_dir
from swarm.config import FILE, HUB, INT4, INT8, PEERS, SCHEMES, ServerConfig
from swarm.contract import UNQUANTIZED, together
from swarm.errors import InvalidInput
from swarm.memory import available_memory, size
from swarm.models.ends.served import ServedEnds, load_served_ends
from swarm.models.linear.rate import rate
from swarm.models.linear.schemes import BITS
from swarm.models.loading.block_cache import BlockCache
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading.cost import Description, describe, describe_each
from swarm.models.loading.kept import trim
from swarm.models.loading.source import BlockSource
from swarm.models.loading.weights import DTYPES
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.models.span.offload import Offload
from swarm.net.base import Directory, Host
from swarm.net.locator import Locator
from swarm.server.fit import Cost, longest, roomier
from swarm.server.gathering import Gathering
from swarm.server.options import ServeOptions
from swarm.server.placement import choose_span
from swarm.server.plan import Loaded, Plan
from swarm.server.rebalancing import better_span
from swarm.server.sharing import split
from swarm.server.sizing import Allowance, Footprint, Sizes, footprint, gained, held
from swarm.server.throughput import measure
from swarm.span import parted
from swarm.tasks import in_daemon_thread
from swarm.types import ModelInfo, ServerRecord, Span, printable

log = logging.getLogger(__name__)


class Hosting:
    """One model on one device. Raises ModelNotFound, BadCheckpoint, UnsupportedModel; InvalidInput for the device.

    `opened`: the model's files, where they have been opened before.
    """

    def __init__(
        self,
        options: ServeOptions,
        config: ServerConfig,
        *,
        progress: bool = True,
        opened: Checkpoint | None = None,
    ) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.options = options
        self.threads = torch.get_num_threads()
        self.device = checked_device(options.device)
        self.progress = progress
        self.loading = False
        self.source: BlockSource | None = None
        """Who may have blocks, once the network is there."""
        self.checkpoint = opened or open_checkpoint(options.model, options.token, options.revision)
        description = describe(self.checkpoint, dtype=options.dtype, quantization=options.quantization)
        self._parameters = description.parameters
        self.info: ModelInfo = _published(description.info, self.checkpoint)
        self.sizes = _sizes(description)
        self.dtype = str(description.dtype).removeprefix("torch.")
        self.quantization = description.quantization
        if options.blocks_from == PEERS and options.max_disk == 0:
            raise InvalidInput("--blocks-from peers: blocks of other servers are kept on disk; not with --max-disk 0")
        whole = self.info.contract(self.dtype, quantization=SCHEMES[self.quantization])
        # How many numbers a position has between two blocks is known when they are loaded.
        self.contract = replace(whole, joined=description.joined, hidden_size=0)
        self.ends_bytes = description.head_bytes if options.serve_ends else 0
        """Of memory, for the head that is served."""
        self._ends: ServedEnds | None = None
        if options.cpu_offload and not self.device.startswith("cuda"):
            raise InvalidInput(
                f"--cpu-offload: on {self.device} all blocks are in main memory as it is; leave it out, and host more"
            )
        memory = options.memory if options.memory is not None else available_memory(self.device)
        memory -= self.ends_bytes
        if memory <= 0:
            raise InvalidInput(f"--serve-ends: the head takes {size(self.ends_bytes)}, all that may be used here")
        self.allowance = Allowance(memory, config.cache_bytes, options.cache_tokens)
        self._rng = random.Random()

    @property
    def plan(self) -> Plan:
        """For a server."""
        chooses = self.options.blocks is None
        better = self.better if chooses and self.options.rebalance else None
        return Plan(self.info, self.choose, self.load, self.contract, settle=chooses, better=better)

    def join(self, host: Host, directory: Directory, locator: Locator | None = None) -> None:
        """From now on blocks are had from other servers, as the options say; for a folder, whose files are here anyway,
        only if they are asked for by name. `locator`: knows where this peer is. On the event loop."""
        strictly = self.options.blocks_from == PEERS
        fetched = self.checkpoint.folder is None and self.options.blocks_from != HUB
        if self._keep is not None and (strictly or fetched):
            self.source = Gathering(host, directory, self.contract, strictly=strictly, locator=locator)

    def choose(self, others: Sequence[ServerRecord]) -> Span:
        """The blocks that were asked for, else as many as fit where the swarm has least. Raises InvalidInput."""
        if self.options.blocks is not None:
            return self._checked(self.options.blocks)
        try:
            return choose_span(others, *self._room(), self._rng, self.sizes.joined)
        except InvalidInput as error:
            if (advice := self.advice(0)) is None:
                raise
            raise InvalidInput(f"{error}; {advice}") from error

    @property
    def holds_any(self) -> bool:
        """Whether any block fits."""
        return longest(self.sizes, self.allowance) is not None

    def better(self, own: ServerRecord, others: Sequence[ServerRecord]) -> Span | None:
        """Where the swarm needs this server clearly more than where it is."""
        return better_span(own, others, *self._room(), self._rng, self.sizes.joined)

    def _room(self) -> tuple[list[int], int]:
        """What each block costs, and what there is for all, in bytes."""
        room = self.allowance.memory - self.allowance.fixed() + gained(self.sizes, self.options.cpu_offload)
        return self.allowance.block_bytes(self.sizes), room

    def advice(self, blocks: int) -> str | None:
        """By which scheme more than so many blocks fit, where the server was left to choose both; None: by none."""
        if self.options.quantization is not None or self.options.blocks is not None or blocks == self.info.blocks:
            return None
        others = [(name, _sizes(each)) for name, each in self._by_scheme if name != self.quantization]
        found = roomier(others, self.allowance, blocks)
        if found is None:
            return None
        return (
            f"with --quantization {found[0]} {found[1]} of {self.info.blocks} blocks fit, for clients that ask for it"
        )

    def costs(self) -> list[Cost]:
        """What the model costs by each scheme that it can be had by here; the speed is measured now."""
        stored = describe(self.checkpoint).weight_bytes if self.checkpoint.folder is None else None
        fetched = stored or (0,) * self.info.blocks
        return [self._cost(name, each, fetched) for name, each in self._by_scheme]

    @property
    def disk_free(self) -> int:
        """Bytes, where blocks are kept."""
        folder = cache_dir()
        return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.is_dir())).free

    def _cost(self, scheme: str, each: Description, fetched: Sequence[int]) -> Cost:
        kept = self._keeps(scheme)
        disk = tuple(got + kept * made for got, made in zip(fetched, each.weight_bytes, strict=True))
        # Of a checkpoint's own grid only the bits are known before it is read.
        like = scheme if scheme != FILE else INT4 if sum(each.weight_bytes) < 0.75 * sum(each.parameters) else INT8
        dtype = str(each.dtype).removeprefix("torch.")
        measured = rate(like, each.dtype, self.device)
        return Cost(scheme, dtype, _sizes(each), disk, measured.bytes_per_second, measured.threads)

    @cached_property
    def _by_scheme(self) -> list[tuple[str, Description]]:
        """What the model is by each scheme, for advice and for the table."""
        own = FILE if self.checkpoint.quantized else UNQUANTIZED
        schemes = dict.fromkeys((self.options.quantization or own, own, UNQUANTIZED, INT8, INT4))
        known = sorted(schemes, key=list(SCHEMES).index)
        return list(zip(known, describe_each(self.checkpoint, known, self.options.dtype), strict=True))

    def _checked(self, span: Span) -> Span:
        """Blocks that were asked for by hand are refused where they cannot be parted from others, and only by a limit
        that was set by hand."""
        check_whole(span, self.sizes.joined)
        cache_bytes = self.footprint(span).cache_bytes
        there, here = held(span, self.sizes, self.options.cpu_offload)
        need = there + cache_bytes + self.ends_bytes
        if here and here > available_memory("cpu"):
            raise InvalidInput(f"--cpu-offload: {size(here)} of blocks are more than there is of main memory")
        if self.options.memory is not None and need > self.options.memory:
            raise InvalidInput(
                f"blocks {span} and their KV cache need {size(need)}, more than --memory; host fewer blocks"
            )
        if need - self.ends_bytes > self.allowance.memory:
            log.warning("blocks %s and their KV cache need %s, which may be too much here", span, size(need))
        return span

    def footprint(self, span: Span) -> Footprint:
        """What `span` takes. Raises InvalidInput when the model does not have it."""
        return footprint(span, self.sizes, self.allowance)

    async def load(self, span: Span) -> Loaded:
        """Load, check and measure in a thread. Raises BadCheckpoint, ModelNotFound, UnsupportedModel."""
        self.loading = True
        loaded = await in_daemon_thread(lambda: self._load(span))
        self.loading = False
        return loaded

    def _load(self, span: Span) -> Loaded:
        gc.collect()  # what was hosted before makes room
        model = load_span(
            self.checkpoint,
            span,
            dtype=self.dtype,
            device=self.device,
            quantization=self.quantization,
            progress=self.progress,
            keep=self._keep,
            blocks_from=self.source,
            offload=Offload.to(self.device, self.options.cpu_offload) if self.options.cpu_offload else None,
        )
        if self.options.serve_ends and self._ends is None:
            how = {"dtype": DTYPES[self.dtype], "quantization": self.quantization, "progress": self.progress}
            self._ends = load_served_ends(self.checkpoint, **how)  # type: ignore[arg-type]
            log.info("the head: %.2f ms for a row", self._ends.head_ms)
        trim(cache_dir(), self.options.max_disk)
        speed = measure(model, span, model.hidden_size, model.row_bytes, model.max_positions)
        log.info(
            "blocks %s: %.2f ms a block for a decode step, %.0f positions/s through a block for a prompt",
            span,
            speed.decode_ms,
            speed.prefill_rate,
        )
        if not model.proven.batched:
            log.warning("sessions are computed one at a time: %s", model.proven.why_unbatched)
        return Loaded(
            runner=model,
            contract=replace(
                self.contract.on(span),
                fingerprints=tuple(model.fingerprints),
                hidden_size=model.hidden_size,
                row_bytes=model.row_bytes,
                places=model.proven.places,
            ),
            throughput=speed,
            max_positions=model.max_positions or 0,
            cache_bytes=self._cache_bytes(model, span),
            offered=self.offered(span),
            ends=self._ends,
            exact_rows=model.proven.tokens,
            parameters=tuple(self._parameters[block] for block in span),
        )

    def offered(self, span: Span) -> dict[int, Path]:
        """Where blocks are kept that other servers may have: of what everybody may have, or as the options say."""
        wanted = self.options.offer_blocks
        if self._keep is None or wanted is False:
            return {}
        if wanted is None and not self.checkpoint.is_public:
            return {}
        cache = BlockCache(self._keep, self.checkpoint.key, SCHEMES[self.quantization])
        return {block: cache.path(block) for block in span}

    @property
    def _keep(self) -> Path | None:
        """The folder of blocks."""
        return cache_dir() / "blocks" if self._keeps(self.quantization) else None

    def _keeps(self, scheme: str) -> bool:
        """Whether blocks stay on disk: those that it takes work to make, and those that go from server to server."""
        options = self.options
        of_hub = self.checkpoint.folder is None and (options.blocks_from != HUB or options.offer_blocks is None)
        shared = of_hub or options.blocks_from == PEERS or bool(options.offer_blocks)
        return options.max_disk != 0 and (shared or scheme in BITS)

    def _cache_bytes(self, model: SpanModel, span: Span) -> int:
        """For so many positions as were asked for, with the room that a sequence of them takes."""
        tokens = self.options.cache_tokens
        return self.footprint(span).cache_bytes if tokens is None else model.reserved_bytes(span, tokens)


def hostings(options: ServeOptions, config: ServerConfig, *, progress: bool = True) -> list[Hosting]:
    """A hosting for each device that is named, separated by commas; blocks that are asked for are shared among them.

    Where the blocks are not asked for, devices that hold not even one are left out. Raises as `Hosting`, and
    InvalidInput where no device is left.
    """
    names: list[str | None] = list((options.device or "").split(",")) if options.device else [None]
    if len(set(names)) < len(names):
        raise InvalidInput(f"--device {options.device}: each device once")
    every: list[Hosting] = []
    for name in names:
        opened = every[0].checkpoint if every else None
        own = replace(options, device=name, serve_ends=options.serve_ends and not every)
        every.append(Hosting(own, config, progress=progress, opened=opened))
    if len(every) == 1:
        return every
    if options.blocks is not None:
        costs = every[0].allowance.block_bytes(every[0].sizes)
        check_whole(options.blocks, every[0].sizes.joined)
        memories = [each.allowance.memory for each in every]
        parts = split(options.blocks, costs, memories, every[0].sizes.joined)
        for each, part in zip(every, parts, strict=True):
            each.options = replace(each.options, blocks=part)
        return every
    fit = [each for each in every if each.holds_any]
    for each in every:
        if each not in fit:
            log.warning("no block fits on %s; it is left out", each.device)
    if not fit:
        every[0].choose([])  # raises, with the reason
    return fit


def _sizes(description: Description) -> Sizes:
    return Sizes(description.weight_bytes, description.cache_bytes, description.joined)


def check_whole(span: Span, joined: Sequence[Span]) -> None:
    """Raises InvalidInput for blocks without others that must stay together with them."""
    if (run := parted(span, joined)) is not None:
        raise InvalidInput(f"--blocks {span}: {together(run)}; host {_around(span, joined)}")


def _around(span: Span, joined: Sequence[Span]) -> Span:
    """The blocks with all that must stay together with some of them."""
    touched = [run for run in joined if run.first < span.last and span.first < run.last]
    return Span(min(span.first, *(run.first for run in touched)), max(span.last, *(run.last for run in touched)))


def checked_device(wanted: str | None) -> str:
    """The device to compute on: the one wanted if it is there, else the best. Raises InvalidInput."""
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"device {wanted!r} cannot be used here: {reason}") from error
    return wanted


def _published(info: ModelInfo, checkpoint: Checkpoint) -> ModelInfo:
    """Where a folder is on this machine is nobody else's business: the swarm sees its last name."""
    if checkpoint.folder is None:
        return info
    name = checkpoint.reading.gguf_file or Path(checkpoint.folder).resolve().name
    return replace(info, name=printable(name).replace("\n", "?"))
