"""Small models of images and text of any type, and images for them: made by the names of entries and arguments."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING, PretrainedConfig

from survey.configs import HIDDEN, VOCABULARY, shrunk

MOST_PARAMETERS = 8_000_000
MOST_PIECES = 70
POSITIONS = 96
SIDE, PATCH, MERGE = 28, 7, 2
"""Pixels of an image and of a patch; patches that become one piece, each way."""
IMAGE_TOKENS = ("image_token_id", "image_token_index", "image_patch_id", "video_token_id", "video_token_index")
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "width", "d_model", "output_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers", "encoder_layers", "layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "encoder_attention_heads"), 4),
    "num_key_value_heads": 4,
    "head_dim": 8,
    "image_size": SIDE,
    "patch_size": PATCH,
    "spatial_patch_size": PATCH,
    "temporal_patch_size": 2,
    "spatial_merge_size": MERGE,
    "out_hidden_size": HIDDEN,
    "text_hidden_size": HIDDEN,
    "projection_dim": HIDDEN,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [0],
    "window_size": SIDE,
    "num_channels": 3,
    "in_channels": 3,
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32),
    **dict.fromkeys(("base_channels", "latent_channels"), 32),
    "channel_multiplier": [1, 1],
    "num_embeddings": 64,
    "num_image_tokens": 16,
    "image_token_embed_dim": HIDDEN,
    "initializer_range": 0.2,
}
"""What entries of the part that looks become."""
WHOLE: dict[str, Any] = {
    "spatial_merge_size": MERGE,
    "mm_hidden_size": 32,
    "projector_hidden_size": HIDDEN,
    "projection_dim": HIDDEN,
    "mm_tokens_per_image": 4,
    "scale_factor": 2,
    "downsample_ratio": 0.5,
    "vision_feature_layer": -1,
    "image_seq_length": 16,
    "image_grid_pinpoints": [[SIDE, SIDE]],
    "num_query_tokens": 4,
    "projection_hidden_size": 32,
    "projector_patch_to_query_dict": {16: 4},
}
"""What entries of the whole become."""
SPECIAL: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_vl": {"vision_config": {"hidden_size": HIDDEN}},
    "llama4": {"vision_config": {"intermediate_size": 128}},
    "qwen2_5_omni_thinker": {"": {"vision_start_token_id": 90, "vision_end_token_id": 91}},
    "qwen3_omni_moe_thinker": {"": {"vision_start_token_id": 90, "vision_end_token_id": 91}},
    "gemma4_unified": {
        "vision_config": {"mm_embed_dim": 32, "output_proj_dims": 32, "mm_posemb_size": 16, "pooling_kernel_size": 1}
    },
    "muse_glimmer": {"": {"out_hidden_size": 128}},
    "fuyu": {"": {"patch_size": PATCH, "image_size": SIDE}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}, "": {"vision_hidden_size": 32}},
    "ovis2": {"": {"hidden_size": HIDDEN, "visual_indicator_token_ids": [*range(100, 105)]}},
}
"""Entries of parts that a type needs beyond that; of the whole, which has no name."""


def all_seeing_types() -> list[str]:
    """The model types that transformers has a model of images and text for."""
    return sorted(config.model_type for config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)


def seeing_config(name: str) -> PretrainedConfig:
    """A small configuration of a type. Raises what the type's own code raises."""
    kind: Any = CONFIG_MAPPING[name]
    default = kind()
    text = default.get_text_config(decoder=True)
    parts: dict[str, Any] = {}
    for entry in kind.sub_configs:
        part = getattr(default, entry, None)
        if part is None and entry == "vision_config" and inspect.isclass(kind.sub_configs[entry]):
            part = kind.sub_configs[entry]()
        if not isinstance(part, PretrainedConfig):
            continue
        parts[entry] = (
            _decoder(part, _several_planes(kind))
            if part is text
            else _looking(part, SPECIAL.get(name, {}).get(entry, {}))
        )
    if text is default:
        raise ValueError("it is no composition of a part that looks and a decoder")
    ids = iter(range(VOCABULARY - 1, VOCABULARY - 40, -1))
    tokens = {entry: next(ids) for entry in _entries(default) if _is_token(entry, getattr(default, entry))}
    whole = {entry: value for entry, value in WHOLE.items() if getattr(default, entry, None) is not None}
    whole |= SPECIAL.get(name, {}).get("", {})
    config: PretrainedConfig = kind(**parts, **tokens, **whole)
    return config


