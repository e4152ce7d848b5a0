"""A small model that sees, with a processor, as its authors would publish it; and a picture in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, decoders, models
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from survey.configs import VOCABULARY
from survey.images import PATCH, SIDE, build_seeing, image_token, seeing_config

TEMPLATE = """{% for m in messages %}{% if m.role == "user" %}a{% else %}b{% endif %}{% for part in m.content %}
{%- if part.type == "image" %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}
{%- if add_generation_prompt %}f{% endif %}"""


def save_seeing(folder: Path) -> Any:
    """Write a checkpoint of a Llava; returns the whole model. "abcdef" are tokens, other letters are not."""
    model = build_seeing(seeing_config("llava"))
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    token = image_token(model.config)
    assert token == VOCABULARY - 1
    alphabet = {chr(0x4E00 + each): each for each in range(token) if not 3 <= each <= 8}
    alphabet |= {letter: each for each, letter in enumerate("abcdef", 3)}
    plain = Tokenizer(models.BPE(alphabet, [], unk_token=chr(0x4E00)))
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=chr(0x4E00))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # type: ignore[no-untyped-call]
    assert tokenizer.convert_tokens_to_ids("<image>") == token
    looks = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        looks,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return model


def picture(path: Path) -> Path:
    """A file with colours that go from one corner to another."""
    Image.merge("RGB", [Image.linear_gradient("L").rotate(turn) for turn in (0, 90, 180)]).save(path)
    return path
