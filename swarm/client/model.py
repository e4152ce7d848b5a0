"""A transformers model whose blocks run in a swarm: `from_pretrained`, then `generate` as on any model.

Only embeddings, final norm and head are loaded (and `local_blocks`, if asked for). The model is an instance of
transformers' own class, its layers are one `RemoteSpan`, and the user-visible session is its `past_key_values`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from swarm.client.remote_blocks import BlockingTraining, RemoteBlocks
from swarm.client.session import Notice
from swarm.client.swarm import Swarm, connect
from swarm.config import REMOTE, ClientConfig
from swarm.errors import InvalidInput, UnsupportedModel
from swarm.models.arguments import LOADING_INFO, sort
from swarm.models.blocks import find_blocks, leading_blocks
from swarm.models.distributed import FurtherTokens, clean, distributed, head_parameters
from swarm.models.ends.classes import watch_classes
from swarm.models.ends.hollow import hollow_blocks
from swarm.models.ends.load import connect_ends, interface, load_ends
from swarm.models.ends.remote import RemoteSpan, rearrange
from swarm.models.linear.elsewhere import RemoteHead
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.cost import Description, describe
from swarm.models.loading.form import Form, classifies, only_sees
from swarm.models.lora import check_gradients
from swarm.types import ModelInfo, Span

log = logging.getLogger(__name__)


class DistributedModelForCausalLM:
    """Any decoder-only causal LM of transformers, its blocks in a swarm. Not instantiated: see `from_pretrained`."""

    architecture: str | None = None
    form = Form.TEXT

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        initial_peers: str | Sequence[str] = (),
        swarm: Swarm | None = None,
        dtype: str | torch.dtype | None = None,
        local_blocks: str | Span | None = None,
        head: str | None = None,
        embeddings: str | None = None,
        on_notice: Callable[[Notice], None] | None = None,
        progress: bool = True,
        **options: Any,
    ) -> Any:
        """Load what stays here of a model, and connect it to the swarm that hosts the rest.

        The model's name or folder, and what transformers' `from_pretrained` takes: `revision`, `token`, `subfolder`,
        `variant`, `cache_dir`, `local_files_only`, `config` and others are as there; what cannot be had is refused
        by name. `dtype`: of the hidden states, which must be that of the servers; "auto" is the checkpoint's own.
        `local_blocks`: blocks at the beginning or the end to keep here, e.g. "0:2". `head`: where the head is, "memory"
        or "disk", or the grid that it is on, "file" (the checkpoint's own), "int8" or "int4", which is nearly the same
        model; None: on the file's grid where the blocks are, else in memory if it fits there. "remote": at servers that
        have it (`swarm-serve --serve-ends`), which give the largest logits where no others decide, else all;
        `embeddings="remote"`: these, too, which else stay on disk. `on_notice` hears of
        routes, reroutes and waiting, in the network's thread. `progress`: show bars while loading. Further options are
        fields of ClientConfig, e.g. `max_wait`, the seconds to wait for blocks that nobody hosts (None: for ever), or
        of the model's configuration, such as `use_cache`.

        Returns an instance of transformers' class for the architecture. Its `generate` raises ContextTooLong before
        any work, MissingBlocks after `max_wait`; failures of servers do not reach the caller.
        Raises ModelNotFound, BadCheckpoint, UnsupportedModel, InvalidInput, NotEnoughMemory before anything is loaded
        that does not fit, and what `connect` raises.
        """
        arguments = sort({"dtype": dtype, **options})
        cls._check_vocabulary(head=head, embeddings=embeddings)
        checkpoint = cls._as_asked(arguments.open(pretrained_model_name_or_path))
        config = _client_config(arguments.others, checkpoint.config)
        _check_head(head, config)
        kept = cls._kept(local_blocks, checkpoint.config)
        cost = describe(checkpoint, dtype=arguments.dtype, quantization=config.quantization)
        config = dataclasses.replace(config, quantization=cost.quantization)
        remote = _remote_span(kept, cost.info.blocks)
        how: dict[str, Any] = {"dtype": cost.dtype, "quantization": cost.quantization, "device": arguments.device}
        model, _ = load_ends(checkpoint, local_blocks=kept, head=head, embeddings=embeddings, progress=progress, **how)
        begun = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if begun:
            log.warning("%s has no %s: it is new, and to be trained", checkpoint.name, ", ".join(sorted(begun)))
        if arguments.generation_config is not None:
            model.generation_config = arguments.generation_config
        parameters = _parameters(cost, remote) + (0 if cost.tied else head_parameters(model))
        # As in transformers: adapters are saved with the name of what they are for.
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        joined = swarm or connect(initial_peers)
        told: dict[str, Any] = {"on_notice": on_notice, "parameters": parameters, "each": cost.parameters}
        model = attach(model, joined, cost.info, config, kept, **told)
        vars(model)["further_tokens"] = FurtherTokens(checkpoint)
        return (model, _loading_info(begun)) if arguments.output_loading_info else model

    @classmethod
    def _check_vocabulary(cls, **ends: str | None) -> None:
        """Raises InvalidInput for wishes about ends that only models of a vocabulary have."""
        for name, wish in ends.items():
            if wish is not None and not cls.form.is_of_text:
                raise InvalidInput(
                    f"{name}={wish!r} is where a vocabulary is: a {cls.form.value} has none, leave it out"
                )

    @classmethod
    def _kept(cls, local_blocks: str | Span | None, config: PretrainedConfig) -> Span | None:
        """The blocks that stay here."""
        if local_blocks is None:
            return leading_blocks(config) if cls.form is Form.SEEING else None
        return Span.parse(local_blocks) if isinstance(local_blocks, str) else local_blocks

    @classmethod
    def _as_asked(cls, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint, for this class. Raises UnsupportedModel."""
        if cls.form is not Form.SEEING and only_sees(checkpoint.config):
            name = checkpoint.config.model_type
            raise UnsupportedModel(f"{name} is a model of images and text: use DistributedModelForImageTextToText")
        if cls.architecture not in (None, checkpoint.config.model_type):
            name = checkpoint.config.model_type
            raise UnsupportedModel(f"this is a {name} model, not {cls.architecture}: use DistributedModelForCausalLM")
        return checkpoint.read_as(cls.form)


class DistributedModelForImageTextToText(DistributedModelForCausalLM):
    """Any model of images and text in transformers whose text part is a decoder, its blocks in a swarm.

    What looks at images, and puts what it sees among the embeddings of the text, is loaded here and is the library's
    own code; so `processor(text=, images=)` and `generate(**inputs)` are as anywhere. Where what is seen is also added
    to the outputs of the first blocks (Qwen3-VL), these are here too, unless `local_blocks` says otherwise.
    """

    form = Form.SEEING


class DistributedModel(DistributedModelForCausalLM):
    """Any decoder-only model of transformers without its head, its blocks in a swarm: its outputs are hidden states
    `[batch, positions, hidden_size]` behind the last norm. Columns of padding hold nothing meant to be used."""

    form = Form.STATES


class DistributedModelForSequenceClassification(DistributedModelForCausalLM):
    """Any decoder-only model of transformers with a head that classifies whole texts, its blocks in a swarm.

    Out of a checkpoint of another head the head is new: `num_labels=`, `id2label=` or `problem_type=` say for what.
    It is drawn from torch's random numbers as in transformers, and is all that can be trained at first.
    """

    form = Form.CLASSES


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
    parameters: int = 0,
    each: Sequence[int] = (),
) -> PreTrainedModel:
    """Give a model that has only its `local_blocks` the rest of its blocks, remotely. Raises InvalidInput.

    `parameters`: numbers in the weights of those that it has not; `each`: of each block of the model.
    """
    remote = _remote_span(local_blocks, info.blocks)
    width, shape = interface(model)
    dtype, row_bytes = str(model.dtype).removeprefix("torch."), shape.size * model.dtype.itemsize
    view = swarm.view(info, dtype, row_bytes, config, each, shape.size)
    blocks = RemoteBlocks(swarm, view, remote, parameters)
    blocks.on_notice = on_notice
    how: dict[str, Any] = {"dtype": model.dtype, "training_through": BlockingTraining(blocks, check_gradients)}
    span = RemoteSpan(blocks.open, returns_tuple=width, **how)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(head, RemoteHead):
        connect_ends(model, blocks.ends(head.out_features))
    local = list(find_blocks(model).layers)
    originals = [*range(remote.first), remote.first, *range(remote.last, info.blocks)]
    hollow = hollow_blocks(model.config, list(remote), model.dtype)
    rearrange(model, [*local[: remote.first], span, *local[remote.first :]], originals, hollow)
    if (recommended := getattr(model, "generation_config", None)) is not None:
        clean(recommended)
    if classifies(model):
        watch_classes(model)
    model.__class__ = distributed(type(model))
    setattr(model, "remote_blocks", blocks)  # noqa: B010 - nn.Module's annotations know only tensors and modules
    return model


