"""Where a model that classifies texts looks: at the last token of each, which must be one.

The library takes the last column whose id is not the padding's, whatever the mask says; of padding nothing comes back
from remote blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from swarm.errors import InvalidInput
from swarm.models.ends.calls import named_arguments


def watch_classes(model: nn.Module) -> None:
    """Let each call of a model raise InvalidInput, before any work, where it would look at padding."""
    model.register_forward_pre_hook(_check, with_kwargs=True)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _check(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    arguments = named_arguments(model, args, kwargs)
    ids, embedded = arguments.get("input_ids"), arguments.get("inputs_embeds")
    given = embedded if ids is None else ids
    if isinstance(given, torch.Tensor) and given.ndim >= 2:
        pad = model.config.get_text_config(decoder=True).pad_token_id
        check_classified(ids, arguments.get("attention_mask"), pad, given.shape[0])


def check_classified(ids: torch.Tensor | None, mask: torch.Tensor | None, pad: int | None, batch: int) -> None:
    """`ids` `[batch, T]`, None where there are embeddings; `mask` `[batch, T]`. Raises InvalidInput."""
    if pad is None and batch > 1:
        raise InvalidInput(
            "pad_token_id: without it nobody knows where each of several texts ends; set "
            "model.config.pad_token_id = tokenizer.pad_token_id"
        )
    if mask is None or mask.ndim != 2 or bool(mask.all()):
        return
    columns = mask.shape[1]
    last = torch.full((batch,), columns - 1)
    if ids is not None and pad is not None and ids.shape == mask.shape:
        last = (torch.arange(columns) * (ids.cpu() != pad)).argmax(dim=-1)
    there = mask.cpu().bool()[torch.arange(min(batch, mask.shape[0])), last[: mask.shape[0]]]
    if not bool(there.all()):
        row = int((~there).nonzero()[0])
        how = f"the last that is not pad_token_id ({pad})" if ids is not None and pad is not None else "the last"
        raise InvalidInput(
            f"attention_mask: the class of row {row} is told from column {int(last[row])}, {how}, which is padding by "
            "the mask; let padding have the id model.config.pad_token_id, or be on the left"
        )
