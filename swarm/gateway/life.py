"""A query node's life: it joins with what it holds of a model, answers peers and HTTP, and leaves."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from swarm._version import __version__
from swarm.accounting.account import Account
from swarm.client.matrices import Matrices
from swarm.client.paying import Payer
from swarm.client.view import View
from swarm.config import ClientConfig, GatewayConfig, NetworkConfig
from swarm.errors import InvalidInput, MissingBlocks, NetworkError
from swarm.gateway.ends_batcher import EndsBatcher
from swarm.gateway.generation import Generator
from swarm.gateway.http.app import create_app
from swarm.gateway.http.guard import HttpSettings
from swarm.gateway.http.server import serve_http
from swarm.gateway.loading import LoadedModel
from swarm.gateway.map import MapService
from swarm.gateway.metrics import QueryMetrics
from swarm.gateway.node import Announcer, QueryService, record_of
from swarm.gateway.picture_urls import PictureUrls
from swarm.metrics import exposition
from swarm.net import Network
from swarm.net.addresses import best_first
from swarm.net.base import Host
from swarm.net.guard import GuardedHost
from swarm.tasks import first_of
from swarm.types import check_name
from swarm.wire import swarm_pb2 as pb

PAGE = Path(__file__).parent / "page"
"""The built web page, in packages that have it."""
PICTURES_LIMIT = 16 << 20
"""Bytes of a body where a model sees."""


@dataclass(frozen=True, slots=True)
class HttpPlace:
    """Where HTTP is served, and to whom; port 0: any."""

    host: str = "127.0.0.1"
    port: int = 8000
    settings: HttpSettings = field(default_factory=HttpSettings)


class Gateway:
    """Answers queries for a model, or for several: those of peers, and of programs over HTTP.

        loaded = load_model("meta-llama/Llama-3.1-70B-Instruct")
        async with await swarm.net.open(NetworkConfig(initial_peers=(…,))) as network:
            await Gateway(network, loaded, http=HttpPlace(port=8000)).run()

    `edge`: a host for browsers, with the identity of the network's; `name`: to be shown beside this query node;
    `client`: how servers are used; `http`: None serves peers alone; `account`: signs for what servers do. `on_ready`
    hears that queries are taken, over every way, and that the directory was told. Raises InvalidInput for models of
    one name.
    """

    def __init__(
        self,
        network: Network,
        loaded: LoadedModel | Sequence[LoadedModel],
        *,
        config: GatewayConfig | None = None,
        client: ClientConfig | None = None,
        announcing: NetworkConfig | None = None,
        http: HttpPlace | None = None,
        edge: Host | None = None,
        name: str = "",
        on_ready: Callable[[Gateway], None] = lambda gateway: None,
        account: Account | None = None,
    ) -> None:
        self.network = network
        self.account = account
        self.loaded = (loaded,) if isinstance(loaded, LoadedModel) else tuple(loaded)
        self.config = config or GatewayConfig()
        self.client = client or ClientConfig()
        self.http = http
        self.edge = edge
        self.name = check_name(name)
        names = [each.info.name for each in self.loaded]
        if not names or len(set(names)) < len(names):
            raise InvalidInput(f"a gateway answers for models with a name each, not for {', '.join(names) or 'none'}")
        self.url = ""
        """The base of OpenAI's API, once it is served."""
        self._announcing = announcing or NetworkConfig()
        self._on_ready = on_ready
        self._leaving = asyncio.Event()
        self._listening = asyncio.Event()
        self._registry = CollectorRegistry()
        self._generators: list[Generator] = []
        self._adapted: list[Generator] = []
        """With an adapter each, over the views and ends of the others; of HTTP alone."""

    @property
    def edges(self) -> Sequence[str]:
        """Where browsers can dial it, the best first."""
        return () if self.edge is None else best_first(self.edge.addresses)

    @property
    def missing(self) -> MissingBlocks | None:
        """Which blocks nobody serves, of the first model that lacks some; answers wait for them."""
        return next((gap for each in self._generators if (gap := each.missing) is not None), None)

    def leave(self) -> None:
        """Ask it to leave; then `run` returns."""
        self._leaving.set()

    async def run(self) -> None:
        """Answer from joining to leaving.

        Returns after `leave`; its record is withdrawn, and answers that are being given end. Raises InvalidInput when
        the HTTP address cannot be had, and what the network is lost by.
        """
        async with contextlib.AsyncExitStack() as stack:
            metrics = QueryMetrics(self._registry)
            answering = [self._answering(loaded, metrics) for loaded in self.loaded]
            self._generators = [await stack.enter_async_context(each) for each in answering]
            metrics.watch(self._generators, self._adapted)
            await self._serve_peers()
            announcers = [self._announcer(each) for each in self._generators]
            works = [self._leaving.wait(), self.network.lost(), self._stay(announcers)]
            works += [announcer.run() for announcer in announcers]
            works += [self._look(each) for each in self._generators]
            if self.http is not None:
                works.append(self._serve_http(self.http))
            for work in await first_of(*works):
                if not self._leaving.is_set():
                    work.result()

    @asynccontextmanager
    async def _answering(self, loaded: LoadedModel, metrics: QueryMetrics) -> AsyncIterator[Generator]:
        network = self.network
        view = View(
            network.directory,
            loaded.info,
            loaded.contract,
            self.client,
            network.locator,
            network.introducers,
            random.Random(),
            None if self.account is None else Payer(self.account, loaded.parameters),
        )
        ends = EndsBatcher(loaded.ends)
        with contextlib.suppress(NetworkError):
            await view.refresh(0.0)
        given = network.host, view, loaded.texts, ends, loaded.recommended, self.config, metrics, loaded.pictures
        generator = Generator(*given)
        adapted = [Generator(*given, (name, Matrices(files))) for name, files in loaded.adapters.items()]
        self._adapted += adapted
        try:
            yield generator
        finally:
            for each in (generator, *adapted):
                each.close()
            await ends.close()
            await view.close()

    async def _serve_peers(self) -> None:
        """Take queries over every host, and show the swarm."""
        node, maps = QueryService(self._generators, self.config), MapService(self.network.directory)
        edges = [] if self.edge is None else [GuardedHost(self.edge, self.network.guard)]
        for host in (self.network.host, *edges):
            await node.serve(host)
            await maps.serve(host)

    async def _serve_http(self, place: HttpPlace) -> None:
        """OpenAI's API, the page and metrics."""
        urls = PictureUrls() if place.settings.image_urls else None
        app = create_app(
            {each.model.name: each for each in (*self._generators, *self._adapted)},
            self._roomy(place.settings),
            page=PAGE,
            peers=lambda: self.edges,
            metrics=lambda: exposition(self._registry),
            urls=urls,
        )
        try:
            await serve_http(app, place.host, place.port, self._listens)
        finally:
            if urls is not None:
                await urls.close()

    def _roomy(self, settings: HttpSettings) -> HttpSettings:
        """Room for pictures in bodies, where a model sees."""
        if not any(each.pictures for each in self.loaded):
            return settings
        return replace(settings, body_limit=max(settings.body_limit, PICTURES_LIMIT))

    def _listens(self, host: str, port: int) -> None:
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        self._listening.set()

    async def _look(self, generator: Generator) -> None:
        """Know at any time which blocks are served."""
        view = generator.view
        while True:
            with contextlib.suppress(NetworkError):
                await view.refresh(view.config.view_refresh)
            await asyncio.sleep(view.config.view_refresh)

    async def _stay(self, announcers: Sequence[Announcer]) -> None:
        """Say that it is ready, when it is."""
        if self.http is not None:
            await self._listening.wait()
        for announcer in announcers:
            await announcer.begun.wait()
        self._on_ready(self)
        await self._leaving.wait()

    def _announcer(self, generator: Generator) -> Announcer:
        def record() -> pb.QueryNode:
            addresses, contract = best_first(self.network.host.addresses), generator.view.contract
            return record_of(generator, self.name, addresses, self.edges, contract, __version__, self.client.codec)

        return Announcer(self.network.directory, self._announcing, record)
