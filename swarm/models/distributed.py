"""What a model whose blocks are elsewhere does beyond its class, and which of the class's methods it refuses."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)

from swarm.errors import ContextTooLong, InvalidInput, Refuted, UnsupportedModel
from swarm.models.ends.beginning import Beginning
from swarm.models.ends.best import deciding_logits
from swarm.models.ends.calls import ELSEWHERE, generating
from swarm.models.ends.hollow import Layers
from swarm.models.linear.elsewhere import RemoteHead, asking
from swarm.models.linear.head import FIXED, QuantizedHead
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.speculation.decoding import SpeculativeDecoding
from swarm.models.speculation.draft_model import ModelDrafter
from swarm.models.speculation.mtp_drafter import MtpDrafter
from swarm.models.speculation.mtp_load import load_mtp
from swarm.speculation.drafts import Drafter, NgramDrafter
from swarm.types import ModelInfo, Route

log = logging.getLogger(__name__)

REFUSED_METHODS = {
    "save_pretrained": "only a part of the model is here; copy the folder, or the name on the hub, that it came from",
    "push_to_hub": "only a part of the model is here; share the name that it came from",
    "save_distributed_checkpoint": "only a part of the model is here",
    "add_adapter": "call peft's get_peft_model(model, config)",
    "load_adapter": "call peft's PeftModel.from_pretrained(model, folder)",
    "generate_batch": "it keeps caches of its own; generate takes batches, and many threads may call it at once",
    "init_continuous_batching": "it keeps caches of its own; many threads may call generate at once",
    "continuous_batching_context_manager": "it keeps caches of its own; many threads may call generate at once",
    "prepare_distribute_model": "it is distributed in a way of its own",
    "maybe_distribute_model": "it is distributed in a way of its own",
    "to_empty": "its weights would be gone; load it anew on the device where it shall be",
}
"""Methods that would do something else here than they promise, and why or what to do instead."""
REFUSED_SETTINGS = {
    "output_attentions": "attention is computed elsewhere",
    "output_hidden_states": "the blocks are computed elsewhere",
    "assistant_early_exit": "the blocks cannot be left early; there is speculation=, draft_model= and assistant_model=",
    "use_mtp": 'there is speculation="mtp"',
}
"""Settings of generation that cannot be had where they are true."""
REFUSED_CACHES = ("paged", "quantized")
LAID_OUT = ("static", "offloaded", "hybrid", "sliding_window")
"""What names of caches begin with that differ only in where and how they keep things."""
ONE_GUESSER = ("assistant_model", "custom_generate", "prompt_lookup_num_tokens")
"""Ways to guess tokens, and take back what was wrong."""
DEFAULT_NEW_TOKENS = 20
"""As many as the library makes where nobody says how many."""
ARGUMENTS = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:]
"""What `generate` takes in order after its inputs."""


class Blocks(Protocol):
    """Where the blocks are."""

    route: Route | None
    parameters: int
    """Numbers in their weights."""

    @property
    def model(self) -> ModelInfo:
        """Whose blocks they are."""

    def generating(self, together: int, *, rollback: bool) -> AbstractContextManager[None]:
        """While a text is made; rows are `together` of one text; `rollback`: positions will be taken back."""


class Distributed:
    """What a distributed model does beyond its class."""

    remote_blocks: Blocks
    config: Any
    generation_config: Any

    @property
    def route(self) -> Route | None:
        """The route last in use; None before the first step."""
        return self.remote_blocks.route

    @property
    def context_length(self) -> int | None:
        """Positions that a sequence may have; None where the architecture sets no limit."""
        return self.remote_blocks.model.context_length

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Of the whole model, as in transformers; of the blocks elsewhere none can be trained."""
        here: int = super().num_parameters(only_trainable, exclude_embeddings)  # type: ignore[misc]
        modules: Iterator[Any] = self.modules()  # type: ignore[attr-defined]
        hollow = sum(each.numbers for each in modules if isinstance(each, Layers))
        return here + (0 if only_trainable else self.remote_blocks.parameters - hollow)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises InvalidInput where the head is on a grid, or at servers."""
        if head_parameters(self) and (args or kwargs):
            raise InvalidInput(f"resize_token_embeddings: {FIXED}")
        return super().resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; a head on a grid, or at servers, stays what it is."""
        if not head_parameters(self):
            super().tie_weights(*args, **kwargs)  # type: ignore[misc]

    def __copy__(self) -> Any:
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Its ends and settings are its own; the swarm is the same."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidInput(
            "pickle, torch.save: this model is connected to a swarm, and other processes connect by themselves: "
            "call from_pretrained there"
        )


