"""An answerer without a model: its texts are written down, a token a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from swarm.errors import InvalidInput, MissingBlocks, Refuted, SwarmError
from swarm.gateway.answers import Embedded
from swarm.types import ModelInfo
from swarm.wire import swarm_pb2 as pb


class Scripted:
    """Says `says` word by word, as far as it is let; of several texts the next one each time that it is asked, the last
    of them for ever. `gate`: what each word waits for; `stop`: the stop text that it pretends to have met."""

    def __init__(self, says: str | Sequence[str] = "one two three four", *, capacity: int = 1000) -> None:
        self.model = ModelInfo("key", "tiny", 4, 8, 100)
        self.says = says
        self.converses = True
        self.sees = False
        self.running = 0
        self.capacity = capacity
        self.missing: MissingBlocks | None = None
        self.error: SwarmError | None = None
        self.fails_after = 0
        self.refuted = 0
        """Answers that turn out wrong at their end."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[pb.Query] = []
        self.stop = ""
        self.ended = 0
        self.told = 0

    async def look(self) -> MissingBlocks | None:
        return self.missing

    async def embed(self, queries: Sequence[pb.Query], pooling: str) -> list[Embedded]:
        if self.error is not None:
            raise self.error
        self.asked += queries
        return [Embedded([0.6, 0.8 if pooling == "mean" else -0.8], 3) for _ in queries]

    async def count(self, query: pb.Query) -> int:
        return len(query.messages)

    async def answer(self, query: pb.Query) -> AsyncGenerator[pb.QueryReply, None]:
        self.asked.append(query)
        if self.error is not None and not self.fails_after:
            raise self.error
        if query.sampling.temperature > 50:
            raise InvalidInput("too hot")
        self.running += 1
        try:
            await self.gate.wait()
            yield pb.QueryReply(accepted=pb.Accepted(model="key", prompt_tokens=5, seed=query.sampling.seed))
            turns = [self.says] if isinstance(self.says, str) else self.says
            said = turns[min(len(self.asked), len(turns)) - 1].split(" ")
            words = said[: query.sampling.max_tokens or None]
            sent = 0
            for place, word in enumerate(words):
                await self.gate.wait()
                if self.error is not None and place == self.fails_after:
                    raise self.error
                text = word if place == 0 else " " + word
                sent += len(text.encode())
                delta = pb.Delta(tokens=[place], text=text, sent_bytes=sent)
                if query.sampling.logprobs:
                    top = [
                        pb.Logprob(token=i, logprob=-1.0 - i, text=b"t%d" % i)
                        for i in range(query.sampling.top_logprobs)
                    ]
                    delta.logprobs.add(token=place, logprob=-0.5, text=text.encode(), top=top)
                self.told += 1
                yield pb.QueryReply(delta=delta)
                await asyncio.sleep(0)
            if self.refuted:
                self.refuted -= 1
                raise Refuted("not right", 0, 2)
            short = len(words) < len(said)
            reason = pb.Finished.LENGTH if short else pb.Finished.STOP
            finished = pb.Finished(reason=reason, prompt_tokens=5, completion_tokens=len(words), stop=self.stop)
            yield pb.QueryReply(finished=finished)
        finally:
            self.running -= 1
            self.ended += 1
