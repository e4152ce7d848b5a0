"""The ends of a model, before its first block and after its last, for rows of many sequences at once.

The library's own code runs both, in one pass each over all rows: a block that shows what comes to it ends the first,
one that gives back what the real blocks have computed stands in the second.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from swarm.errors import InvalidInput
from swarm.models.ends.calls import current
from swarm.models.ends.columns import places
from swarm.models.ends.load import interface, returned
from swarm.models.ends.remote import RemoteSpan, rearrange
from swarm.models.ends.remote_cache import RemoteLayer, place_bytes

TOLERANCE = 1e-4


class _Reached(Exception):
    """Hidden states `[1, T, hidden_size]` have come to where the blocks would be, with these positions."""

    def __init__(self, hidden: torch.Tensor, positions: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.positions = positions


@dataclass(frozen=True, slots=True)
class Seen:
    """A prompt with pictures, ready for the first block.

    `hidden`: its hidden states; `places`: where its positions stand, as `Rows` has it; `shift`: by how much those
    behind it stand further on than they are counted.
    """

    hidden: bytes
    places: bytes
    shift: int


def _nobody() -> Any:
    raise InvalidInput("the ends of a model open no sessions")


class _Gap(RemoteSpan):
    """Where the blocks would be. `given`: what they have computed; None: show what comes to them."""

    given: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.given is not None:
            return returned(self.given if self.shape is None else self.shape.hidden(self.given), self.returns_tuple)
        rows = hidden_states if self.shape is None else self.shape.rows(hidden_states, self._ids(kwargs))
        raise _Reached(rows, current.call.positions)


class Ends:
    """Embeddings and head of a model without blocks (`load_ends`). For one thread at a time.

    What runs before the first block ends with an exception where that block would be: it is the one way out of the
    library's forward that every architecture has, and it leaves out whatever comes after the blocks.

    Raises UnsupportedModel for a model that takes no hidden states from elsewhere.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.dtype: torch.dtype = model.dtype
        width, shape = interface(model)
        self.row_numbers = shape.size
        """Of a position, as it goes to the blocks."""
        self._gap = _Gap(_nobody, returns_tuple=width)
        rearrange(model, [self._gap], [0])
        self._takes_positions = "position_ids" in inspect.signature(self.model.forward).parameters
        self.batchable = self._agree()
        """Whether one pass may embed tokens of several sequences, each with its own positions."""

    @property
    def vocabulary(self) -> int:
        """Tokens that there are."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @torch.inference_mode()
    def embed(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> list[bytes]:
        """Hidden states of each sequence's tokens, of which the first has position `starts[i]`, for the first block."""
        if self.batchable and len(tokens) > 1:
            return _split(self._embed_together(tokens, starts), [len(each) for each in tokens])
        return [_bytes(self._embed_one(each, start)) for each, start in zip(tokens, starts, strict=True)]

    @torch.inference_mode()
    def see(self, tokens: Sequence[int], pictures: Mapping[str, Any]) -> Seen:
        """A prompt in which tokens stand for pictures, by the model's own code for them; `pictures`: what its processor
        made of these. Where the next token would stand, the model says itself.

        Raises InvalidInput for pictures that the model refuses, or whose pieces see each other both ways.
        """
        given = {name: self._cast(value) for name, value in pictures.items()}
        try:
            prompt = self._reach_behind(0, tokens, given)
        except InvalidInput:
            raise
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            words = " ".join(str(error).split())[:300]
            raise InvalidInput(f"messages: the model refuses these pictures: {words}", field="messages") from error
        # Behind a mask of all that was, some models give the positions of all that was.
        behind = self._reach_behind(len(tokens), tokens[-1:], {"attention_mask": None})
        none, real, one = (torch.ones(1, count, dtype=torch.bool) for count in (0, len(tokens), 1))
        how = self._gap.habits
        known, (placed,) = places(prompt.positions, none, real, [None], how)
        _, (next_place,) = places(behind.positions, real, one, known, how)
        shift = 0 if next_place is None else int(next_place.max()) - len(tokens)
        if next_place is not None and int(next_place.min()) != int(next_place.max()):
            raise InvalidInput(
                "messages: behind pictures, this model's tokens stand at several places", field="messages"
            )
        return Seen(_bytes(prompt.hidden[0]), place_bytes(placed), shift)

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    @torch.inference_mode()
    def logits(self, rows: Sequence[bytes]) -> torch.Tensor:
        """Of positions whose hidden states the last block gave, one each: `[len(rows), vocabulary]`, float32."""
        hidden = torch.frombuffer(bytearray(b"".join(rows)), dtype=self.dtype).view(1, len(rows), -1)
        return self._head(hidden)

    @torch.inference_mode()
    def pooled(self, rows: bytes, count: int) -> list[float]:
        """The mean over `count` positions whose hidden states the last block gave, behind the last norm, made to length
        1: `[hidden_size]`."""
        self._gap.given = torch.frombuffer(bytearray(rows), dtype=self.dtype).view(1, count, -1)
        try:
            ids = torch.zeros(1, count, dtype=torch.long)
            normed = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()
        finally:
            self._gap.given = None
        return torch.nn.functional.normalize(normed.mean(dim=0), dim=0).tolist()

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        self._gap.given = hidden
        try:
            output = self.model(input_ids=torch.zeros(1, hidden.shape[1], dtype=torch.long), use_cache=False)
        finally:
            self._gap.given = None
        return output.logits[0].float()  # type: ignore[no-any-return]

    def _embed_together(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([[token for each in tokens for token in each]])
        spans = [range(start, start + len(each)) for each, start in zip(tokens, starts, strict=True)]
        positions = torch.tensor([[position for span in spans for position in span]])
        options = {"position_ids": positions} if self._takes_positions else {}
        return self._reach(lambda: self.model(input_ids=ids, use_cache=False, **options)).hidden[0]

    def _embed_one(self, tokens: Sequence[int], start: int) -> torch.Tensor:
        """As the library embeds them behind a cache of `start` positions."""
        return self._reach_behind(start, tokens, {}).hidden[0]

    def _reach_behind(self, start: int, tokens: Sequence[int], given: Mapping[str, Any]) -> _Reached:
        cache: Any = DynamicCache()
        cache.layers[:] = [RemoteLayer.computed_elsewhere(start)]
        mask = torch.ones(1, start + len(tokens), dtype=torch.long)
        options: dict[str, Any] = {"past_key_values": cache, "attention_mask": mask, "use_cache": True, **given}
        return self._reach(lambda: self.model(input_ids=torch.tensor([list(tokens)]), **options))

    def _reach(self, run: Callable[[], object]) -> _Reached:
        try:
            run()
        except _Reached as reached:
            return reached
        raise AssertionError("the model has run without its blocks")

    @torch.inference_mode()
    def _agree(self) -> bool:
        """Try two strangers in one pass."""
        texts, starts = [[1, 2, 3], [2, 1]], [0, 5]
        with contextlib.suppress(Exception):
            together = self._embed_together(texts, starts)
            alone = torch.cat([self._embed_one(text, start) for text, start in zip(texts, starts, strict=True)])
            return torch.allclose(together, alone, rtol=TOLERANCE, atol=TOLERANCE * float(alone.abs().max()))
        return False


def _split(hidden: torch.Tensor, counts: Sequence[int]) -> list[bytes]:
    return [_bytes(part) for part in torch.split(hidden, list(counts))]


def _bytes(hidden: torch.Tensor) -> bytes:
    return hidden.contiguous().view(torch.uint8).numpy().tobytes()
