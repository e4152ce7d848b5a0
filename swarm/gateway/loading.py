"""What a query node holds of a model: tokenizer, embeddings and head."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from swarm.config import SCHEMES
from swarm.contract import Contract
from swarm.errors import BadCheckpoint, InvalidInput
from swarm.gateway.recommended import Recommended
from swarm.models.blocks import leading_blocks
from swarm.models.ends.adapter_folder import read_adapter
from swarm.models.ends.ends import Ends
from swarm.models.ends.load import load_ends
from swarm.models.ends.training import files_of
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading.cost import describe
from swarm.models.loading.form import Form, only_sees
from swarm.models.picture_prompts import PicturePrompts
from swarm.models.processors import processor_of
from swarm.models.texts import Texts, tokenizer_of
from swarm.types import ModelInfo, Span

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What answers are computed with, beside the blocks of others."""

    info: ModelInfo
    texts: Texts
    ends: Ends
    recommended: Recommended
    quantization: str
    pictures: PicturePrompts | None = None
    """Where it sees."""
    adapters: Mapping[str, Callable[[Span], bytes]] = field(default_factory=dict)
    """By name: what each adds to some blocks, as a file; empty for nothing."""
    parameters: tuple[int, ...] = ()
    """Of each block."""

    @property
    def names(self) -> list[str]:
        """Under which it is offered, the plain model's first."""
        return [self.info.name, *(f"{self.info.name}:{adapter}" for adapter in self.adapters)]

    @property
    def contract(self) -> Contract:
        """What is asked of servers."""
        dtype = self.ends.dtype
        numbers = self.ends.row_numbers
        name, scheme = str(dtype).removeprefix("torch."), SCHEMES[self.quantization]
        return self.info.contract(name, numbers * dtype.itemsize, scheme, numbers)


def load_model(
    model: str,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    head: str | None = None,
    adapters: Mapping[str, str] | None = None,
    images: bool = False,
    progress: bool = False,
) -> LoadedModel:
    """Read a model's own part from a folder or from the hub. `dtype`, `quantization`: those of the servers;
    None: the checkpoint's. `head`: where the head is, as for `load_ends`. `adapters`: folders
    of LoRA that peft wrote, by the names under which they are offered. `images`: load what looks at pictures also
    where the library has a model of text alone.

    Raises ModelError, InvalidInput.
    """
    checkpoint = open_checkpoint(model, token, revision)
    checkpoint = checkpoint.read_as(Form.SEEING) if images else checkpoint
    described = describe(checkpoint, dtype=dtype, quantization=quantization)
    # Before all that takes long: what is wrong with one is told at once.
    pairs = {name: read_adapter(checkpoint, path, described.dtype) for name, path in (adapters or {}).items()}
    tokenizer = tokenizer_of(checkpoint)
    client, _ = load_ends(checkpoint, dtype=dtype, quantization=quantization, head=head, progress=progress)
    ends = Ends(client)
    recommended = Recommended.of(client.generation_config, tokenizer, ends.vocabulary)
    info, pictures = _named(described.info, checkpoint), _pictures(checkpoint, needed=images)
    files = {name: files_of(each) for name, each in pairs.items()}
    return LoadedModel(
        info, Texts(tokenizer), ends, recommended, described.quantization, pictures, files, described.parameters
    )


def _pictures(checkpoint: Checkpoint, *, needed: bool) -> PicturePrompts | None:
    """What makes prompts of pictures, where what looks at them is loaded with the ends: it is `needed`, or the library
    has no model without it. Then, why a model that sees reads text alone here is in the log. Raises ModelError,
    InvalidInput."""
    if not needed and (checkpoint.gguf is not None or not only_sees(checkpoint.config)):
        return None
    try:
        if (local := leading_blocks(checkpoint.config)) is not None:
            raise InvalidInput(f"images: what is seen is added to the outputs of blocks {local}, which are elsewhere")
        if importlib.util.find_spec("PIL") is None:
            raise InvalidInput('images: they need Pillow: pip install "swarm-llm[images]"')
        return PicturePrompts(processor_of(checkpoint))
    except (InvalidInput, BadCheckpoint) as error:
        if needed:
            raise
        log.warning("%s reads text alone here: %s", checkpoint.name, error)
        return None


def _named(info: ModelInfo, checkpoint: Checkpoint) -> ModelInfo:
    """Where a folder or a file is on this machine is nobody else's business: what is told of it is its own name."""
    if checkpoint.folder is None:
        return info
    return replace(info, name=checkpoint.reading.gguf_file or Path(checkpoint.folder).resolve().name)
