"""Whatever transformers' methods take is honoured as by plain transformers, or refused by name.

Each table has a row for everything that the library's signatures name; what a new version adds fails here until it
is placed.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    StaticCache,
    WatermarkingConfig,
)

from swarm.client.model import DistributedModelForCausalLM
from swarm.client.remote_blocks import ROWS, SpreadSession
from swarm.config import ServerConfig
from swarm.errors import BadCheckpoint, ContextTooLong, InvalidInput, ModelNotFound, SwarmError, UnsupportedModel
from swarm.models.arguments import READING, REFUSED, WITHOUT_EFFECT
from swarm.models.distributed import REFUSED_METHODS
from swarm.models.ends.calls import TAKEN
from tests.checkpoints import GREEDY, Served, left_padded, make_tokenizer, prompt, reference, save, spans_of

Serve = Callable[[str, int], Served]
Whole = Callable[[str], Any]
IDS = prompt(10)
NEW = 6


# ---- from_pretrained -------------------------------------------------------------------------------------------

LOADING_HONOURED: dict[str, Any] = {
    "config": "changed and not",
    "cache_dir": "elsewhere",
    "force_download": True,
    "local_files_only": True,
    "gguf_file": None,
    "token": False,
    "revision": "main",
    "subfolder": "",
    "variant": None,
    "use_safetensors": True,
    "weights_only": True,
    "output_loading_info": True,
    "dtype": "bfloat16",
    "torch_dtype": torch.bfloat16,
    "device_map": "cpu",
    "generation_config": GenerationConfig(max_new_tokens=3, do_sample=False),
    "attn_implementation": "eager",
    "experts_implementation": "eager",
    "trust_remote_code": True,
    "max_memory": {"cpu": "1GB"},
    "offload_folder": "elsewhere",
    "offload_buffers": True,
    "adapter_name": "default",
    "_commit_hash": "0123",
    "_from_pipeline": "text-generation",
    "_from_auto": True,
}
LOADING_REFUSED: dict[str, Any] = {
    "ignore_mismatched_sizes": True,
    "fusion_config": {"x": True},
    "disable_mmap": True,
    "state_dict": {"a": torch.zeros(1)},
    "proxies": {"https": "x"},
    "tqdm_class": list,
    "quantization_config": {"load_in_4bit": True},
    "adapter_kwargs": {"token": "x"},
    "distributed_config": object(),
    "device_mesh": object(),
    "tp_plan": "auto",
    "tp_size": 2,
    "allow_all_kernels": True,
    "use_kernels": True,
    "kernel_config": object(),
    "key_mapping": {"a": "b"},
}


def test_every_argument_of_loading_is_placed() -> None:
    signature = inspect.signature(PreTrainedModel.from_pretrained).parameters
    named = {n for n, p in signature.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    popped = set(re.findall(r'kwargs\.pop\("(\w+)"', source))
    assert named | popped == {"pretrained_model_name_or_path", *LOADING_HONOURED, *LOADING_REFUSED}
    assert REFUSED.keys() == LOADING_REFUSED.keys()
    assert set(READING) <= LOADING_HONOURED.keys()
    assert set(re.findall(r'"(\w+)"', re.findall(r"for name in \[(.*?)\]", source)[0])) <= WITHOUT_EFFECT


@pytest.mark.parametrize("name", LOADING_REFUSED)
def test_loading_refuses_by_name(served: Serve, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{name}: "):
        served("llama", 2).model(**{name: LOADING_REFUSED[name]})
    served("llama", 2).model(**{name: None})


@pytest.mark.parametrize(
    "name", sorted(set(LOADING_HONOURED) - {"config", "output_loading_info", "dtype", "torch_dtype"})
)
def test_loading_honours(served: Serve, whole: Whole, name: str) -> None:
    servers = served("llama", 2)
    model, expected = servers.model(**{name: LOADING_HONOURED[name]}), whole("llama")
    options = {} if name == "generation_config" else GREEDY | {"max_new_tokens": 3}
    assert model.generate(IDS, **options).tolist() == expected.generate(IDS, **GREEDY, max_new_tokens=3).tolist()
    assert model.dtype == expected.dtype


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_is_honoured(served: Serve, name: str, dtype: Any) -> None:
    servers = served("llama", 2)
    options = {"swarm": servers.swarm, name: dtype}
    assert DistributedModelForCausalLM.from_pretrained(str(servers.folder), **options).dtype == torch.bfloat16


def test_how_it_was_loaded_is_told_as_the_library_does(served: Serve) -> None:
    servers = served("llama", 2)
    _, expected = AutoModelForCausalLM.from_pretrained(servers.folder, output_loading_info=True)
    assert servers.model(output_loading_info=True)[1] == expected


@pytest.mark.parametrize("how", ["object", "folder", "entries"])
def test_a_configuration_may_change_what_is_given_out(served: Serve, whole: Whole, how: str, tmp_path: Path) -> None:
    servers = served("llama", 2)
    config = AutoConfig.from_pretrained(servers.folder, use_cache=False, pad_token_id=7)
    config.save_pretrained(tmp_path)
    given: dict[str, Any] = {
        "object": {"config": config},
        "folder": {"config": tmp_path},
        "entries": {"use_cache": False, "pad_token_id": 7},
    }
    model = servers.model(**given[how])
    assert (model.config.use_cache, model.config.pad_token_id) == (False, 7)
    with torch.no_grad():
        output = model(IDS)
        assert output.past_key_values is None
        torch.testing.assert_close(output.logits, whole("llama")(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"config": AutoConfig.for_model("llama")}, InvalidInput, "config: .*hidden_size"),
        ({"rms_norm_eps": 0.5}, InvalidInput, "config: rms_norm_eps"),
        ({"dtype": {"": "float32"}}, InvalidInput, "dtype="),
        ({"dtype": "float8"}, UnsupportedModel, "float8"),
        ({"device_map": {"a": 0, "b": "cpu"}}, InvalidInput, "device_map="),
        ({"device_map": "balanced"}, InvalidInput, "device_map="),
        ({"device_map": "disk"}, InvalidInput, "device_map="),
        ({"use_safetensors": False}, InvalidInput, "use_safetensors"),
        ({"variant": "fp16"}, BadCheckpoint, r"model\.fp16\.safetensors"),
        ({"subfolder": "none"}, ModelNotFound, "none holds no config"),
        ({"use_flash_attention_2": True}, InvalidInput, "unknown options .*use_flash_attention_2"),
    ],
)
def test_what_loading_cannot_have(served: Serve, options: dict[str, Any], error: type[SwarmError], words: str) -> None:
    with pytest.raises(error, match=words):
        served("llama", 2).model(**options)


# ---- generate --------------------------------------------------------------------------------------------------

TOKENIZER = make_tokenizer()
MASK = torch.ones(1, 10, dtype=torch.long)
PLACED: dict[str, list[dict[str, Any]]] = {
    # Each is asked of plain transformers too: the same tokens, or the same kind of error.
    "inputs": [{}],
    "generation_config": [{"generation_config": GenerationConfig(max_new_tokens=4, do_sample=False, num_beams=2)}],
    "logits_processor": [{"logits_processor": [lambda ids, scores: scores.roll(1, -1)]}],
    "stopping_criteria": [{"stopping_criteria": [lambda ids, scores: torch.tensor([ids.shape[1] > 12])]}],
    "prefix_allowed_tokens_fn": [{"prefix_allowed_tokens_fn": lambda row, ids: [5, 6, 7]}],
    "synced_gpus": [{"synced_gpus": False}],
    "negative_prompt_ids": [{"negative_prompt_ids": prompt(4, 9), "guidance_scale": 1.5}],
    "negative_prompt_attention_mask": [
        {"negative_prompt_ids": prompt(4, 9), "negative_prompt_attention_mask": torch.ones(1, 4), "guidance_scale": 1.5}
    ],
    "bad_words_ids": [{"bad_words_ids": [[5], [6, 7]]}],
    "begin_suppress_tokens": [{"begin_suppress_tokens": [5, 6]}],
    "bos_token_id": [{"bos_token_id": 4}],
    "cache_config": [{"cache_config": {"x": 1}}],
    "cache_implementation": [
        {"cache_implementation": kind} for kind in ("static", "dynamic", "dynamic_full", "nothing")
    ],
    "compile_config": [{"compile_config": CompileConfig()}],
    "constraints": [{"num_beams": 2, "constraints": [1]}],
    "decoder_start_token_id": [{"decoder_start_token_id": 5}],
    "disable_compile": [{"disable_compile": True}],
    "diversity_penalty": [{"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}],
    "do_sample": [{"do_sample": True}],
    "dola_layers": [{"dola_layers": "low"}],
    "early_stopping": [{"num_beams": 2, "early_stopping": True}],
    "encoder_no_repeat_ngram_size": [{"encoder_no_repeat_ngram_size": 2}],
    "encoder_repetition_penalty": [{"encoder_repetition_penalty": 1.5}],
    "eos_token_id": [{"eos_token_id": list(range(0, 300, 3))}],
    "epsilon_cutoff": [{"do_sample": True, "epsilon_cutoff": 0.01}],
    "eta_cutoff": [{"do_sample": True, "eta_cutoff": 0.01}],
    "exponential_decay_length_penalty": [{"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 5}],
    "force_words_ids": [{"num_beams": 2, "force_words_ids": [[5]]}],
    "forced_bos_token_id": [{"forced_bos_token_id": 5}],
    "forced_eos_token_id": [{"forced_eos_token_id": 5}],
    "guidance_scale": [{"guidance_scale": 1.5}, {"guidance_scale": 3.0, "do_sample": True}],
    "length_penalty": [{"num_beams": 3, "length_penalty": 0.3}],
    "low_memory": [{"low_memory": True}],
    "max_length": [{"max_length": 13, "max_new_tokens": None}],
    "max_new_tokens": [{"max_new_tokens": 3}],
    "max_time": [{"max_time": 0.0}, {"max_time": 100.0}],
    "min_length": [{"min_length": 14, "eos_token_id": list(range(3, 300, 2))}],
    "min_new_tokens": [{"min_new_tokens": 4, "eos_token_id": list(range(3, 300, 2))}],
    "min_p": [{"do_sample": True, "min_p": 0.01}],
    "no_repeat_ngram_size": [{"no_repeat_ngram_size": 1}],
    "num_beam_groups": [{"num_beams": 4, "num_beam_groups": 2}],
    "num_beams": [{"num_beams": 3}, {"num_beams": 2, "do_sample": True}],
    "num_return_sequences": [
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
    "output_logits": [{"return_dict_in_generate": True, "output_logits": True}],
    "output_scores": [{"return_dict_in_generate": True, "output_scores": True}],
    "pad_token_id": [{"pad_token_id": 9}],
    "penalty_alpha": [{"penalty_alpha": 0.6, "top_k": 4}],
    "prefill_chunk_size": [{"prefill_chunk_size": 4}],
    "remove_invalid_values": [{"remove_invalid_values": True}],
    "renormalize_logits": [{"renormalize_logits": True, "do_sample": True, "top_k": 5}],
    "repetition_penalty": [{"repetition_penalty": 1.5}],
    "return_dict_in_generate": [{"return_dict_in_generate": True}],
    "sequence_bias": [{"sequence_bias": [[[5], 3.0]]}],
    "stop_strings": [{"stop_strings": ["a", "b"], "tokenizer": TOKENIZER}, {"stop_strings": ["a"]}],
    "suppress_tokens": [{"suppress_tokens": [5, 6]}],
    "temperature": [{"do_sample": True, "temperature": 0.4}],
    "token_healing": [{"token_healing": True, "tokenizer": TOKENIZER}],
    "top_h": [{"do_sample": True, "top_h": 0.4}],
    "top_k": [{"do_sample": True, "top_k": 3}, {"do_sample": True, "top_k": -1}],
    "top_p": [{"do_sample": True, "top_p": 0.4}],
    "transformers_version": [{}],
    "typical_p": [{"do_sample": True, "typical_p": 0.4}],
    "use_cache": [{"use_cache": False}],
    "watermarking_config": [{"watermarking_config": WatermarkingConfig()}],
    "speculation_type": [{"speculation_type": "nothing"}],
    "continuous_batching_config": [{"continuous_batching_config": None}],
    "attention_mask": [{"attention_mask": MASK}, {"attention_mask": MASK.bool()}],
    "position_ids": [{"position_ids": torch.arange(10)[None]}, {"position_ids": torch.arange(10)[None] + 3}],
    "logits_to_keep": [{"logits_to_keep": 3}],
    "past_key_values": [{"past_key_values": lambda: DynamicCache()}],
    "unknown": [{"nobody_knows_this": 1}],
}
WITH_OTHERS = frozenset({
    "assistant_model", "streamer", "custom_generate", "assistant_confidence_threshold", "assistant_lookbehind",
    "assistant_ensemble_weight", "is_assistant", "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "prompt_lookup_num_tokens", "target_lookbehind",
})  # fmt: skip
"""Those of assistants and streamers: tested below, or with generate and speculation, or only read by an assistant."""
NEVER: dict[str, dict[str, Any]] = {
    "output_attentions": {"output_attentions": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "assistant_early_exit": {"assistant_early_exit": 2},
    "use_mtp": {"use_mtp": True},
    "cache_implementation='paged'": {"cache_implementation": "paged"},
    "cache_implementation='quantized'": {"cache_implementation": "quantized"},
}


def test_everything_that_generating_takes_is_placed() -> None:
    signature = inspect.signature(LlamaForCausalLM.generate).parameters
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    of_forward = {"attention_mask", "position_ids", "logits_to_keep", "past_key_values", "unknown"}
    never = {name for name in NEVER if "=" not in name}
    assert PLACED.keys() | WITH_OTHERS | never == (set(signature) - {"self", "kwargs"}) | fields | of_forward


def outcome(model: Any, options: dict[str, Any]) -> Any:
    """What comes of generating: tokens, with scores where they are asked for, or an error's type."""
    torch.manual_seed(3)
    defaults = {} if "generation_config" in options else GREEDY | {"max_new_tokens": NEW}
    made = {name: value() if name == "past_key_values" else copy.deepcopy(value) for name, value in options.items()}
    try:
        found = model.generate(IDS, **defaults | made)
    except Exception as error:
        return type(error)
    if isinstance(found, torch.Tensor):
        return found
    return [found.sequences, *(found.scores or ()), *(found.logits or ())]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", PLACED)