def _entries(config: PretrainedConfig) -> list[str]:
    """The names that a configuration has, where there are two for one the class's own."""
    return [name for name in vars(config) if name not in type(config).attribute_map]


def _is_token(entry: str, value: Any) -> bool:
    if value is None:
        return entry in IMAGE_TOKENS
    return isinstance(value, int) and entry.endswith(("_token_id", "_token_index")) and value > 2


def _several_planes(kind: Any) -> bool:
    """Whether the type's rotary embeddings are cut into sections for time, height and width."""
    models: list[Any] = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind]]
    if (text := type(kind().get_text_config(decoder=True))) in MODEL_MAPPING:
        models.append(MODEL_MAPPING[text])
    return any("mrope_section" in inspect.getsource(sys.modules[model.__module__]) for model in models)


def _decoder(part: PretrainedConfig, several: bool) -> dict[str, Any]:
    small: dict[str, Any] = shrunk(type(part), {}).to_dict()
    small |= {name: POSITIONS for name in ("max_position_embeddings",) if small.get(name)}
    rope = small.get("rope_parameters")
    if several and isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        half = int(small.get("head_dim") or HIDDEN // small["num_attention_heads"]) // 2
        half = int(half * (rope.get("partial_rotary_factor") or 1.0))
        if sum(rope.get("mrope_section") or ()) != half:
            rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    return small


def _looking(part: PretrainedConfig, changes: dict[str, Any]) -> dict[str, Any]:
    default = vars(part)
    aliases = {alias: default[name] for alias, name in type(part).attribute_map.items() if name in default}
    known = {**default, **aliases}
    entries = {name: value for name, value in SMALL.items() if known.get(name) is not None}
    if isinstance(known.get("pos_emb_height"), int):
        entries |= {"pos_emb_height": SIDE // PATCH, "pos_emb_width": SIDE // PATCH}
    if isinstance(known.get("image_size"), list | tuple):
        entries["image_size"] = [SIDE, SIDE]
    if isinstance(known.get("patch_size"), list | tuple):
        entries["patch_size"] = [PATCH, PATCH]
    built: dict[str, Any] = type(part)(**(entries | changes)).to_dict()
    return built


def build_seeing(config: PretrainedConfig) -> Any:
    """A model with random weights. Raises what the library raises, and ValueError."""
    kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"its smallest configuration that is found by name has {size:,} parameters")
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def image(seed: int = 0) -> torch.Tensor:
    """`[3, SIDE, SIDE]`: coloured gradients and a square, as a picture has both."""
    ramp = torch.linspace(-1, 1, SIDE)
    picture = torch.stack([ramp.expand(SIDE, -1), ramp[:, None].expand(-1, SIDE), -ramp.expand(SIDE, -1)])
    first = 4 + seed % 8
    picture[:, first : first + 9, first : first + 7] = 0.7
    return picture.contiguous()


def looks(model: Any) -> Iterator[dict[str, Any]]:
    """Ways to pass an image, by the names of what the model's forward takes; one of them may be its own."""
    names = set(inspect.signature(type(model).forward).parameters)
    picture = image()
    vision = getattr(model.config, "vision_config", None)
    patch = getattr(vision, "patch_size", None) or PATCH
    side = SIDE // (patch if isinstance(patch, int) else patch[0])
    temporal = getattr(vision, "temporal_patch_size", 2) or 2
    patches = picture.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    if "spatial_shapes" in names:
        flat = patches.permute(1, 2, 3, 4, 0).reshape(1, side * side, -1)
        mask = {"pixel_attention_mask": torch.ones(1, side * side, dtype=torch.long)}
        yield {"pixel_values": flat, "spatial_shapes": torch.tensor([[side, side]]), **mask}
        return
    if "target_sizes" in names:
        strip = patches.permute(0, 3, 1, 2, 4).reshape(1, 3, PATCH, -1)
        yield {"pixel_values": strip, "target_sizes": torch.tensor([[side, side]])}
        return
    if "image_grid_thw" in names:
        flat = patches.permute(1, 2, 0, 3, 4).reshape(side * side, 3, 1, PATCH, PATCH)
        grid = {"image_grid_thw": torch.tensor([[1, side, side]])}
        if "image_merge_sizes" in names:
            grid["image_merge_sizes"] = torch.tensor([MERGE])
        yield {"pixel_values": flat.expand(-1, -1, temporal, -1, -1).reshape(side * side, -1), **grid}
        yield {"pixel_values": flat[:, :, 0].reshape(side * side, -1), **grid}
        yield {"pixel_values": flat[:, :, 0], **grid}
        grid = {"image_grid_thw": torch.tensor([[1, side // MERGE, side // MERGE]])}
        wide = PATCH * MERGE  # with channels last, and patches that become one piece in one
        merged = picture.unfold(1, wide, wide).unfold(2, wide, wide).permute(1, 2, 3, 4, 0)
        yield {"pixel_values": merged.reshape(-1, wide, wide, 3), **grid}
        return
    if "image_grid_hw" in names:
        flat = patches.permute(1, 2, 0, 3, 4).reshape(side * side, -1)
        yield {"pixel_values": flat, "image_grid_hw": torch.tensor([[side, side]])}
    if "high_res_pixel_values" in names:
        yield {"pixel_values": picture[None], "high_res_pixel_values": picture[None]}
    if "image_position_ids" in names:
        flat = patches.permute(1, 2, 3, 4, 0).reshape(1, side * side, -1)
        places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), dim=-1)
        yield {"pixel_values": flat, "image_position_ids": places.reshape(1, side * side, 2)}
    sizes = {"image_sizes": torch.tensor([[SIDE, SIDE]])} if "image_sizes" in names else {}
    for size in (sizes, {}) if sizes else ({},):
        yield {"pixel_values": picture[None], **size}
        yield {"pixel_values": picture[None, None], **size}
        yield {"pixel_values": picture[None, None].expand(1, 2, -1, -1, -1), **size}
        yield {"pixel_values": picture.permute(1, 2, 0)[None, None].expand(1, 2, -1, -1, -1), **size}
        yield {"pixel_values": patches.permute(1, 2, 3, 4, 0).reshape(1, side * side, -1), **size}
    if "pixel_attention_mask" in names:
        yield {"pixel_values": picture[None, None], "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}


def image_token(config: Any) -> int:
    """What stands in a text for a piece of an image. Raises ValueError where the configuration has none."""
    for name in IMAGE_TOKENS:
        if isinstance(token := getattr(config, name, None), int):
            return token
    raise ValueError("its configuration names no token for images")


def _framed(config: Any, count: int, token: int) -> torch.Tensor:
    """The tokens of an image `[1, n]`, between those that begin and end one, where there are such."""
    begin, end = (
        next((found for name in names if isinstance(found := getattr(config, name, None), int)), None)
        for names in (("vision_start_token_id", "image_start_token_id"), ("vision_end_token_id", "image_end_token_id"))
    )
    tokens = [*([begin] if begin else []), *[token] * count, *([end] if end else [])]
    return torch.tensor([tokens])


@torch.no_grad()
def question(model: Any, pieces: int | None = None) -> dict[str, Any]:
    """Inputs with an image that the whole model takes. Raises ValueError where none was found."""
    token, faults = image_token(model.config), []
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, 100, (1, 9), generator=generator)
    for way in looks(model):
        counts = [pieces] if pieces else range(1, MOST_PIECES)
        for count in counts:
            ids = torch.cat([words[:, :4], _framed(model.config, count, token), words[:, 4:]], dim=1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **way}
            for name in ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids"):
                if name in inspect.signature(type(model).forward).parameters:
                    inputs[name] = (ids == token).long()
            if "qformer_input_ids" in inspect.signature(type(model).forward).parameters:
                inputs |= {"qformer_input_ids": words, "qformer_attention_mask": torch.ones_like(words)}
            try:
                model(**inputs)
            except Exception as error:  # each type says in its own way what it wants
                faults.append(f"{type(error).__name__}: {error}")
                continue
            return inputs
    raise ValueError(f"no image was found that it takes: {faults[-1] if faults else 'nothing to try'}")
