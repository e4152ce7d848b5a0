"""A transformers model whose blocks run in a swarm: `from_pretrained`, then `generate` as on any model.

Only embeddings, final norm and head are loaded (and `local_blocks`, if asked for). The model is an instance of
transformers' own class, its layers are one `RemoteSpan`, and the user-visible session is its `past_key_values`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteriaList, StopStringCriteria

from swarm.client.session import Notice, Session
from swarm.client.swarm import Swarm, connect
from swarm.client.view import View
from swarm.config import ClientConfig
from swarm.errors import ContextTooLong, InvalidInput, UnsupportedModel
from swarm.models.blocks import find_blocks
from swarm.models.ends.calls import generating
from swarm.models.ends.load import load_ends, returns_tuple
from swarm.models.ends.remote import RemoteSpan, rearrange
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.cost import describe
from swarm.models.speculation.decoding import SpeculativeDecoding
from swarm.models.speculation.draft_model import ModelDrafter
from swarm.speculation.drafts import Drafter, NgramDrafter
from swarm.types import ModelInfo, Route, Rows, Span
from swarm.wire import swarm_pb2 as pb


class BlockingSession:
    """A session of the network thread, for the thread that runs the model."""

    def __init__(self, swarm: Swarm, session: Session) -> None:
        self._swarm = swarm
        self._session = session

    @property
    def can_rollback(self) -> bool:
        return self._session.can_rollback

    def begin(self, rows: Sequence[Rows], operations: Sequence[pb.Operation]) -> Callable[[], list[bytes]]:
        loop = self._swarm.loop
        step = loop.start(self._session.step(rows, operations))
        return lambda: loop.wait(step)

    def close(self) -> None:
        self._swarm.end(self._session)


class _Begun(threading.local):
    """The sessions that this thread began in the call of `generate` that is under way; None outside of one."""

    sessions: list[BlockingSession] | None = None


class RemoteBlocks:
    """Where a model's remote blocks are: opens sessions on them and knows the last route."""

    def __init__(self, swarm: Swarm, view: View, span: Span) -> None:
        self.swarm = swarm
        self.view = view
        self.span = span
        self.route: Route | None = None
        self.on_notice: Callable[[Notice], None] | None = None
        self._begun = _Begun()

    def open(self) -> BlockingSession:
        """Begin a session; servers are asked with its first step."""
        session = BlockingSession(self.swarm, self.swarm.session(self.view, self.span, self._hear))
        if self._begun.sessions is not None:
            self._begun.sessions.append(session)
        return session

    @contextmanager
    def freeing(self) -> Iterator[None]:
        """When this fails, the sessions that it began end at once, however long a traceback keeps their caches."""
        outer, self._begun.sessions = self._begun.sessions, []
        try:
            yield
        except BaseException:
            for session in self._begun.sessions:
                session.close()
            raise
        finally:
            self._begun.sessions = outer

    def _hear(self, notice: Notice) -> None:
        self.route = notice.route or self.route
        if self.on_notice is not None:
            self.on_notice(notice)


class DistributedModelForCausalLM:
    """Any decoder-only causal LM of transformers, its blocks in a swarm. Not instantiated: see `from_pretrained`."""

    architecture: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        initial_peers: str | Sequence[str] = (),
        swarm: Swarm | None = None,
        revision: str | None = None,
        token: str | None = None,
        dtype: str | torch.dtype = "auto",
        local_blocks: str | Span | None = None,
        on_notice: Callable[[Notice], None] | None = None,
        progress: bool = True,
        **options: Any,
    ) -> Any:
        """Load what stays here of a model, and connect it to the swarm that hosts the rest.

        `name_or_path`, `revision` and `token` as in transformers. `dtype`: of the hidden states, which must be that
        of the servers; "auto" is the checkpoint's own. `local_blocks`: blocks at the beginning or the end to keep
        here, e.g. "0:2". `on_notice` hears of routes, reroutes and waiting, in the network's thread. `progress`: show
        bars while loading. Further options are fields of ClientConfig, e.g. `max_wait`, the seconds to wait for
        blocks that nobody hosts (None: for ever).

        Returns an instance of transformers' class for the architecture. Its `generate` raises ContextTooLong before
        any work, MissingBlocks after `max_wait`; failures of servers do not reach the caller.
        Raises ModelNotFound, BadCheckpoint, UnsupportedModel, InvalidInput, and what `connect` raises.
        """
        config = _client_config(options)
        kept = Span.parse(local_blocks) if isinstance(local_blocks, str) else local_blocks
        checkpoint = open_checkpoint(name_or_path, token, revision)
        cls._check_architecture(checkpoint.config.model_type)
        compute = None if dtype == "auto" else dtype
        info = describe(checkpoint, dtype=compute).info
        _remote_span(kept, info.blocks)
        model, _ = load_ends(checkpoint, dtype=compute, local_blocks=kept, progress=progress)
        return attach(model, swarm or connect(initial_peers), info, config, kept, on_notice=on_notice)

    @classmethod
    def _check_architecture(cls, model_type: str) -> None:
        if cls.architecture is not None and model_type != cls.architecture:
            raise UnsupportedModel(
                f"this is a {model_type} model, not {cls.architecture}: use DistributedModelForCausalLM"
            )


