"""As what a checkpoint is read: which of the library's classes for an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, cast

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)

from swarm.errors import UnsupportedModel
from swarm.models.loading.layouts.choose import unquantized


class Form(Enum):
    """What a model is for; its blocks are the same. The values are words for it."""

    TEXT = "causal language model"
    SEEING = "model that sees"
    STATES = "model without a head"
    CLASSES = "model for sequence classification"

    @property
    def is_of_text(self) -> bool:
        """Whether a token comes next."""
        return self in (Form.TEXT, Form.SEEING)


_MAPPINGS: dict[Form, tuple[Mapping[Any, Any], ...]] = {
    Form.TEXT: (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    Form.SEEING: (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,),
    Form.STATES: (MODEL_MAPPING,),
    Form.CLASSES: (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,),
}


def model_class(config: PretrainedConfig, form: Form = Form.TEXT) -> type[PreTrainedModel]:
    """The library's class for a configuration; as a causal LM, where there is none, its model that sees; without its
    head, or with another, only what is a causal LM.

    Raises UnsupportedModel.
    """
    if not form.is_of_text:
        config = decoder_config(config)
    for mapping in _MAPPINGS[form]:
        if type(config) in mapping:
            found = mapping[type(config)]
            return cast("type[PreTrainedModel]", found[0] if isinstance(found, list | tuple) else found)
    raise UnsupportedModel(f"{config.model_type!r} has no {form.value} in transformers")


def classifies(model: PreTrainedModel) -> bool:
    """Whether it tells the class of a text."""
    mapping: Mapping[Any, Any] = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return type(model.config) in mapping and isinstance(model, mapping[type(model.config)])


def only_sees(config: PretrainedConfig) -> bool:
    """Whether the library has this model as one that sees and not as a causal LM."""
    return type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def decoder_config(config: PretrainedConfig, form: Form = Form.TEXT) -> PretrainedConfig:
    """The configuration that the model is built from: the text part, where that has a causal LM of its own.

    It says nothing of quantization: the library is to take the numbers that are read, and to quantize nothing.
    """
    config = unquantized(config)
    if not form.is_of_text:
        return decoder_config(config)
    sub = type(config).sub_configs.get("text_config")
    text: PretrainedConfig = config.get_text_config(decoder=True) if sub is not None else config
    return text if model_class(config, form).config_class is sub else config
