"""A process's connection to a swarm: one host and one directory in the network thread, shared by all its models."""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import json
import logging
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakSet

from swarm import net
from swarm.accounting.account import Account, account_of
from swarm.accounting.stream import serve_receipts
from swarm.client.asker import Asker
from swarm.client.matrices import NOTHING, Matrices
from swarm.client.paying import Payer
from swarm.client.session import Notice, Session
from swarm.client.training import Training
from swarm.client.view import View
from swarm.config import SCHEMES, AskerConfig, ClientConfig, NetworkConfig
from swarm.contract import UNQUANTIZED
from swarm.errors import InvalidInput
from swarm.net.initial_peers import HOW_TO_BEGIN, initial_peers, looks_on_lan
from swarm.net.loop import LoopThread, shared_loop
from swarm.net.network import Network
from swarm.tasks import Tasks
from swarm.types import ModelInfo, ServerRecord, Span, is_called
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")

END_PATIENCE = 3.0
"""Seconds that servers have to hear that their sessions end."""


class Swarm:
    """A connected client. Made by `connect`; methods may be called from any thread but the network's own."""

    def __init__(self, network: Network, loop: LoopThread, account: Account | None = None) -> None:
        self.network = network
        self.account = account
        self.host = network.host
        self.directory = network.directory
        self.loop = loop
        self.closed = False
        self._sessions: dict[Session, asyncio.Task[None] | None] = {}
        self._views = WeakSet[View]()
        self._ends = Tasks(log)

    def models(self) -> list[ModelInfo]:
        """The models that the swarm knows."""
        return self.loop.run(self.directory.models())

    def servers(self, model: ModelInfo) -> list[ServerRecord]:
        """The servers of a model, as the directory has them now."""
        return self.loop.run(self.directory.lookup(model.key, model.blocks))

    def view(
        self,
        model: ModelInfo,
        dtype: str,
        row_bytes: int,
        config: ClientConfig,
        parameters: Sequence[int] = (),
        numbers: int | None = None,
    ) -> View:
        """What sessions on a model share: records, measurements, and whom to avoid.

        `row_bytes`, `numbers`: of what a position has between two blocks, where not its hidden size; `parameters`: of
        each block, where that is known.
        """
        contract = model.contract(dtype, row_bytes, SCHEMES[config.quantization or UNQUANTIZED], numbers)
        network, rng = self.network, random.Random()
        payer = None if self.account is None else Payer(self.account, parameters)
        view = View(self.directory, model, contract, config, network.locator, network.introducers, rng, payer)
        self._views.add(view)
        return view

    def session(
        self,
        view: View,
        span: Span,
        on_notice: Callable[[Notice], None] = lambda notice: None,
        matrices: Matrices = NOTHING,
    ) -> Session:
        """A session on `span`, with an adapter; an asynchronous object that belongs to the network thread's loop
        (`swarm.loop`)."""

        async def make() -> Session:
            session = Session(self.host, view, span, config=view.config, on_notice=on_notice, matrices=matrices)
            self._sessions[session] = None
            return session

        return self.loop.run(make())

    def training(self, view: View, span: Span, on_notice: Callable[[Notice], None] = lambda notice: None) -> Training:
        """Training passes through `span`; an asynchronous object that belongs to the network thread's loop."""

        async def make() -> Training:
            return Training(self.host, view, span, config=view.config, on_notice=on_notice)

        return self.loop.run(make())

    def ask(
        self,
        model: str,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        on_reply: Callable[[pb.QueryReply], None] = lambda reply: None,
        on_node: Callable[[pb.QueryNode], None] = lambda node: None,
        config: AskerConfig | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Ask query nodes: the answer's text as it comes, from peers that hold what this process need not load.

        `model`: name or key; `prompt`: a text to go on with, or chat messages; `sampling`: fields of the wire's
        Sampling, e.g. `max_tokens`, `temperature`, `seed`, `stop`; `on_reply` hears of routes, of waiting, and how it
        ended; `on_node`, in the network's thread, who is asked. When a node dies another goes on, with the same text.
        To stop, close the iterator.

        Raises InvalidInput, for a model that the swarm does not know too, and what `Asker.ask` raises.
        """
        key = self._key_of(model)
        asker = Asker(self.host, self.directory, key, config, on_node)
        replies = asker.ask(_query(key, prompt, sampling))
        try:
            while (reply := self.loop.run(_following(replies))) is not None:
                on_reply(reply)
                if reply.delta.text:
                    yield reply.delta.text
        finally:
            self.loop.run(replies.aclose())

    def _key_of(self, model: str) -> str:
        known = self.models()
        found = next((info.key for info in known if model == info.key or is_called(info.name, model)), None)
        if found is None:
            names = ", ".join(sorted(info.name for info in known)) or "none"
            raise InvalidInput(f"nobody serves a model {model!r} here; there are: {names}")
        return found

    def end(self, session: Session) -> None:
        """Begin to close a session. From any thread: garbage is also collected in the network's own."""
        self.loop.call_soon(self._end, session)  # a loop that is closed has closed every session with it

    def _end(self, session: Session) -> asyncio.Task[None]:
        task = self._sessions.get(session)
        if task is None:
            task = self._sessions[session] = self._ends.spawn(session.close(), name=f"closing {session}")
            task.add_done_callback(lambda _: self._sessions.pop(session, None))
        return task

    async def _leave(self) -> None:
        """Close the sessions, so that no server keeps what they held for its time of grace, then the host."""
        ending = [self._end(session) for session in self._sessions]
        if ending:
            await asyncio.wait(ending, timeout=END_PATIENCE)
        await self._ends.close()
        await asyncio.gather(*(view.close() for view in self._views))
        await self.network.close()
        if self.account is not None:
            self.account.close()

    def close(self) -> None:
        """Leave the swarm. Sessions that are open end. May be called twice.

        In a process that was forked off nothing is left: the connection is its parent's.
        """
        if self.closed or not self.loop.usable:
            return
        self.closed = True
        atexit.unregister(self.close)
        with _lock:
            for config in [c for c, swarm in _connected.items() if swarm is self]:
                del _connected[config]
        self.loop.run(self._leave())

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _query(key: str, prompt: str | Sequence[Mapping[str, Any]], sampling: Mapping[str, Any]) -> pb.Query:
    try:
        query = pb.Query(model=key, sampling=pb.Sampling(**sampling))
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"sampling: {error}; there are {', '.join(pb.Sampling.DESCRIPTOR.fields_by_name)}"
        ) from error
    if isinstance(prompt, str):
        query.text = prompt
    else:
        query.messages = json.dumps(list(prompt))
    return query


