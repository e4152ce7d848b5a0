"""A conversation about pictures: the model's own processor makes of it what the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swarm.cli.conversation import LONGEST, ChatOptions
from swarm.cli.screen import Screen, Streamer
from swarm.errors import ContextTooLong, InvalidInput
from swarm.models.pictures import open_picture


class SeeingResponder:
    """A conversation with a model that sees, whose first question is about pictures.

    Each turn is computed from its beginning, as the processor makes it; servers recognise what they computed before.
    """

    def __init__(
        self, model: Any, processor: Any, pictures: Sequence[Path], options: ChatOptions, screen: Screen
    ) -> None:
        self.model = model
        self.processor = processor
        self.options = options
        self.screen = screen
        self.messages: list[dict[str, Any]] = []
        if options.system is not None:
            self.messages.append({"role": "system", "content": [_text(options.system)]})
        self._pictures = [{"type": "image", "image": open_picture(path)} for path in pictures]
        if options.seed is not None:
            import torch

            torch.manual_seed(options.seed)

    def answer(self, text: str) -> None:
        """Answer on the screen. Raises SwarmError, after which it is as if `text` had not been said; KeyboardInterrupt,
        after which what was said till then is kept."""
        asked = {"role": "user", "content": [*self._pictures, _text(text)]}
        inputs = self._inputs([*self.messages, asked])
        streamer = Streamer(self._decode, self.screen.write)
        try:
            self.model.generate(
                **inputs, max_new_tokens=self._new_tokens(inputs), streamer=streamer, **self.options.sampling()
            )
        except KeyboardInterrupt:
            self._keep(asked, streamer.text)
            raise
        self._keep(asked, streamer.text)
        self.screen.end_line()
        self.screen.note(streamer.speed())

    def _inputs(self, messages: Sequence[dict[str, Any]]) -> Any:
        """What the model takes. Raises InvalidInput where the template or the processor refuses it."""
        try:
            return self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except Exception as error:  # templates and processors fail in ways of their own
            words = " ".join(str(error).split())[:300]
            raise InvalidInput(f"the model's processor refuses this: {type(error).__name__}: {words}") from error

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=True))

    def _new_tokens(self, inputs: Any) -> int:
        wanted = self.options.max_new_tokens or self.model.generation_config.max_new_tokens or LONGEST
        limit, prompt = self.model.context_length, int(inputs["input_ids"].shape[1])
        if limit is not None and prompt > limit:
            raise ContextTooLong(f"{prompt} tokens, pictures among them, are more than the model's {limit}")
        return wanted if limit is None else min(wanted, limit - prompt + 1)

    def _keep(self, asked: dict[str, Any], answer: str) -> None:
        self._pictures = []
        self.messages += [asked, {"role": "assistant", "content": [_text(answer)]}]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