class DistributedLlama(DistributedModelForCausalLM):
    """A Llama whose blocks run in a swarm. Raises UnsupportedModel for other architectures."""

    architecture = "llama"


def attach(
    model: PreTrainedModel,
    swarm: Swarm,
    info: ModelInfo,
    config: ClientConfig,
    local_blocks: Span | None = None,
    *,
    on_notice: Callable[[Notice], None] | None = None,
) -> PreTrainedModel:
    """Give a model that has only its `local_blocks` the rest of its blocks, remotely. Raises InvalidInput."""
    remote = _remote_span(local_blocks, info.blocks)
    row_bytes = info.hidden_size * model.dtype.itemsize
    view = swarm.view(info, str(model.dtype).removeprefix("torch."), row_bytes, config)
    blocks = RemoteBlocks(swarm, view, remote)
    blocks.on_notice = on_notice
    span = RemoteSpan(blocks.open, returns_tuple=returns_tuple(model))
    local = list(find_blocks(model).layers)
    originals = [*range(remote.first), remote.first, *range(remote.last, info.blocks)]
    rearrange(model, [*local[: remote.first], span, *local[remote.first :]], originals)
    model.__class__ = _distributed(type(model))
    setattr(model, "remote_blocks", blocks)  # noqa: B010 - nn.Module's annotations know only tensors and modules
    return model


def _remote_span(local: Span | None, blocks: int) -> Span:
    """The blocks that are not local. Raises InvalidInput unless they are one run."""
    if local is None:
        return Span(0, blocks)
    if local.last > blocks or (local.first > 0 and local.last < blocks) or len(local) == blocks:
        raise InvalidInput(f"local_blocks {local} must be at the beginning or the end of the {blocks} blocks, not all")
    return Span(local.last, blocks) if local.first == 0 else Span(0, local.first)


def _client_config(options: dict[str, Any]) -> ClientConfig:
    known = {field.name for field in dataclasses.fields(ClientConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InvalidInput(f"unknown options {unknown}; beyond transformers' own there are {sorted(known)}")
    return ClientConfig(**options)


class _Distributed:
    """What a distributed model does beyond its class."""

    remote_blocks: RemoteBlocks
    config: Any
    generation_config: Any

    @property
    def route(self) -> Route | None:
        """The route last in use; None before the first step."""
        return self.remote_blocks.route

    @property
    def context_length(self) -> int | None:
        """Positions that a sequence may have; None where the architecture sets no limit."""
        return self.remote_blocks.view.model.context_length

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
        `draft_model`: guesses are made by a smaller model of the same vocabulary on this machine (or its name). How
        many are sent is adapted to how often they are right and to what they cost. The text is the same as without,
        also when it is sampled with the same seed.

        Raises ContextTooLong before any work, see `from_pretrained`; with speculation InvalidInput for more than one
        text, and UnsupportedModel where blocks keep a running state.
        """
        self._check_length(inputs if inputs is not None else kwargs.get("input_ids"), kwargs)
        if speculation is not None or draft_model is not None:
            vocabulary = self.config.get_text_config(decoder=True).vocab_size
            drafter = _drafter(speculation, draft_model, vocabulary)
            kwargs["custom_generate"] = SpeculativeDecoding(drafter, kwargs.get("streamer"))
            _stop_at_strings(kwargs)
        with self.remote_blocks.freeing(), generating():
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _check_length(self, inputs: torch.Tensor | None, options: dict[str, Any]) -> None:
        limit = self.context_length
        if limit is None or inputs is None:
            return
        mask = options.get("attention_mask")
        real = inputs.shape[-1:] if mask is None or mask.ndim != 2 else mask.sum(dim=-1).tolist()
        prompt, new = int(max(real)), self._new_tokens(inputs.shape[-1], options)
        if prompt + new - 1 > limit:
            raise ContextTooLong(
                f"{prompt} prompt positions and {new} new tokens do not fit in this model's {limit} positions"
            )

    def _new_tokens(self, width: int, options: dict[str, Any]) -> int:
        """How many tokens are asked for after a prompt of `width` columns; at least 1."""
        config = options.get("generation_config") or self.generation_config
        new = options.get("max_new_tokens") or config.max_new_tokens
        if new is None:
            new = (options.get("max_length") or config.max_length or 0) - width
        return max(int(new), 1)


def _drafter(speculation: str | None, draft_model: PreTrainedModel | str | None, vocabulary: int) -> Drafter:
    """Where the guesses come from. Raises InvalidInput."""
    if draft_model is None:
        if speculation != "ngram":
            raise InvalidInput(f'speculation={speculation!r}: there is "ngram", or a draft_model')
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
        criteria = [*options.get("stopping_criteria", ()), StopStringCriteria(tokenizer, strings)]
        options["stopping_criteria"] = StoppingCriteriaList(criteria)


def _distributed(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The transformers class with what swarm adds; keeps its name, so that it prints and saves as what it is."""
    return type(kind.__name__, (_Distributed, kind), {"__module__": kind.__module__})
