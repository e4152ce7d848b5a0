"""The prompts of queries: tokens, and pictures where the model sees."""

from __future__ import annotations

import asyncio

from swarm.errors import InvalidInput
from swarm.models.chat import plain_messages, plain_tools
from swarm.models.picture_parts import KIND, pictures_in
from swarm.models.picture_prompts import PicturePrompts, Prompt
from swarm.models.texts import Texts, list_of
from swarm.wire import swarm_pb2 as pb


class Prompts:
    """Makes them. `pictures`: None for a model of text alone."""

    def __init__(self, texts: Texts, vocabulary: int, pictures: PicturePrompts | None) -> None:
        self._texts = texts
        self._vocabulary = vocabulary
        self._pictures = pictures
        self._looking = asyncio.Lock()

    @property
    def sees(self) -> bool:
        """Whether there may be pictures."""
        return self._pictures is not None

    async def of(self, query: pb.Query) -> Prompt:
        """The prompt of a query. Raises InvalidInput."""
        if self._pictures is not None and KIND in query.messages:
            # They are made one after the other; those that wait keep no thread.
            async with self._looking:
                return await asyncio.to_thread(self._seen, self._pictures, query)
        return Prompt(await asyncio.to_thread(self._texts.prompt, query, self._vocabulary))

    def _seen(self, pictures: PicturePrompts, query: pb.Query) -> Prompt:
        messages, tools = list_of(query.messages, "messages"), list_of(query.tools, "tools")
        if not any(pictures_in(plain_messages(messages))):
            return Prompt(self._texts.prompt(query, self._vocabulary))
        prompt = pictures.prompt(messages, plain_tools(tools))
        if max(prompt.tokens) >= self._vocabulary:
            words = (
                f"messages: the model's processor makes token {max(prompt.tokens)} of a picture, of {self._vocabulary}"
            )
            raise InvalidInput(words, field="messages")
        return prompt
