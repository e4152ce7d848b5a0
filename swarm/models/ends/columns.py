"""Which columns of a batch are tokens, and whether remote blocks see them as the caller wants them seen.

Servers count the tokens of a row one by one and let each see all before it: padding never travels. Where positions say
otherwise they are sent along, if blocks take them. What a mask says beyond that cannot be honoured, and is refused by
name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swarm.errors import InvalidInput
from swarm.models.blocks import rotary_threshold
from swarm.wire.messages import MAX_POSITION

SCALED = ("beam", "hunyuan_v1", "inkling", "llama4", "ministral3", "mistral4", "mistral_large4")
"""What the names of types begin with whose blocks scale by a token's position, not only by distances."""
HOW_TO_COUNT = "pass position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0), or none with text that has no padding"
FARTHEST = MAX_POSITION
"""From where on a position is beyond every model's context."""
ROTARY = ("rope", "rotary", "alibi")


@dataclass(frozen=True, slots=True)
class Habits:
    """How a model's blocks look at columns. `counts`: at positions, other than those that came with the embeddings;
    `shifts`: only at distances between these; `skips`: each at all columns, so that padding between tokens is nothing;
    `takes`: at positions as they are told; `farthest`: from which on there are none.
    """

    counts: bool = True
    shifts: bool = True
    skips: bool = True
    takes: bool = True
    farthest: int = FARTHEST


def habits(model: nn.Module, owner: nn.Module, config: Any) -> Habits:
    """Of a model's blocks, which `owner` has; `config`: of the decoder."""
    farthest = min(rotary_threshold(config) or FARTHEST, FARTHEST)
    return Habits(_counts(owner, config), _shifts(config), _skips(model, config), _takes(owner, config), farthest)


def _takes(owner: nn.Module, config: Any) -> bool:
    """Distances that are built from the mask (ALiBi) cannot be told otherwise."""
    return "position_ids" in inspect.signature(type(owner).forward).parameters and not getattr(config, "alibi", False)


def _counts(owner: nn.Module, config: Any) -> bool:
    learned = [each for each in owner.children() if isinstance(each, nn.Embedding)]
    return len(learned) < 2 or any(word in name for name in vars(config) for word in ROTARY)


def _shifts(config: Any) -> bool:
    return rotary_threshold(config) is None and not config.model_type.startswith(SCALED)


def _skips(model: nn.Module, config: Any) -> bool:
    kinds = getattr(config, "layer_types", None) or ()
    windows = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return not (getattr(model, "_is_stateful", False) or windows or any(kind != "full_attention" for kind in kinds))


def tokens(mask: torch.Tensor | None, seen: torch.Tensor, batch: int, count: int, how: Habits) -> torch.Tensor:
    """Which of `count` new columns are tokens, `[batch, count]`; `seen` `[batch, past]` says it of those before.

    `mask`: as the model takes it, `[batch, past + count]`. Raises InvalidInput.
    """
    past = seen.shape[1]
    if mask is None:
        if not bool(seen.all()):
            raise InvalidInput(f"attention_mask: there was padding before; pass the mask of all {past + count} columns")
        return torch.ones(batch, count, dtype=torch.bool)
    if mask.shape != (batch, past + count):
        raise InvalidInput(f"attention_mask is {tuple(mask.shape)}, expected {(batch, past + count)}")
    whole = mask.bool().cpu()
    if mask.dtype != torch.bool and not torch.equal(mask.cpu().float(), whole.float()):
        raise InvalidInput("attention_mask holds other numbers than 0 and 1")
    if not torch.equal(whole[:, :past], seen):
        raise InvalidInput("attention_mask: columns that are computed already cannot become padding, or tokens")
    if not how.skips and _has_holes(whole):
        raise InvalidInput("attention_mask: no padding between tokens, please: blocks with windows or states count it")
    return whole[:, past:]


def check_mask(mask: Any) -> None:
    """Raises InvalidInput for what is no mask of columns."""
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        raise InvalidInput("attention_mask must be 2-D [batch, positions]: remote blocks build their own masks")


def sees_ahead(mask: Any) -> bool:
    """Whether a position sees a later one by a mask that the model's own code has made: `[batch, 1, T, K]`, of whether
    each of T new positions sees each of K, or several of these by kind of block."""
    if isinstance(mask, Mapping):
        return any(map(sees_ahead, mask.values()))
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        return False
    seen = mask if mask.dtype == torch.bool else mask == 0
    later = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(mask.shape[-1] - mask.shape[-2] + 1)
    return bool((seen & later).any())


