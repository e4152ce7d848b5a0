"""What a session says of its route and of waiting, for the asker."""

from __future__ import annotations

from collections.abc import Callable

from swarm.client.session import Notice
from swarm.errors import ServerBusy
from swarm.gateway.metrics import QueryMetrics
from swarm.gateway.replies import Replies
from swarm.types import Route
from swarm.wire import swarm_pb2 as pb


class Notices:
    """Puts notices of one session among the replies.

    `begun`: whether the asker has tokens already; `retry_after`: when to come again where there is no room, in seconds.
    """

    def __init__(self, replies: Replies, begun: Callable[[], bool], retry_after: float, metrics: QueryMetrics) -> None:
        self._replies = replies
        self._begun = begun
        self._retry_after = retry_after
        self._metrics = metrics
        self._waited = False
        self._reroutes = 0

    def __call__(self, notice: Notice) -> None:
        if notice.kind == "rerouted":
            self._reroutes += 1
            self._metrics.rerouted()
        if notice.kind != "waiting" and notice.route is not None:
            reason = notice.text if notice.kind == "rerouted" else ""
            self._replies.put(pb.QueryReply(route=_route(notice.route, self._reroutes, reason)))
        elif notice.blocks:
            self._wait(notice)
        elif not self._begun():
            # Nothing is lost yet: the asker does better to come again, or to ask another node.
            self._replies.fail(ServerBusy("the swarm has no room for another query now", self._retry_after))

    def _wait(self, notice: Notice) -> None:
        if not self._waited:
            self._waited = True
            self._metrics.waiting()
        first, last = notice.blocks[0]
        waiting = pb.Waiting(first=first, last=last, since=notice.seconds, words=notice.text)
        self._replies.put(pb.QueryReply(waiting=waiting))


def _route(route: Route, reroutes: int, reason: str) -> pb.RouteInUse:
    hops = [
        pb.RouteHop(peer_id=hop.peer_id, name=hop.server.name, first=hop.span.first, last=hop.span.last)
        for hop in route.hops
    ]
    return pb.RouteInUse(hops=hops, reroutes=reroutes, reason=reason)
