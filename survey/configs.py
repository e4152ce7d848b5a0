"""Small configurations of any model type, made from the type's own defaults by the names of their entries.

What is easily forgotten is made to matter: multipliers are not 1, windows and chunks are shorter than the prompt,
head_dim is not hidden_size / heads, there are fewer KV heads than heads, several kinds of block are among the few.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

BLOCKS = 6
VOCABULARY = 160
POSITIONS = 48
HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 24, 64

SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), BLOCKS),
    **dict.fromkeys(("encoder_layers",), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"), POSITIONS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size"), HIDDEN),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "ffn_hidden_size",
            "decoder_ffn_dim",
            "dense_intermediate_size",
            "intermediate_size_mlp",
            "shared_expert_intermediate_size",
            "dff",
            "block_ff_dim",
            "encoder_ffn_dim",
        ),
        96,
    ),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_decoder_attention_heads",
        ),
        HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), KV_HEADS),
    **dict.fromkeys(("head_dim", "kv_channels", "attention_head_dim"), HEAD_DIM),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "num_selected_experts"), 2),
    **dict.fromkeys(("n_group", "num_expert_group"), 2),
    **dict.fromkeys(("topk_group", "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), 5),
    "use_sliding_window": True,
    "max_window_layers": 2,
    "attention_chunk_size": 6,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 16),
    "qk_rope_head_dim": 8,
    "index_topk": 6,
    "index_head_dim": 16,
    "index_n_heads": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "qk_head_dim": 24,
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), 4.0),
    "query_pre_attn_scalar": 20,
    **dict.fromkeys(("embedding_multiplier", "logits_scaling", "logit_scale"), 3.0),
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id"), 2),
    **dict.fromkeys(("rotary_dim", "rope_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "zero_expert_num": 1,
    "initializer_range": 0.2,
    "is_decoder": True,
}
"""What the entries of that name become, where the type has them and they are not None there."""

ALSO_WHERE_NONE = ("head_dim", "num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id")
"""Entries that are given also where the type's default is to derive them."""

_ALL_HEADS = {"num_key_value_heads": HEADS}
"""Latent attention has as many KV heads as heads."""
_LATENT = ("axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite",
           "glm_moe_dsa", "minicpm3", "youtu", "kimi_linear", "longcat_flash")  # fmt: skip
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * (BLOCKS // 2)}
_CONVOLUTION = {"layer_types": ["conv", "full_attention", "conv"] * (BLOCKS // 3)}
_ATTENTION = ("full_attention", "sliding_attention")
_INDEXERS = {"indexer_types": ["full", "shared", "full", "full", "shared", "shared"]}
_NO_SHARING = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}

SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_LATENT, _ALL_HEADS),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "granitemoehybrid"), _LINEAR),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _CONVOLUTION),
    "glm_moe_dsa": _ALL_HEADS | _INDEXERS,
    "mistral_large4_text": _ALL_HEADS | _INDEXERS | {"kv_source_layers": [0, 0, 2, 3, 3, 5]},
    "dots3_note_text": _ALL_HEADS
    | {"shared_experts_intermediate_size": 32}
    | {f"swa_{name}": HEADS for name in ("num_attention_heads", "num_key_value_heads")}
    | {f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")}
    | {"swa_head_dim": HEAD_DIM},
    "step3p5": {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"] * (BLOCKS // 2)},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", *["sparse"] * (BLOCKS - 1)]},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 24,
        "indexer_budget": 6,
        "indexer_compress_ratio": 2,
    },
    "bamba": {"attn_layer_indices": [1, 4]},
    "gpt_neo": {"attention_types": [[["global", "local"], BLOCKS // 2]]},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "helium": {"head_dim": HIDDEN // HEADS},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"axial_pos_embds_dim": (16, 48), "axial_pos_shape": (6, 8)},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * (BLOCKS // 2)},
    "inkling_text": {"swa_num_attention_heads": HEADS, "swa_head_dim": HEAD_DIM},
    "inkling2_text": {"swa_num_attention_heads": HEADS, "swa_head_dim": HEAD_DIM},
    "roc_bert": {
        "pronunciation_vocab_size": VOCABULARY,
        "shape_vocab_size": VOCABULARY,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "xmod": {"default_language": "en_XX"},
    "big_bird": {"attention_type": "original_full"},
    "cpmant": {"dim_ff": 96},
    "xlnet": {"d_inner": 96},
    "deepseek_v2": _ALL_HEADS | {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 128},
    "kimi_linear": _ALL_HEADS | _LINEAR | {"linear_head_dim": 16, "linear_num_heads": 2, "model_max_length": POSITIONS},
    "longcat_flash": _ALL_HEADS | {"head_dim": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 2.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": HIDDEN},
    },
    "gemma4_text": _NO_SHARING,
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [32, 32],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
    },
    "cosmos3_edge_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, HEAD_DIM // 2 - 8]}
    },
    "glm5_next_text": _ALL_HEADS | {"index_kpool": 2, "qk_rope_head_dim": 0},
    "gemma4_unified_text": _NO_SHARING,
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"] * (BLOCKS // 2),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in _ATTENTION},
    },
}
"""What a type needs beyond that."""