class Generating(Distributed):
    """What a distributed model that makes texts does beyond its class."""

    further_tokens: FurtherTokens | None = None

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        speculation: str | None = None,
        draft_model: PreTrainedModel | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' own `generate`, which can also send guesses at the next tokens ahead, to be verified.

        `speculation="ngram"`: guesses are what followed the last few tokens when they stood in the text before.
        `speculation="mtp"`: by the model's own block that predicts further tokens, loaded here when it is first asked
        for; the hidden states of a prompt's positions come back for it.
        `draft_model`: guesses are made by a smaller model of the same vocabulary on this machine (or its name). How
        many are sent is adapted to how often they are right and to what they cost. The text is the same as without,
        also when it is sampled with the same seed.

        Where an audit finds a server wrong, all is generated once more without it, from the same random numbers; a
        streamer is given what differs behind what it has. With a cache of the caller's own that cannot be: Refuted.

        Raises ContextTooLong before any work where more is asked for than fits; what is only recommended (in
        generation_config.json) is cut instead, with a warning. Raises InvalidInput for what cannot be had, and with
        speculation for more than one text; UnsupportedModel where servers cannot take positions back.
        """
        options = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        settings = Settings(options.get("generation_config"), options, self.generation_config)
        _refuse(settings)
        _choose_cache(settings, options)
        _fit(settings, inputs, options, self.context_length)
        drafting = speculation is not None or draft_model is not None
        if drafting:
            _check_one_guesser(settings)
            _stop_at_strings(options)
        deciding = self._deciding(settings, inputs, options)
        rollback = drafting or any(settings.get(name) is not None for name in ONE_GUESSER)
        together = max(settings.get("num_beams") or 1, settings.get("num_return_sequences") or 1)
        begun = Beginning(options)
        while True:
            if drafting:
                vocabulary = self.config.get_text_config(decoder=True).vocab_size
                drafter = self._drafter(speculation, draft_model, vocabulary)
                options["custom_generate"] = SpeculativeDecoding(drafter, options.get("streamer"))
            try:
                holding = self.remote_blocks.generating(together, rollback=rollback)
                with holding, generating(), asking(deciding):
                    text = super().generate(inputs, **options)  # type: ignore[misc]
            except Refuted as refuted:
                begun.again(refuted)
            else:
                begun.done()
                return text

    def _deciding(self, settings: Settings, inputs: torch.Tensor | None, options: dict[str, Any]) -> int:
        """How many of the largest logits of a row decide, where the head is at servers; 0: all."""
        if not isinstance(self.get_output_embeddings(), RemoteHead):  # type: ignore[attr-defined]
            return 0
        _, width = _prompt(inputs, options)
        said = [_new_tokens(each, width) or DEFAULT_NEW_TOKENS for each in (settings.asked, settings.recommended)]
        return deciding_logits(settings.get, options, width + max(said))

    def _drafter(self, speculation: str | None, draft_model: PreTrainedModel | str | None, vocabulary: int) -> Drafter:
        if speculation != "mtp" or draft_model is not None:
            return _drafter(speculation, draft_model, vocabulary)
        if self.further_tokens is None:
            raise UnsupportedModel('speculation="mtp": this model was not loaded from a checkpoint')
        if isinstance(self.get_output_embeddings(), RemoteHead):  # type: ignore[attr-defined]
            raise UnsupportedModel('speculation="mtp": it needs the head here; leave out ends that servers have')
        return MtpDrafter(self.further_tokens.of(self))


class FurtherTokens:
    """What a checkpoint has to predict further tokens with, loaded when it is first asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._loaded: Any = None
        self._lock = threading.Lock()

    def of(self, model: Any) -> Any:
        """Beside the ends of `model`. Raises UnsupportedModel, BadCheckpoint."""
        with self._lock:
            if self._loaded is None:
                self._loaded = load_mtp(model, self._checkpoint)
            return self._loaded

    def __deepcopy__(self, memo: dict[int, Any]) -> FurtherTokens:
        """Of the twin's ends."""
        return FurtherTokens(self._checkpoint)


def head_parameters(model: Any) -> int:
    """Numbers of a head that is on a grid, or at servers, which no parameter counts."""
    head = model.get_output_embeddings()
    return head.out_features * head.in_features if isinstance(head, QuantizedHead | RemoteHead) else 0


