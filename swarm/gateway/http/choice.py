"""One answer as it comes, for whichever API tells it."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, field

from swarm.models.tool_calls import ToolCall, ToolCallParser
from swarm.wire import swarm_pb2 as pb

REASONS = {pb.Finished.STOP: "stop", pb.Finished.LENGTH: "length", pb.Finished.TOOL_CALLS: "tool_calls"}


@dataclass(slots=True)
class Choice:
    """One answer as far as it has come. `parser`: where tools may be called."""

    index: int
    parser: ToolCallParser | None = None
    text: str = ""
    logprobs: list[pb.Logprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Where in the text the token of each of `logprobs` begins, in characters; one that goes on with a character: where
    that begins."""
    calls: list[ToolCall] = field(default_factory=list)
    reason: str | None = None
    stop: str = ""
    """The stop text that ended it."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seed: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _length: int = 0

    def take(self, reply: pb.QueryReply) -> str:
        """Take in one reply; returns the text that may be shown now."""
        match reply.WhichOneof("kind"):
            case "accepted":
                self.prompt_tokens, self.seed = reply.accepted.prompt_tokens, reply.accepted.seed
            case "delta":
                self._locate(reply.delta.logprobs)
                self.completion_tokens += len(reply.delta.tokens)
                return self._show(reply.delta.text if self.parser is None else self.parser.add(reply.delta.text))
            case "finished":
                return self._end(reply.finished)
        return ""

    def _locate(self, logprobs: Iterable[pb.Logprob]) -> None:
        for told in logprobs:
            self.logprobs.append(told)
            self.offsets.append(self._length)
            self._length += len(self._decoder.decode(told.text))

    def _end(self, finished: pb.Finished) -> str:
        self.completion_tokens = finished.completion_tokens
        self.reason, self.stop = REASONS[finished.reason], finished.stop
        if self.parser is None:
            return ""
        rest, self.calls = self.parser.end()
        if self.calls:
            self.reason = "tool_calls"
        return self._show(rest)

    def _show(self, text: str) -> str:
        self.text += text
        return text
