"""What a query node holds of a model: tokenizer, embeddings and head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from swarm.config import SCHEMES
from swarm.contract import Contract
from swarm.gateway.recommended import Recommended
from swarm.models.ends.ends import Ends
from swarm.models.ends.load import load_ends
from swarm.models.loading.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading.cost import describe
from swarm.models.texts import Texts, tokenizer_of
from swarm.types import ModelInfo


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What answers are computed with, beside the blocks of others."""

    info: ModelInfo
    texts: Texts
    ends: Ends
    recommended: Recommended
    quantization: str

    @property
    def contract(self) -> Contract:
        """What is asked of servers."""
        dtype = self.ends.dtype
        row_bytes = self.info.hidden_size * dtype.itemsize
        return self.info.contract(str(dtype).removeprefix("torch."), row_bytes, SCHEMES[self.quantization])


def load_model(
    model: str,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    head: str | None = None,
    progress: bool = False,
) -> LoadedModel:
    """Read a model's own part from a folder or from the hub. `dtype`, `quantization`: those of the servers;
    None: the checkpoint's. `head`: where the head is, as for `load_ends`.

    Raises ModelError, InvalidInput.
    """
    checkpoint = open_checkpoint(model, token, revision)
    described = describe(checkpoint, dtype=dtype, quantization=quantization)
    tokenizer = tokenizer_of(checkpoint)
    client, _ = load_ends(checkpoint, dtype=dtype, quantization=quantization, head=head, progress=progress)
    ends = Ends(client)
    recommended = Recommended.of(client.generation_config, tokenizer, ends.vocabulary)
    return LoadedModel(_named(described.info, checkpoint), Texts(tokenizer), ends, recommended, described.quantization)


def _named(info: ModelInfo, checkpoint: Checkpoint) -> ModelInfo:
    """Where a folder or a file is on this machine is nobody else's business: what is told of it is its own name."""
    if checkpoint.folder is None:
        return info
    return replace(info, name=checkpoint.reading.gguf_file or Path(checkpoint.folder).resolve().name)
