"""Several tokens per round trip: drafted tokens are sent ahead, and the model verifies them.

`SpeculativeDecoding` is a decoding method for transformers' own `generate(custom_generate=…)`. Drafted tokens travel
in windows, several of which may be on their way at once: a later window begins where an earlier one ends, long
before that was verified. The model's next token is chosen for each position in turn, exactly as without speculation:
by arg max, or drawn from the processed distribution with the same random numbers in the same order. A drafted token
counts if it is that token; at the first that is not, everything sent after it is void, and the chosen token goes on
from there. So the text is that of plain decoding, whatever the drafts are.

Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, accept a drafted token
with min(1, p/q). For a draft that is one certain token, q = 1, that is the same rate as here.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from swarm.errors import InvalidInput, UnsupportedModel
from swarm.models.ends.calls import all_rows, when_begun
from swarm.models.ends.remote_cache import RemoteLayer
from swarm.speculation.drafts import Drafter, StatesDrafter
from swarm.speculation.pacer import MOST, WINDOW, Pacer
from swarm.speculation.windows import Window, Windows

Outputs = tuple[torch.Tensor, torch.Tensor | None]
"""Of a window: logits `[rows, vocabulary]`, and what the model ended with `[rows, hidden_size]`, if wanted."""
THREADS = 2 * (MOST // WINDOW + 1)
"""Each window waits in one; those that are void end with the next step."""


class SpeculativeDecoding:
    """A decoding method with drafts of `drafter`, for one text. See `generate(custom_generate=…)` of transformers.

    `streamer`: the library does not hand its own on to a decoding method that it did not choose itself.

    After a call, `windows` and `rows` say how much was sent. Raises InvalidInput for batches, beams and a disabled
    cache, UnsupportedModel for blocks that cannot forget single positions.
    """

    def __init__(self, drafter: Drafter, streamer: Any = None) -> None:
        self.pacer = Pacer(drafter)
        self.streamer = streamer
        self.windows = self.rows = 0

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """`input_ids` `[1, T]` → as transformers' `_sample` returns it."""
        if input_ids.shape[0] != 1 or generation_config.num_beams > 1:
            raise InvalidInput("speculation goes with one text at a time, without beams: generate them one by one")
        if not model_kwargs.get("use_cache"):
            raise InvalidInput("speculation needs the cache: leave use_cache=True")
        text = _Text(input_ids, logits_processor, stopping_criteria, generation_config, streamer or self.streamer)
        with contextlib.ExitStack() as until_done:
            drafter, states = self.pacer.drafter, None
            if isinstance(drafter, StatesDrafter):
                states = until_done.enter_context(LastStates(model))
                with all_rows():
                    output: Any = model._prefill(input_ids, generation_config, model_kwargs)
                _show(drafter, states.take(), len(text), model_kwargs.get("attention_mask"))
            else:
                # As the library begins, whatever the cache holds already.
                output = model._prefill(input_ids, generation_config, model_kwargs)
            mask = model_kwargs.get("attention_mask")
            flight = _InFlight(model, output.past_key_values, mask, len(text), states)
            try:
                finished = text.extend(output.logits[0, -1])
                while not finished:
                    self._send_ahead(text, flight)
                    finished = self._verify(text, flight)
                flight.back_to(len(text) - 1)
            finally:
                flight.close()
        return text.result(output.past_key_values)

    def _send_ahead(self, text: _Text, flight: _InFlight) -> None:
        """Send what is certain, and drafts behind it, as many as pay."""
        self.pacer.drafter.learn(text.tokens)
        windows = flight.windows
        while True:
            certain = [] if windows else [(text.tokens[-1], None)]
            flying = windows.drafts
            drafts = self.pacer.drafts([*text.tokens, *flying], len(flying), text.room, windows.largest)
            if not certain and not drafts:
                return
            flight.send([*certain, *drafts])
            self.windows += 1
            self.rows += len(certain) + len(drafts)
            if not drafts or windows.full:
                return

    def _verify(self, text: _Text, flight: _InFlight) -> bool:
        """Take the outputs of the oldest window. True when the text is finished."""
        window, (logits, states) = flight.receive()
        drafter = self.pacer.drafter
        if window.alone:
            self.pacer.came_back(len(window.tokens), time.monotonic() - window.sent)
        following = flight.windows.following(window)
        for index, row in enumerate(logits):
            if states is not None and isinstance(drafter, StatesDrafter):
                drafter.see(states[index : index + 1], len(text) - 1)
            if text.extend(row):
                return True
            if index == len(following):
                return False
            token, kind = following[index]
            right = token == text.tokens[-1]
            self.pacer.verified(kind, right=right)
            if not right:
                flight.back_to(len(text) - 1)
                break
        else:
            flight.windows.confirm()
        return False


