"""Where the tensors of a checkpoint go in a model, as the library renames and converts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from swarm.errors import BadCheckpoint


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the checkpoint goes: its (first) name in the model; `pattern`: of the conversion that it takes
    part in, None: it goes there as it is."""

    name: str
    pattern: str | None

    @property
    def direct(self) -> bool:
        """Whether it goes there as it is."""
        return self.pattern is None


class Places:
    """`by_name`: for each tensor of the checkpoint that the outline has a place for, where."""

    def __init__(self, names: Iterable[str], outline: PreTrainedModel) -> None:
        places: dict[str, Any] = dict(outline.state_dict())
        transforms = get_model_conversion_mapping(outline)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._converters = {pattern: each for each in reversed(converters) for pattern in each.source_patterns}
        self._config = outline.config
        self.by_name: dict[str, Place] = {}
        for name in names:
            place, pattern = rename_source_key(name, renamings, converters, outline.base_model_prefix, places)
            if place not in places and name in places:
                place, pattern = name, None
            if place in places:
                self.by_name[name] = Place(place, pattern)

    def sources(self, place: str) -> list[str]:
        """The tensors that one of the model is made of, in the library's order; none where of one of them another is
        made, too."""
        named = sorted((name for name, there in self.by_name.items() if there.name == place), key=dot_natural_key)
        patterns = {pattern for name in named if (pattern := self.by_name[name].pattern) is not None}
        alone = all(len(self._converters[pattern].target_patterns) == 1 for pattern in patterns)
        return named if alone else []

    def made(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A tensor of the model of those that it is made of; or a part of it, where only a part of each is given.

        Raises BadCheckpoint where the library cannot.
        """
        first = self.by_name[next(iter(tensors))]
        if first.pattern is None:
            (only,) = tensors.values()
            return only
        converter = deepcopy(self._converters[first.pattern])
        for name, tensor in tensors.items():
            read: Any = lambda tensor=tensor: tensor  # noqa: E731 - where the library has a future, or a function
            converter.add_tensor(first.name, name, str(self.by_name[name].pattern), read)
        try:
            (made,) = converter.convert(first.name, config=self._config).values()
        except Exception as error:  # whatever the conversions of an architecture may raise
            raise BadCheckpoint(f"{first.name} cannot be made of its parts: {error!r}") from error
        found: torch.Tensor = made[0] if isinstance(made, list) else made
        return found