def _refusing(name: str, why: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise InvalidInput(f"{name}: {ELSEWHERE}: {why}")

    refuse.__name__, refuse.__doc__ = name, f"Raises InvalidInput: {why}."
    return refuse


for _name, _why in REFUSED_METHODS.items():
    setattr(Distributed, _name, _refusing(_name, _why))


def distributed(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The transformers class with what swarm adds; keeps its name, so that it prints as what it is."""
    adds = Generating if issubclass(kind, GenerationMixin) else Distributed
    return type(kind.__name__, (adds, kind), {"__module__": kind.__module__})


# ---- how to generate -------------------------------------------------------------------------------------------


class Settings:
    """How to generate: what was asked for, by an argument or in a configuration that was given, and what the model's
    authors recommend."""

    def __init__(self, given: GenerationConfig | None, options: dict[str, Any], recommended: GenerationConfig) -> None:
        self._given = given
        self._options = options
        self._recommended = recommended

    def asked(self, name: str) -> Any:
        """What the caller says; None where nothing."""
        found = self._options.get(name)
        return getattr(self._given, name, None) if found is None else found

    def recommended(self, name: str) -> Any:
        """What the model's authors say; None where nothing."""
        return getattr(self._recommended, name, None)

    def get(self, name: str) -> Any:
        """What the caller says, else the authors."""
        return self.recommended(name) if (found := self.asked(name)) is None else found


def _refuse(settings: Settings) -> None:
    for name, why in REFUSED_SETTINGS.items():
        if settings.get(name):
            raise InvalidInput(f"{name} is not available: {why}")
    if (kind := settings.get("cache_implementation")) in REFUSED_CACHES:
        raise InvalidInput(f"cache_implementation={kind!r}: the caches are the servers', leave it out")


def _choose_cache(settings: Settings, options: dict[str, Any]) -> None:
    """Where caches are and how they grow is the servers' business: what is kept here has no tensors to lay out."""
    if str(settings.get("cache_implementation")).startswith(LAID_OUT):
        options["cache_implementation"] = "dynamic"
    if getattr(options.get("past_key_values"), "is_compileable", False):
        kind = type(options["past_key_values"]).__name__
        raise InvalidInput(f"past_key_values: no {kind} here, the caches are the servers'; leave it out")


def clean(recommended: GenerationConfig) -> None:
    """Take out what a model's authors recommend and cannot be had here, with a warning."""
    for name in REFUSED_SETTINGS:
        if getattr(recommended, name, None):
            log.warning("generation_config.json: %s=%r is left out", name, getattr(recommended, name))
            setattr(recommended, name, None)
    if recommended.cache_implementation in REFUSED_CACHES:
        log.warning("generation_config.json: cache_implementation=%r is left out", recommended.cache_implementation)
        recommended.cache_implementation = None


def _check_one_guesser(settings: Settings) -> None:
    for name in ONE_GUESSER:
        if settings.get(name) is not None:
            raise InvalidInput(f"{name} and speculation or draft_model both say how to go on; leave one out")


def _fit(settings: Settings, inputs: torch.Tensor | None, options: dict[str, Any], limit: int | None) -> None:
    """Raises ContextTooLong where what is asked for exceeds `limit`; cuts in `options` what is recommended."""
    if limit is None:
        return
    prompt, width = _prompt(inputs, options)
    if prompt > limit:
        raise ContextTooLong(f"{prompt} prompt positions do not fit in this model's {limit} positions")
    room = limit + 1 - prompt  # the last token need not be computed
    new = _new_tokens(settings.asked, width)
    if new is not None and new > room:
        raise ContextTooLong(
            f"{prompt} prompt positions and {new} new tokens do not fit in this model's {limit} positions"
        )
    if new is None:
        new = _new_tokens(settings.recommended, width) or DEFAULT_NEW_TOKENS
        if new > room:
            log.warning("%d new tokens are recommended or usual, and %d fit in this model's context", new, room)
            options["max_new_tokens"] = room


def _new_tokens(said: Callable[[str], Any], width: int) -> int | None:
    """How many tokens somebody says shall come after a prompt of `width` columns; at least 1."""
    if (new := said("max_new_tokens")) is not None:
        return max(int(new), 1)
    length = said("max_length")
    return None if length is None else max(int(length) - width, 1)


def _prompt(inputs: torch.Tensor | None, options: dict[str, Any]) -> tuple[int, int]:
    """The positions of the longest prompt, and the columns of all."""
    ids = inputs if inputs is not None else options.get("input_ids")
    embeddings, mask = options.get("inputs_embeds"), options.get("attention_mask")
    width = 1 if ids is None or ids.ndim < 2 else int(ids.shape[1])
    if ids is None and embeddings is not None:
        width = int(embeddings.shape[1])
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or not mask.numel():
        return width, width
    return int(mask.bool().sum(dim=-1).max()), width


def _drafter(speculation: str | None, draft_model: PreTrainedModel | str | None, vocabulary: int) -> Drafter:
    """Where the guesses come from. Raises InvalidInput."""
    if draft_model is None:
        if speculation != "ngram":
            raise InvalidInput(f'speculation={speculation!r}: there are "ngram" and "mtp", or a draft_model')
        return NgramDrafter()
    if speculation is not None:
        raise InvalidInput("guesses come from the text (speculation) or from a model (draft_model), not from both")
    if isinstance(draft_model, str):
        draft_model = AutoModelForCausalLM.from_pretrained(draft_model)
    return ModelDrafter(draft_model, vocabulary)


def _stop_at_strings(options: dict[str, Any]) -> None:
    """Make a stopping criterion of `stop_strings`, for which the library would miss the tokenizer (see above)."""
    strings, tokenizer = options.get("stop_strings"), options.pop("tokenizer", None)
    if strings is not None and tokenizer is not None:
        del options["stop_strings"]
        criteria = [*(options.get("stopping_criteria") or ()), StopStringCriteria(tokenizer, strings)]
        options["stopping_criteria"] = StoppingCriteriaList(criteria)