class _Text:
    """The text so far, and how its next token is chosen: as transformers' `_sample` does."""

    def __init__(
        self,
        input_ids: torch.Tensor,
        processors: Any,
        criteria: Any,
        config: Any,
        streamer: Any,
    ) -> None:
        self.ids = input_ids
        self.tokens: list[int] = input_ids[0].tolist()
        self._processors = processors
        self._criteria = criteria
        self._config = config
        self._streamer = streamer
        self._scores: tuple[torch.Tensor, ...] = ()
        self._logits: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def room(self) -> int:
        """How many more tokens can be of use: the last one need not be computed."""
        longest = self._criteria.max_length
        return MOST if longest is None else max(longest - len(self) - 1, 0)

    def extend(self, logits: torch.Tensor) -> bool:
        """Choose the next token from its logits `[vocabulary]`. True when the text is finished."""
        plain = logits.unsqueeze(0).to(copy=True, dtype=torch.float32, device=self.ids.device)
        scores = self._processors(self.ids, plain)
        self._keep(plain, scores)
        if self._config.do_sample:
            chosen = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            chosen = scores.argmax(dim=-1)
        self.ids = torch.cat([self.ids, chosen[:, None]], dim=-1)
        self.tokens.append(int(chosen))
        if self._streamer is not None:
            self._streamer.put(chosen.cpu())
        return bool(self._criteria(self.ids, self._scores).all())

    def _keep(self, logits: torch.Tensor, scores: torch.Tensor) -> None:
        if self._config.return_dict_in_generate and self._config.output_scores:
            self._scores += (scores,)
        if self._config.return_dict_in_generate and self._config.output_logits:
            self._logits += (logits,)

    def result(self, cache: Any) -> Any:
        """What `generate` returns."""
        if self._streamer is not None:
            self._streamer.end()
        if not self._config.return_dict_in_generate:
            return self.ids
        parts: dict[str, Any] = {"scores": self._scores or None, "logits": self._logits or None}
        return GenerateDecoderOnlyOutput(sequences=self.ids, past_key_values=cache, **parts)  # type: ignore[arg-type]


class _InFlight:
    """The windows of a text. Each forward of the model runs in a thread and waits there for the servers.

    `length`: tokens of the text when its last but one was computed; `states`: who hears what the model ends with.
    """

    def __init__(
        self, model: Any, cache: Any, mask: torch.Tensor | None, length: int, states: LastStates | None = None
    ) -> None:
        if not _can_rollback(cache):
            raise UnsupportedModel("blocks with a running state cannot forget single positions: no speculation here")
        # A local block behind the remote ones would see the windows in the order of their outputs.
        alone = not isinstance(cache.layers[-1], RemoteLayer)
        self.windows: Windows[Future[Outputs]] = Windows(1, MOST) if alone else Windows()
        self._model = model
        self._states = states
        self._cache = cache
        self._mask = mask
        self._before = cache.get_seq_length() - length
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="swarm-window")

    def send(self, tokens: list[tuple[int, int | None]]) -> None:
        """Begin the forward of these tokens; returns when the next may begin."""
        begun = threading.Event()
        inputs = self._inputs([token for token, _ in tokens])
        sent = time.monotonic()
        self.windows.sent(tokens, self._threads.submit(self._forward, inputs, begun.set), sent)
        begun.wait()

    def _forward(self, inputs: dict[str, Any], begun: Callable[[], None]) -> Outputs:
        try:
            with torch.no_grad(), when_begun(begun):
                logits: torch.Tensor = self._model(**inputs).logits[0]
                return logits, None if self._states is None else self._states.take()
        finally:
            begun()

    def _inputs(self, tokens: list[int]) -> dict[str, Any]:
        """What the model is called with: the padding of a prompt goes on to count."""
        device = self._model.device
        ids = torch.tensor([tokens], device=device)
        inputs = {"input_ids": ids, "past_key_values": self._cache, "use_cache": True, "return_dict": True}
        if self._mask is not None:
            columns = self._cache.get_seq_length() + len(tokens)
            mask = torch.nn.functional.pad(self._mask, (0, columns - self._mask.shape[1]), value=1)
            inputs["attention_mask"] = mask
            if self._takes_positions:
                inputs["position_ids"] = (mask.cumsum(-1) - 1)[:, -len(tokens) :]
        return inputs

    def receive(self) -> tuple[Window[Future[Outputs]], Outputs]:
        """Wait for the outputs of the oldest window. Raises what its forward raised."""
        window = self.windows.oldest()
        return window, window.outputs.result()

    def back_to(self, length: int) -> None:
        """Only the first `length` tokens of the text count as computed; what is on its way is void."""
        surplus = self._cache.get_seq_length() - self._before - length
        if surplus > 0:
            self._cache.crop(-surplus)
        self.windows.void()

    def close(self) -> None:
        """Wait for nobody."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class LastStates:
    """What the model ends with in forwards of each thread, behind its last norm, while it is entered."""

    def __init__(self, model: Any) -> None:
        self._decoder = model.get_decoder()
        self._heard = threading.local()
        self._hook: Any = None

    def __enter__(self) -> LastStates:
        self._hook = self._decoder.register_forward_hook(self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _hear(self, module: Any, args: Any, output: Any) -> None:
        pieces = vars(self._heard).setdefault("pieces", [])
        pieces.append(output[0][0].detach())

    def take(self) -> torch.Tensor:
        """Those of one row `[positions, hidden_size]` since they were taken last in this thread."""
        return torch.cat(vars(self._heard).pop("pieces"))


def _show(drafter: StatesDrafter, states: torch.Tensor, length: int, mask: torch.Tensor | None) -> None:
    """Show what the model ended with at a prompt's last positions, the text being `length` tokens, without padding."""
    first = length - len(states)
    if mask is not None and mask.ndim == 2 and (padded := mask[0, first:length].eq(0).nonzero()).numel():
        states = states[int(padded[-1]) + 1 :]
    drafter.see(states, length - len(states))


def _can_rollback(cache: Any) -> bool:
    return all(
        layer.session.can_rollback if isinstance(layer, RemoteLayer) else layer.is_croppable for layer in cache.layers
    )
