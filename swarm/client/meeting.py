"""Opens a route's new hops and begins an epoch at all: how states travel between them, and what each of them has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from swarm.client.blame import Blame, Verdict
from swarm.client.encoding import choose_codecs
from swarm.client.link import HopLink
from swarm.client.matrices import Blob
from swarm.client.resume import HopPlan, HopState
from swarm.client.sequences import Sequences, Snapshot
from swarm.client.training_link import TrainingLink
from swarm.client.vetting import Vetting
from swarm.client.view import View
from swarm.errors import LimitExceeded, SwarmError
from swarm.net.base import Host
from swarm.types import Route
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import Codec, codec_of, offered
from swarm.wire.places import placed

T = TypeVar("T")


class Meeting:
    """What a session asks of the hops of each new epoch.

    `codec`: how hidden states travel; `carry_out`: lets go of hops that are blamed; `vetting`: whether hops are to
    check what comes from others.
    """

    def __init__(
        self,
        host: Host,
        view: View,
        sequences: Sequences,
        blame: Blame,
        codec: str,
        carry_out: Callable[[Verdict], None],
        vetting: Vetting,
    ) -> None:
        self._host = host
        self._view = view
        self._sequences = sequences
        self._blame = blame
        self._codec = codec
        self._carry_out = carry_out
        self._vetting = vetting

    async def meet(
        self, epoch: int, route: Route, links: Sequence[HopLink], fresh: Sequence[HopLink], snapshot: Snapshot
    ) -> tuple[list[Codec], list[HopState]]:
        """Open the links that are `fresh`, and prepare all: how each link's states travel, and what each hop has.

        Raises SwarmError after blaming who failed.
        """
        unopened = set(fresh)
        if self._codec == "auto":
            # How fast the hops are reached decides how they are prepared.
            await self.all(fresh, [self._open(link) for link in fresh])
            unopened.clear()
        codecs = self._codecs(links)
        requests = self._prepares(epoch, route, links, snapshot, [codec.name for codec in codecs])
        asks = [
            self._open(link, request) if link in unopened else link.prepare(request)
            for link, request in zip(links, requests, strict=True)
        ]
        states = [state for state in await self.all(links, asks) if state is not None]
        self._check_limits(fresh)
        for link in fresh:
            if link.rtt_ms is not None:
                self._view.measured(link.hop.peer_id, link.rtt_ms)
        return codecs, states

    async def resume(
        self, epoch: int, links: Sequence[HopLink], plans: Sequence[HopPlan], wanted: Mapping[int, int]
    ) -> None:
        """Tell every hop where it goes on. Raises SwarmError after blaming who failed."""
        resumes = [_resume(epoch, plan, wanted) for plan in plans]
        await self.all(links, [link.resume(each) for link, each in zip(links, resumes, strict=True)])

    async def all(self, links: Sequence[HopLink], asks: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Ask all at once. Whoever fails is blamed; the first failure is raised when all have answered."""
        answers = await asyncio.gather(*asks, return_exceptions=True)
        failures = [(link, a) for link, a in zip(links, answers, strict=True) if isinstance(a, BaseException)]
        for link, error in failures:
            if not isinstance(error, SwarmError):
                raise error
            self._carry_out(self._blame.refused(link.hop, error, asyncio.get_running_loop().time()))
        if failures:
            raise failures[0][1]
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _check_limits(self, fresh: Sequence[HopLink]) -> None:
        """Learn what one session may have at the new hops. Raises LimitExceeded where that is too little."""
        for link in fresh:
            self._blame.opened(link.hop, link.limits)
        for link in fresh:
            if beyond := link.limits.exceeded(self._sequences.needs):
                name, allowed, asked = beyond
                raise LimitExceeded(f"{link}: {name}: {asked} are needed, {allowed} allowed", name, allowed, asked)

    async def _open(self, link: HopLink, prepare: pb.Prepare | None = None) -> HopState | None:
        """As `HopLink.open`, where the server has the adapter first."""
        adapter = self._sequences.matrices.on(link.hop.span)
        if adapter is not None:
            async with TrainingLink(self._host, link.hop, self._view.contract, self._view.config) as giving:
                await giving.adapt(adapter)
        return await link.open(self._open_request(link, adapter), prepare)

    def _open_request(self, link: HopLink, adapter: Blob | None) -> pb.Open:
        span = link.hop.span
        prints = link.hop.server.contract.on(span).fingerprints
        asked = replace(self._view.contract.on(span), fingerprints=prints, places=self._sequences.layout.planes)
        digest = b"" if adapter is None else adapter.digest
        contract = messages.contract_message(asked)
        positions, commit = self._sequences.positions, self._view.config.commits
        return pb.Open(contract=contract, positions=positions, adapter=digest, commit=commit)

    def _codecs(self, links: Sequence[HopLink]) -> list[Codec]:
        """How hidden states travel on every link, from the one into the first hop to the one out of the last."""
        asked, row_bytes = self._view.contract, self._view.contract.row_bytes
        ends, speak = [link.link_end for link in links], offered(asked.dtype, asked.hidden_size)
        names = choose_codecs(self._codec, ends, row_bytes, speak)
        codecs = [codec_of(name, asked.dtype, asked.hidden_size, row_bytes) for name in names]
        return [placed(codec, self._sequences.layout.planes) for codec in codecs]

    def _prepares(
        self, epoch: int, route: Route, links: Sequence[HopLink], snapshot: Snapshot, codecs: Sequence[str]
    ) -> list[pb.Prepare]:
        """Who feeds whom in this epoch."""
        requests = []
        for index, following in enumerate([*links[1:], None]):
            relayed = index in route.relayed_links
            request = pb.Prepare(epoch=epoch, sequences=snapshot.manifest, relayed=relayed)
            request.input_codec, request.output_codec = codecs[index], codecs[index + 1]
            request.rollback = self._sequences.rollback
            request.moves = True
            # In every session, as those that audit must look like others.
            request.recalls = True
            request.check_inputs = index > 0 and self._vetting.enabled
            if index > 0 and index - 1 not in route.relayed_links:
                request.upstream = links[index - 1].hop.peer_id
            if following is not None and not relayed:
                request.downstream.session = following.session
                request.downstream.record = self._view.newest(following.hop.server).signed
            requests.append(request)
        return requests


def _resume(epoch: int, plan: HopPlan, wanted: Mapping[int, int]) -> pb.Resume:
    return pb.Resume(
        epoch=epoch,
        cuts=[pb.Position(sequence=s, position=p) for s, p in plan.cuts.items()],
        replays=[pb.Position(sequence=s, position=p) for s, p in plan.replays.items()],
        wants=[pb.Position(sequence=s, position=p) for s, p in wanted.items()],
    )