def test_generating_is_as_in_the_library(served: Serve, whole: Whole, name: str) -> None:
    model = served("llama", 2).model()
    for options in PLACED[name]:
        expected, got = outcome(whole("llama"), options), outcome(model, options)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4) if not isinstance(expected, type) else None
        if isinstance(expected, type):
            assert got == expected or issubclass(got, InvalidInput), (got, expected)
    served("llama", 2).assert_free()


@pytest.mark.parametrize("kind", ["llama", "gemma2+untied", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("implementation", ["static", "hybrid", "dynamic"])
def test_caches_by_name(served: Serve, whole: Whole, kind: str, implementation: str) -> None:
    options = GREEDY | {"max_new_tokens": NEW, "cache_implementation": implementation}
    expected = whole(kind).generate(**left_padded((7, 5)), **options).tolist()
    assert served(kind, 2).model().generate(**left_padded((7, 5)), **options).tolist() == expected


def test_a_static_cache_to_generate_with_is_refused_by_name(served: Serve, whole: Whole) -> None:
    cache = StaticCache(config=whole("llama").config, max_cache_len=32)
    with pytest.raises(InvalidInput, match=r"^past_key_values: no StaticCache"):
        served("llama", 2).model().generate(IDS, past_key_values=cache)


@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("how", ["argument", "given", "recommended"])
def test_generating_refuses_by_name(served: Serve, name: str, how: str) -> None:
    model, options = served("llama", 2).model(), NEVER[name]
    if how == "recommended":
        model.generation_config = GenerationConfig(**options)
    given = {"argument": options, "given": {"generation_config": GenerationConfig(**options)}, "recommended": {}}
    with pytest.raises(InvalidInput, match=f"^{name}"):
        model.generate(IDS, **given[how])
    assert model.route is None


def test_arguments_may_come_in_order(served: Serve, whole: Whole) -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = whole("llama").generate(IDS, config).tolist()
    assert served("llama", 2).model().generate(IDS, config).tolist() == expected
    with pytest.raises(ContextTooLong):
        served("llama", 2).model().generate(IDS, GenerationConfig(max_new_tokens=3000))


@pytest.mark.parametrize("name", ["assistant_model", "custom_generate", "prompt_lookup_num_tokens"])
def test_there_is_one_way_to_guess(served: Serve, whole: Whole, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{name} and speculation"):
        served("llama", 2).model().generate(IDS, speculation="ngram", **{name: 2})


def test_embeddings_in_place_of_tokens(served: Serve, whole: Whole) -> None:
    embeddings = whole("llama").get_input_embeddings()(IDS)
    model = served("llama", 2).model()
    both = {"inputs_embeds": embeddings, "input_ids": IDS}
    for options in ({"inputs_embeds": embeddings}, both, {"bos_token_id": 5}):
        made = [each.generate(**options, **GREEDY, max_new_tokens=4).tolist() for each in (model, whole("llama"))]
        assert made[0] == made[1]
    with pytest.raises(ContextTooLong):
        served("llama", 2).model().generate(inputs_embeds=embeddings, max_new_tokens=3000)


# ---- what the model's authors recommend ------------------------------------------------------------------------


@pytest.mark.parametrize("recommended", [{"max_length": 4096}, {"max_new_tokens": 4096}, {}])
def test_recommended_lengths_beyond_the_context_are_cut(
    served: Serve, whole: Whole, recommended: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    servers = served("llama", 2)
    model, limit = servers.model(), servers.info.context_length
    assert limit is not None
    model.generation_config = GenerationConfig(**recommended, **GREEDY)
    ids = prompt(limit - 4)
    expected = whole("llama").generate(ids, **GREEDY, max_new_tokens=5)
    assert model.generate(ids).tolist() == expected.tolist()
    assert "5 fit in this model's context" in caplog.text
    with pytest.raises(ContextTooLong):
        model.generate(ids, max_new_tokens=6)
    with pytest.raises(ContextTooLong):
        model.generate(prompt(limit + 1))


def test_recommendations_that_cannot_be_had_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path, "llama")
    config = GenerationConfig(output_attentions=True, cache_implementation="quantized", return_dict_in_generate=True)
    config.save_pretrained(folder)
    servers = Served(folder, spans_of(1))
    assert servers.model().generate(IDS, **GREEDY, max_new_tokens=3).sequences.shape == (1, 13)
    assert "output_attentions=True is left out" in caplog.text
    assert "cache_implementation='quantized' is left out" in caplog.text
    servers.close()


# ---- forward ---------------------------------------------------------------------------------------------------

FORWARD_REFUSED: dict[str, Any] = {
    "encoder_hidden_states": torch.zeros(1, 2, 32),
    "encoder_attention_mask": torch.ones(1, 2),
    "encoder_outputs": (torch.zeros(1, 2, 32),),
    "task_type_ids": torch.zeros_like(IDS),
    "input_shape_ids": torch.zeros_like(IDS),
    "input_pronunciation_ids": torch.zeros_like(IDS),
    "pixel_values": torch.zeros(1),
    "pixel_values_videos": torch.zeros(1),
    "mm_encoder_outputs": torch.zeros(1),
    "input_features": torch.zeros(1),
    "input_features_mask": torch.zeros(1),
    "image_position_ids": torch.zeros(1),
    "video_position_ids": torch.zeros(1),
    "num_frames_per_video": torch.zeros(1),
    "mm_token_type_ids": torch.zeros(1),
    "per_layer_inputs": torch.zeros(1),
    "image_patches": torch.zeros(1),
    "padding_mask": torch.zeros(1),
    "head_mask": torch.ones(6, 4),
    "is_causal": False,
    "cu_seq_lens_q": torch.tensor([0, 5, 10]),
    "nobody_knows_this": 1,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_router_logits": True,
}
FORWARD_HONOURED: dict[str, Any] = {
    "use_cache": False,
    "return_dict": False,
    "labels": IDS,
    "logits_to_keep": 3,
    "num_logits_to_keep": 1,
    "token_type_ids": torch.ones_like(IDS),
    "is_causal": True,
    "output_attentions": False,
    "head_mask": None,
}


def test_everything_that_some_forward_takes_is_placed() -> None:
    table = Path("docs/architectures.md").read_text(encoding="utf-8")
    served_types = set(re.findall(r"^\| (\S+) \| exact", table, re.MULTILINE))
    names: set[str] = set()
    for config, kind in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        if config.model_type in served_types:
            names |= set(inspect.signature(kind.forward).parameters)
    assert names - {"self", "kwargs"} - TAKEN - {"token_type_ids"} <= FORWARD_REFUSED.keys()


@torch.no_grad()
@pytest.mark.parametrize("name", FORWARD_REFUSED)
def test_forward_refuses_by_name(served: Serve, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{name} "):
        served("llama", 2).model()(IDS, **{name: FORWARD_REFUSED[name]})


@torch.no_grad()
@pytest.mark.parametrize("name", FORWARD_HONOURED)
def test_forward_honours(served: Serve, whole: Whole, name: str) -> None:
    outputs = [each(IDS, **{name: FORWARD_HONOURED[name]}) for each in (served("llama", 2).model(), whole("llama"))]
    assert type(outputs[0]) is type(outputs[1])
    got, expected = (output[0] for output in outputs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("make", "taken"),
    [
        (lambda config: DynamicCache(), True),
        (lambda config: DynamicCache(config=config), True),
        (lambda config: StaticCache(config=config, max_cache_len=32), True),
        (lambda config: EncoderDecoderCache(DynamicCache(), DynamicCache()), False),
    ],
)
def test_caches_of_other_kinds(served: Serve, whole: Whole, make: Any, taken: bool, use_cache: bool) -> None:
    model, cache = served("llama", 2).model(), make(whole("llama").config)
    if not taken:
        with pytest.raises(InvalidInput, match="past_key_values"):
            model(IDS, past_key_values=cache, use_cache=use_cache)
        return
    got = model(IDS, past_key_values=cache, use_cache=use_cache).logits
    torch.testing.assert_close(got, whole("llama")(IDS).logits, rtol=1e-4, atol=1e-4)


# ---- methods, and the model as an object -----------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED_METHODS)
def test_methods_that_would_do_something_else_are_refused_by_name(served: Serve, name: str) -> None:
    model = served("llama", 2).model()
    assert hasattr(PreTrainedModel, name) or hasattr(LlamaForCausalLM, name)
    with pytest.raises(InvalidInput, match=f"^{name}: "):
        getattr(model, name)("anything")


@pytest.mark.parametrize("untied", ["", "+untied"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_a_model_is_cast_before_and_after_generating(
    served: Serve, whole: Whole, cast: str, before: bool, untied: str
) -> None:
    """Its blocks go on to be computed as servers do: it is as near to the model in float32 as the whole of it, cast."""
    kind = f"llama{untied}"
    model, plain = served(kind, 2).model(), copy.deepcopy(whole(kind))
    with torch.no_grad():
        exact = whole(kind)(IDS).logits
        if not before:
            model.generate(IDS, **GREEDY, max_new_tokens=2)
        got, expected = (getattr(each, cast)()(IDS).logits for each in (model, plain))
    assert got.dtype == expected.dtype == model.dtype
    errors = [float((each - exact).abs().max() / exact.abs().max()) for each in (got, expected)]
    assert errors[0] <= max(1.5 * errors[1], 1e-4)
    assert model.generate(IDS, **GREEDY, max_new_tokens=3).shape == (1, 13)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "llama+untied", "gpt2", "gemma2+untied"])
def test_embeddings_and_head_are_read_and_resized(served: Serve, whole: Whole, kind: str) -> None:
    model, expected = served(kind, 2).model(), copy.deepcopy(whole(kind))
    assert torch.equal(model.get_output_embeddings().weight, expected.get_output_embeddings().weight)
    assert torch.equal(model.get_input_embeddings().weight, expected.get_input_embeddings().weight)
    size = expected.config.get_text_config().vocab_size
    for each in (model, expected):
        each.resize_token_embeddings(size + 10, mean_resizing=False)
        each.get_input_embeddings().weight[size:] = 0.25
        each.get_output_embeddings().weight[size:] = 0.25
        each.tie_weights()
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (
        model.generate(IDS, **GREEDY, max_new_tokens=3).tolist()
        == expected.generate(IDS, **GREEDY, max_new_tokens=3).tolist()
    )
    assert model.config.get_text_config().vocab_size == size + 10


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy])
def test_a_copy_is_a_model_of_its_own(served: Serve, whole: Whole, copied: Callable[[Any], Any]) -> None:
    model = served("llama+untied", 2).model()
    twin = copied(model)
    expected = whole("llama+untied")(IDS).logits
    torch.testing.assert_close(twin(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert isinstance(twin, LlamaForCausalLM)
    if copied is copy.deepcopy:
        twin.get_output_embeddings().weight.zero_()
        assert not twin(IDS).logits.any()
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_pickling_says_what_to_do(served: Serve, tmp_path: Path) -> None:
    model = served("llama", 2).model()
    for use in (pickle.dumps, lambda each: torch.save(each, tmp_path / "x")):
        with pytest.raises(InvalidInput, match=r"pickle.*from_pretrained"):
            use(model)
    torch.save(model.state_dict(), tmp_path / "ends")
    model.load_state_dict(torch.load(tmp_path / "ends"))


def test_it_counts_the_parameters_of_the_whole(served: Serve, whole: Whole) -> None:
    for kind, local in (("llama", None), ("gpt2", "0:2"), ("llama+untied", "4:6")):
        model = served(kind, 1).model(local_blocks=local)
        assert model.num_parameters() == whole(kind).num_parameters()
        assert model.num_parameters(exclude_embeddings=True) == whole(kind).num_parameters(exclude_embeddings=True)
        assert model.num_parameters(only_trainable=True) == 0


@torch.no_grad()
def test_what_is_loaded_is_not_initialised_again(served: Serve, whole: Whole) -> None:
    model = served("llama+untied", 2).model()
    model.init_weights()
    torch.testing.assert_close(model(IDS).logits, whole("llama+untied")(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.soak
@torch.no_grad()
@pytest.mark.filterwarnings("default")
def test_the_ends_are_compiled_around_the_blocks(served: Serve, whole: Whole) -> None:
    model = torch.compile(served("llama+untied", 2).model(), backend="eager")
    for ids in (IDS, prompt(7, 3)):
        torch.testing.assert_close(model(ids).logits, whole("llama+untied")(ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_changes_of_the_configuration_are_followed_or_refused(served: Serve, whole: Whole) -> None:
    model = served("llama", 2).model()
    model.config.use_cache = False
    assert model(IDS).past_key_values is None
    model.config.use_cache = True
    assert model(IDS).past_key_values is not None
    model.config.output_hidden_states = True
    with pytest.raises(InvalidInput, match=r"^output_hidden_states"):
        model(IDS)
    model(IDS, output_hidden_states=False)
    model.config.output_hidden_states = False
    for name, value in {"rms_norm_eps": 0.5, "num_hidden_layers": 2, "hidden_act": "gelu"}.items():
        kept = getattr(model.config, name)
        setattr(model.config, name, value)
        with pytest.raises(InvalidInput, match=rf"^config\.{name} was changed"):
            model(IDS)
        setattr(model.config, name, kept)
    model.config.rope_parameters["rope_theta"] = 7.0
    with pytest.raises(InvalidInput, match=r"^config\.rope_parameters"):
        model(IDS)


# ---- batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_more_rows_than_a_session_may_hold(
    served: Serve, whole: Whole, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each session takes as many whole texts as it may hold rows; here 4."""
    servers, texts = served("llama", 2), []
    defaults = SpreadSession.__init__.__defaults__
    monkeypatch.setattr(SpreadSession.__init__, "__defaults__", (defaults[0], 4))
    for model in (whole("llama"), servers.model()):
        torch.manual_seed(5)
        texts.append(model.generate(**left_padded((7, 5, 6, 3, 4)), **GREEDY | options, max_new_tokens=6).tolist())
    assert texts[0] == texts[1]
    servers.assert_free()


def test_a_session_asks_for_no_more_rows_than_servers_hold_by_default() -> None:
    assert ServerConfig().max_sequences >= ROWS


def test_an_assistant_and_a_streamer(served: Serve, whole: Whole, tmp_path: Path) -> None:
    assistant = reference(save(tmp_path, "llama", num_hidden_layers=1))
    expected = whole("llama").generate(IDS, **GREEDY, max_new_tokens=NEW).tolist()
    model, heard = served("llama", 2).model(), []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            heard.extend(value.flatten().tolist())

        def end(self) -> None:
            pass

    options: dict[str, Any] = {"num_assistant_tokens": 3, "assistant_confidence_threshold": 0.2}
    assert model.generate(IDS, **GREEDY, max_new_tokens=NEW, assistant_model=assistant, **options).tolist() == expected
    assert model.generate(IDS, **GREEDY, max_new_tokens=NEW, prompt_lookup_num_tokens=2).tolist() == expected
    assert model.generate(IDS, **GREEDY, max_new_tokens=NEW, streamer=Streamer()).tolist() == expected
    assert [heard] == expected
