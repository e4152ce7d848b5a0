"""A request to any of the APIs, once it is understood."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.gateway.http.streams import Telling
from swarm.models.tool_calls import ToolCallParser
from swarm.types import ModelInfo
from swarm.wire import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class Asked:
    """`queries`: one for each answer; `calls`: how many tools it may call where there are some, None: any number;
    `telling`: how the answers are told."""

    model: str
    queries: Sequence[pb.Query]
    stream: bool
    telling: Callable[[ModelInfo], Telling]
    calls: int | None = None

    def parser(self) -> ToolCallParser | None:
        """What finds calls in an answer."""
        tools = self.queries[0].tools
        return ToolCallParser(self.calls, json.loads(tools)) if tools else None