async def _following(replies: AsyncIterator[pb.QueryReply]) -> pb.QueryReply | None:
    return await anext(replies, None)


_connected: dict[NetworkConfig, Swarm] = {}
_lock = threading.Lock()


def _forget() -> None:
    """In a process that was just forked off: its parent's connections are not its own, nor may it end them."""
    global _lock
    for swarm in _connected.values():
        atexit.unregister(swarm.close)
    _connected.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def connect(peers: str | Sequence[str] = (), **network: Any) -> Swarm:
    """Join a swarm through `peers`, else those in SWARM_INITIAL_PEERS, else those that came with the package, else
    those of the local network.

    `peers`: multiaddrs, or one text of several. Further arguments are fields of `NetworkConfig`; with `lan=False`, or
    SWARM_LAN=0, nobody is looked for on the local network. Connecting twice in
    the same way gives the same Swarm; a process that was forked off connects anew. Raises InvalidInput when there is
    nobody to join through, PeerUnreachable when nobody answers, DaemonFailed.
    """
    joined = initial_peers(peers)
    config = _network_config(joined, {"lan": looks_on_lan(), **network})
    if not joined and not config.lan:
        raise InvalidInput(HOW_TO_BEGIN)
    with _lock:
        swarm = _connected.get(config)
        if swarm is None or swarm.closed or not swarm.loop.usable:
            swarm = _connected[config] = shared_loop().run(_join(config))
            # Registered after the loop's own end, and so run before it: the daemon is ended while its loop still runs.
            atexit.register(swarm.close)
        return swarm


def _network_config(peers: Sequence[str], options: Mapping[str, Any]) -> NetworkConfig:
    """Raises InvalidInput for an option that there is not."""
    known = {field.name for field in dataclasses.fields(NetworkConfig)} - {"initial_peers"}
    if unknown := sorted(set(options) - known):
        raise InvalidInput(f"connect knows no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    values: dict[str, Any] = {n: _as_tuple(v) if n.endswith("_maddrs") else v for n, v in options.items()}
    return NetworkConfig(initial_peers=tuple(peers), **values)


def _as_tuple(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


async def _join(config: NetworkConfig) -> Swarm:
    account = account_of(config.account)
    network = await net.open(config)
    if account is not None:
        await serve_receipts(network.host, account)
    return Swarm(network, shared_loop(), account)