def _remote_span(local: Span | None, blocks: int) -> Span:
    """The blocks that are not local. Raises InvalidInput unless they are one run."""
    if local is None:
        return Span(0, blocks)
    if local.last > blocks or (local.first > 0 and local.last < blocks) or len(local) == blocks:
        raise InvalidInput(f"local_blocks {local} must be at the beginning or the end of the {blocks} blocks, not all")
    return Span(local.last, blocks) if local.first == 0 else Span(0, local.first)


def _check_head(head: str | None, config: ClientConfig) -> None:
    if head == REMOTE and (config.audits or config.compare == 2):
        raise InvalidInput("head='remote': nobody audits or compares a head that servers have; leave one of both out")


def _loading_info(begun: set[str]) -> dict[str, Any]:
    """As transformers' `output_loading_info`."""
    return {name: [] if name == "error_msgs" else set() for name in LOADING_INFO} | {"missing_keys": begun}


def _parameters(model: Description, span: Span) -> int:
    return sum(model.parameters[block] for block in span)


def _client_config(options: dict[str, Any], of_model: Any) -> ClientConfig:
    """The options that are no entries of the model's configuration. Raises InvalidInput for what is neither."""
    known = {field.name for field in dataclasses.fields(ClientConfig)}
    unknown = sorted(name for name in options if name not in known and not hasattr(of_model, name))
    if unknown:
        raise InvalidInput(f"unknown options {unknown}; beyond transformers' own there are {sorted(known)}")
    return ClientConfig(**{name: value for name, value in options.items() if name in known})