_ROPE = {"rope_theta": 1e4, "factor": 4.0}
_MIXED = ["full_attention", "sliding_attention"] * (BLOCKS // 2)

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama+tied": ("llama", {"tie_word_embeddings": True}),
    "gemma2+untied": ("gemma2", {"tie_word_embeddings": False}),
    "gpt2+untied": ("gpt2", {"tie_word_embeddings": False}),
    "llama+linear": ("llama", {"rope_parameters": _ROPE | {"rope_type": "linear"}}),
    "llama+dynamic": ("llama", {"rope_parameters": _ROPE | {"rope_type": "dynamic"}}),
    "llama+yarn": ("llama", {"rope_parameters": _ROPE | {"rope_type": "yarn", "original_max_position_embeddings": 12}}),
    "llama+llama3": (
        "llama",
        {
            "rope_parameters": _ROPE
            | {
                "rope_type": "llama3",
                "original_max_position_embeddings": 12,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
    ),
    "phi3+longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 32,
                "short_factor": [1.5] * (HIDDEN // HEADS // 2),
                "long_factor": [4.0] * (HIDDEN // HEADS // 2),
            },
        },
    ),
    "mistral+window": ("mistral", {"sliding_window": 3}),
    "qwen2+mixed": ("qwen2", {"layer_types": _MIXED, "sliding_window": 4}),
    "qwen3+mixed": ("qwen3", {"layer_types": _MIXED, "sliding_window": 4}),
    "one_kv_head": ("llama", {"num_key_value_heads": 1}),
    "falcon+alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
}
"""Types with changes that are not the type's default, by a name of their own."""


def small_config(name: str) -> PretrainedConfig:
    """A configuration of a model type or variant with few and small blocks. Raises what the type's own code raises."""
    model_type, changes = VARIANTS.get(name, (name, {}))
    kind: Any = CONFIG_MAPPING[model_type]
    if "text_config" not in kind.sub_configs:
        return shrunk(kind, changes)
    inner = type(kind().get_text_config(decoder=True))
    default = kind()
    towers = {
        n: _tiny(type(getattr(default, n))) for n in kind.sub_configs if n != "text_config" and getattr(default, n)
    }
    config: PretrainedConfig = kind(text_config=shrunk(inner, changes).to_dict(), **towers)
    return config


def _tiny(kind: Any) -> dict[str, Any]:
    """The configuration of a part that is not the decoder."""
    layers = dict.fromkeys(("num_hidden_layers", "encoder_layers", "num_layers"), 2)
    return {**shrunk(kind, {name: value for name, value in layers.items() if hasattr(kind(), name)}).to_dict()}


def shrunk(kind: Any, changes: dict[str, Any]) -> PretrainedConfig:
    default = vars(kind())
    default |= {alias: default[name] for alias, name in kind.attribute_map.items() if name in default}
    names = SIZES.keys() & default.keys() & _parameters(kind)
    entries = {name: SIZES[name] for name in names if default[name] is not None or name in ALSO_WHERE_NONE}
    config: PretrainedConfig = kind(**(entries | SPECIAL.get(kind.model_type, {}) | changes))
    return config


def _parameters(kind: Any) -> set[str]:
    """The names that a configuration is made from."""
    names = set(inspect.signature(kind.__init__).parameters)
    for base in kind.__mro__:
        names |= set(getattr(base, "__annotations__", {}))
    return names | set(kind.attribute_map)