def _has_holes(real: torch.Tensor) -> bool:
    """Whether padding stands between tokens of a row."""
    begun, ended = real.cumsum(1) > 0, real.flip(1).cumsum(1).flip(1) > 0
    return bool((begun & ended & ~real).any())


def places(
    positions: torch.Tensor | None, seen: torch.Tensor, real: torch.Tensor, known: list[int | None], how: Habits
) -> tuple[list[int | None], list[torch.Tensor | None]]:
    """What each row's positions are beyond its tokens' numbers (None before its first token; `known`: so far), and
    where its new tokens stand, `[planes, tokens]`; None: they are numbered one by one.

    `positions` `[batch or 1, T]`, or `[planes, batch or 1, T]`; None: as the library counts columns, padding too.
    Blocks that look only at distances are told of places without what is known beyond. Raises InvalidInput for what
    these blocks cannot be told.
    """
    if not how.counts:
        return known, [None] * len(known)
    given = _given(positions, seen, real)
    numbers = seen.sum(dim=1, keepdim=True) + real.cumsum(1) - 1
    rows = [
        _placed(row, given[:, row, real[row]], numbers[row, real[row]], known[row], how) for row in range(len(real))
    ]
    return [offset for offset, _ in rows], [place for _, place in rows]


def _are_whole(numbers: torch.Tensor) -> bool:
    """Whether they are integers, so small that none was rounded."""
    return bool(((numbers % 1 == 0) & (numbers.abs() < FARTHEST)).all())


def _given(positions: torch.Tensor | None, seen: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """`[planes, batch, T]`, as few planes as say the same."""
    batch, count = real.shape
    if positions is None:
        return torch.arange(seen.shape[1], seen.shape[1] + count).expand(1, batch, count)
    if isinstance(positions, torch.Tensor) and positions.is_floating_point() and _are_whole(positions):
        positions = positions.long()  # some models count in floating point
    if not isinstance(positions, torch.Tensor) or positions.is_floating_point() or positions.dtype == torch.bool:
        raise InvalidInput(f"position_ids must be a tensor of integers [batch, {count}]")
    planes = positions.detach().cpu()
    if planes.ndim == 2:
        planes = planes.unsqueeze(0)
    if planes.ndim != 3 or planes.shape[1] not in (1, batch) or planes.shape[2] != count:
        raise InvalidInput(f"position_ids is {tuple(positions.shape)}, expected {(batch, count)}")
    if bool((planes == planes[:1]).all()):
        planes = planes[:1]
    return planes.expand(-1, batch, count)


def _placed(
    row: int, given: torch.Tensor, numbers: torch.Tensor, known: int | None, how: Habits
) -> tuple[int | None, torch.Tensor | None]:
    """Of one row's new tokens: `given` `[planes, tokens]`, `numbers` `[tokens]`."""
    if not numbers.numel():
        return known, None
    beyond = given - numbers
    first = int(beyond[0, 0])
    if bool((beyond == first).all()) and known in (None, first) and (how.shifts or first == 0):
        return first, None
    if not how.takes:
        raise InvalidInput(
            f"position_ids: those of row {row} do not go on one by one from token to token, "
            f"and these blocks count so; {HOW_TO_COUNT}"
        )
    least, most = int(given.min()), int(given.max())
    if not 0 <= least <= most < how.farthest:
        what = f"position_ids: {least if least < 0 else most} in row {row}"
        raise InvalidInput(f"{what} is no position of this model; there are 0 to {how.farthest - 1}")
    offset = known or 0
    if least < offset:
        raise InvalidInput(f"position_ids: those of row {row} go back to {least}, before its first token's {offset}")
    return offset, given - offset


def check_wanted(real: torch.Tensor, keep: int, labels: torch.Tensor | None, next_tokens: bool) -> None:
    """Raises InvalidInput where what is wanted would be computed from padding, of which nothing comes back.

    `real` `[batch, T]`; `keep`: of how many of the last columns logits are wanted, 0: all; `labels` `[batch, T]`;
    `next_tokens`: whether the next tokens will be chosen.
    """
    if (next_tokens or keep > 0) and not bool(real[:, -1:].all()):
        raise InvalidInput(
            "attention_mask: this batch is padded on the right, and the next token would be chosen after padding; "
            'pad on the left (tokenizer.padding_side = "left")'
        )
    if labels is None or bool(real.all()) or labels.shape != real.shape:
        return
    if bool((labels[:, 1:].cpu().ne(-100) & ~real[:, :-1]).any()):
        raise InvalidInput("labels: padding predicts nothing here; those of columns behind padding must be -100")
