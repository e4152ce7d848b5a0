"""Models out of GGUF files are those that transformers makes of the same files, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from swarm.errors import BadCheckpoint, ModelNotFound, UnsupportedModel
from swarm.models.linear.experts import ExpertWeights
from swarm.models.linear.grid import Grid, as_dense
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.gguf.configuration import check, known
from swarm.models.loading.gguf.grids import GRIDS, bits_on_grid, to_grid, to_numbers
from swarm.models.loading.gguf.rotary import llama3
from swarm.models.loading.gguf.stored import STORED
from swarm.models.loading.weights import load_part
from swarm.models.texts import load_tokenizer
from swarm.types import Span
from tests.checkpoints import GREEDY, Served, settled
from tests.ggufs import CONFIGS, packed, small_config, write

KINDS = ("Q4_0", "Q4_K", "Q6_K", "BF16", "Q8_0", "Q5_K", "F16")
NARROW = ("Q4_0", "Q8_0", "F16", "Q4_1")
"""For matrices whose rows are no multiple of 256."""
TOLD_MORE = {"qwen2moe", "qwen3moe", "gpt2"}
"""Where the library leaves out something that the file says."""

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


def whole(path: Path, config: Any = None) -> Any:
    """As plain transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, config=config
    ).eval()


@pytest.mark.parametrize("architecture", sorted(CONFIGS.keys() - {"gpt-oss"}))
def test_every_tensor_is_the_librarys(architecture: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", architecture, NARROW if "moe" in architecture else KINDS)
    checkpoint = open_checkpoint(path)
    tensors, config = checkpoint.tensors, checkpoint.config
    right = whole(path, config if architecture in TOLD_MORE else None).state_dict()
    names = set(tensors.names())
    assert right.keys() - names <= {"lm_head.weight"}
    for name in names:
        read = tensors.read(name)
        assert isinstance(read, Grid) == tensors.on_grid(name)
        assert tuple(read.shape) == tensors.shape(name)
        assert torch.equal(as_dense(read).float(), right[name]), name
        some = slice(1, 1 + len(right[name]) // 2)
        assert torch.equal(as_dense(tensors.read(name, some)).float(), right[name][some]), name
    grids = [name for name in names if tensors.on_grid(name) and "layers" in name]
    assert grids or architecture in ("gpt2", "bloom", "falcon")
    if architecture not in TOLD_MORE:
        library = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name).to_dict()
        own = config.to_dict()
        differing = {name for name in own.keys() | library.keys() if own.get(name) != library.get(name)}
        assert differing <= {"_name_or_path", "_model_name_or_path"}


EXPERTS = {"qwen2moe": ("Q4_0",), "qwen3moe": ("Q8_0",), "gpt-oss": ("MXFP4",)}
"""What all matrices of blocks are stored as."""


@pytest.mark.parametrize("architecture", EXPERTS)
def test_experts_stay_on_their_grid(architecture: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", architecture, EXPERTS[architecture])
    checkpoint = open_checkpoint(path)
    tensors = checkpoint.tensors
    names = [name for name in tensors.names() if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]
    assert checkpoint.quantized and len(names) == 4
    for name in names:
        grids, right = tensors.experts(name), tensors.read(name)
        assert grids is not None and isinstance(right, torch.Tensor)
        turned = right.transpose(1, 2) if architecture == "gpt-oss" else right
        assert torch.equal(torch.stack([grid.dense() for grid in grids]), turned)
    loaded = load_part(checkpoint, Span(1, 2), ends=False, dtype=torch.float32, quantization="file", progress=False)
    experts = [module for module in loaded.model.modules() if isinstance(module, ExpertWeights)]
    held = sum(layer.nbytes for each in experts for layer in each.layers)
    assert len(experts) == 2 and held <= 1.1 * sum(tensors.nbytes(name) for name in names if "layers.1." in name)


def test_experts_whose_parts_are_of_different_types_are_numbers(tmp_path: Path) -> None:
    tensors = open_checkpoint(write(tmp_path / "m.gguf", "qwen3moe", ("Q4_0", "Q4_1", "Q8_0", "Q5_0"))).tensors
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert tensors.experts(name) is None and tensors.shape(name) == tuple(tensors.read(name).shape)


def test_gpt_oss_is_the_authors_model(tmp_path: Path) -> None:
    """transformers cannot read its files: what llama.cpp does to the tensors is undone here by hand."""
    path = write(tmp_path / "m.gguf", "gpt-oss", ("MXFP4", "Q8_0"))
    checkpoint = open_checkpoint(path)
    tensors, config = checkpoint.tensors, checkpoint.config
    reader = {each.name: gguf.dequantize(each.data, each.tensor_type) for each in gguf.GGUFReader(path).tensors}
    stored = {name: torch.from_numpy(numbers.copy()) for name, numbers in reader.items()}
    for block in range(2):
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            gate, up, down = (stored.pop(f"blk.{block}.ffn_{part}_exps.{kind}") for part in ("gate", "up", "down"))
            both = torch.stack((gate, up), dim=2).flatten(1, 2)
            parts = {"gate_up": both, "down": down}
            for part, numbers in parts.items():
                right = numbers if suffix else numbers.transpose(1, 2)
                read = tensors.read(f"model.layers.{block}.mlp.experts.{part}_proj{suffix}")
                assert torch.equal(as_dense(read), right), part
        sinks = stored.pop(f"blk.{block}.attn_sinks.weight")
        assert torch.equal(as_dense(tensors.read(f"model.layers.{block}.self_attn.sinks")), sinks)
        router = stored.pop(f"blk.{block}.ffn_gate_inp.weight")
        assert torch.equal(as_dense(tensors.read(f"model.layers.{block}.mlp.router.weight")), router)
    right = small_config("gpt-oss")
    for entry in ("head_dim", "intermediate_size", "num_local_experts", "sliding_window", "layer_types"):
        assert getattr(config, entry) == getattr(right, entry), entry
    parameters = dict(right.rope_parameters)
    assert {key: config.rope_parameters.get(key) for key in ("rope_type", "factor", "truncate")} == {
        key: parameters[key] for key in ("rope_type", "factor", "truncate")
    }


@pytest.mark.parametrize("kind", [kind.name for kind in STORED.values()])
def test_every_type_means_the_numbers_that_it_means_elsewhere(kind: str) -> None:
    number = GGMLQuantizationType[kind]
    raw = packed(kind, (6, 512), np.random.default_rng(1))
    right = torch.from_numpy(gguf.dequantize(raw, number).copy())
    stored = torch.from_numpy(raw.view(np.uint8).copy()).view(6, -1)
    assert torch.equal(to_numbers(stored, number).float(), right)
    if number in GRIDS:
        grid = to_grid(stored, number)
        assert torch.equal(grid.dense(), right)
        assert grid.nbytes * 8 == bits_on_grid(number) * right.numel()
        assert grid.nbytes <= {"Q2_K": 2, "Q3_K": 1.4, "Q6_K": 1.4, "Q5_K": 1.6, "Q5_0": 1.6, "Q5_1": 1.6}.get(
            kind, 1.1
        ) * len(raw.tobytes())
    elif STORED[number].dtype is None:
        assert (to_numbers(stored, number) != 0).any()


def test_all_types_that_the_package_knows_are_laid_out_as_it_says() -> None:
    for number, stored in STORED.items():
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (stored.numbers, stored.bytes)
        assert GGMLQuantizationType(number).name == stored.name


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K"])
def test_scales_that_are_no_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    stored = next(number for number, each in STORED.items() if each.name == kind)
    raw = torch.full((1, STORED[stored].bytes), 0x7F, dtype=torch.uint8)
    with pytest.raises(BadCheckpoint, match="finite"):
        to_numbers(raw, stored)


@given(st.sampled_from(sorted(GRIDS)), st.integers(1, 3), st.integers(0, 1 << 30))
@settings(max_examples=60, deadline=None)
def test_any_bytes_of_a_type_are_its_numbers_or_refused(kind: int, rows: int, seed: int) -> None:
    stored = STORED[kind]
    raw = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (rows, 2 * stored.bytes), dtype=np.uint8))
    try:
        grid = to_grid(raw, kind)
    except BadCheckpoint:
        return
    with np.errstate(all="ignore"):
        right = torch.from_numpy(gguf.dequantize(raw.numpy(), GGMLQuantizationType(kind)).copy())
    assert torch.equal(grid.dense(), right)


@given(st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_experts_that_is_cut_or_says_other_sizes_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    says = data.draw(st.sampled_from(["expert_count", "expert_feed_forward_length", "embedding_length", "block_count"]))
    value = data.draw(st.sampled_from([0, 1, 3, 5, 1 << 31]))
    architecture = data.draw(st.sampled_from(["qwen3moe", "gpt-oss"]))
    path = write(tmp_path / "m.gguf", architecture, ("Q4_0",), metadata={f"{architecture}.{says}": value})
    if data.draw(st.booleans()):
        path.write_bytes(path.read_bytes()[: -data.draw(st.integers(1, 5000))])
    try:
        tensors = open_checkpoint(path).tensors
        grids = [list(found) for name in tensors.names() if (found := tensors.experts(name)) is not None]
    except (BadCheckpoint, UnsupportedModel):
        return
    assert all(grids) and (architecture, says) == ("gpt-oss", "expert_feed_forward_length")


# ---- what it says besides its tensors ---------------------------------------------------------------------------


def test_a_file_is_one_model_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.gguf")
    one, other = open_checkpoint(path), open_checkpoint(tmp_path, gguf_file="m.gguf")
    monkeypatch.chdir(tmp_path)
    assert one.key == other.key == open_checkpoint("m.gguf").key == open_checkpoint("./m.gguf").key
    assert one.info() == other.info()
    assert one.quantized and one.dtype == torch.float32
    assert open_checkpoint(write(tmp_path / "n.gguf", kinds=("Q8_0",))).key != one.key


@pytest.mark.parametrize(("kinds", "dtype"), [(("F16",), torch.float16), (("BF16",), torch.bfloat16)])
def test_numbers_in_no_groups_have_their_own_dtype(kinds: tuple[str, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", kinds=kinds, embeddings=kinds[0])
    checkpoint = open_checkpoint(path)
    assert checkpoint.dtype == dtype and not checkpoint.quantized
    assert checkpoint.tensors.read("model.layers.0.self_attn.q_proj.weight").dtype == dtype


def test_parts_of_a_file_are_one_model(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.gguf")
    first, last = (tmp_path / f"cut-0000{number}-of-00002.gguf" for number in (1, 2))
    behind = ("blk.1.ffn_down.weight", "output_norm.weight")
    write(first, without=behind, metadata={"split.count": 2, "split.no": 0})
    write(last, only=behind, metadata={"split.count": 2, "split.no": 1})
    right = open_checkpoint(path)
    for part in (first, last):
        cut = open_checkpoint(part)
        assert cut.key == right.key
        for name in right.tensors.names():
            assert torch.equal(as_dense(cut.tensors.read(name)), as_dense(right.tensors.read(name)))
    last.unlink()
    with pytest.raises(BadCheckpoint, match="00002-of-00002"):
        _ = open_checkpoint(first).config


def test_an_architecture_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(UnsupportedModel, match=r"'lamma' are not read; those of .*llama.*qwen3"):
        _ = open_checkpoint(path).config
    with pytest.raises(UnsupportedModel, match="experts"):
        check("minimax-m2")


def test_all_architectures_that_are_said_to_be_read_are_tried_here() -> None:
    assert set(known()) - {"lfm2"} == set(CONFIGS)


def test_tensors_that_the_model_has_no_place_for_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", more={"blk.0.attn_q.bias": np.zeros(256, np.float32)})
    with pytest.raises(UnsupportedModel, match=re.escape("blk.0.attn_q.bias")):
        open_checkpoint(path).tensors.names()


def test_tensors_that_are_missing_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", without=("blk.1.ffn_up.weight",))
    with pytest.raises(BadCheckpoint, match=re.escape("model.layers.1.mlp.up_proj.weight")):
        open_checkpoint(path).tensors.names()


def test_sizes_that_do_not_fit_the_tensors_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", metadata={"llama.feed_forward_length": 768})
    with pytest.raises(BadCheckpoint, match="numbers"):
        open_checkpoint(path).tensors.names()


def factors(factor: float) -> np.ndarray:
    """By what llama.cpp divides the frequencies of a Llama 3 whose heads have 64 numbers."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain, scaled = small_config("llama"), small_config("llama")
    plain.rope_parameters = {"rope_type": "linear", "rope_theta": 500000.0, "factor": 1.0}
    scaled.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    one, other = (ROPE_INIT_FUNCTIONS[c.rope_parameters["rope_type"]](c, "cpu")[0] for c in (plain, scaled))
    return (one / other).numpy()


def test_the_scaling_of_llama_3_is_found_in_its_factors(tmp_path: Path) -> None:
    theta = {"llama.rope.freq_base": 500000.0}
    path = write(tmp_path / "m.gguf", metadata=theta, more={"rope_freqs.weight": factors(8.0)})
    said = open_checkpoint(path).config.rope_parameters
    assert said["rope_type"] == "llama3" and said["factor"] == 8.0 and said["rope_theta"] == 500000.0
    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        llama3(factors(8.0)[::-1].tolist(), 500000.0)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_that_the_metadata_tells(kind: str, tmp_path: Path) -> None:
    said = {"type": kind, "factor": 4.0, "original_context_length": 32}
    path = write(tmp_path / "m.gguf", metadata={f"llama.rope.scaling.{key}": value for key, value in said.items()})
    parameters = open_checkpoint(path).config.rope_parameters
    assert parameters["rope_type"] == kind and parameters["factor"] == 4.0
    assert kind == "linear" or parameters["original_max_position_embeddings"] == 32
    other = write(tmp_path / "n.gguf", metadata={"llama.rope.scaling.type": "longrope"})
    with pytest.raises(UnsupportedModel, match="longrope"):
        _ = open_checkpoint(other).config


# ---- served -----------------------------------------------------------------------------------------------------


SERVED = {
    "llama": ("Q4_K", "Q6_K", "Q3_K"),
    "gemma3": ("Q4_0", "Q4_K", "Q8_0"),
    "qwen3moe": NARROW,
    "gpt-oss": ("MXFP4", "Q8_0"),
}
"""What is served, and what its matrices are stored as."""


def numbers_of(path: Path) -> Any:
    """Plain transformers with the numbers of a file that it cannot read."""
    checkpoint = open_checkpoint(path)
    tensors = checkpoint.tensors
    model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32, attn_implementation="eager")
    state = {name: as_dense(tensors.read(name)).float() for name in tensors.names()}
    lacking, others = model.load_state_dict(state, strict=False)
    assert set(lacking) <= {"lm_head.weight"} and not others
    return model.eval()


@pytest.mark.parametrize("architecture", SERVED)
def test_a_swarm_says_what_the_library_says(architecture: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", architecture, SERVED[architecture])
    config = open_checkpoint(path).config if architecture in TOLD_MORE else None

    def make(seed: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.randint(3, 96, (1, 9), generator=torch.Generator().manual_seed(seed))}

    inputs, text = settled(numbers_of(path) if architecture == "gpt-oss" else whole(path, config), make, 12)
    served = Served(path, (Span(0, 1), Span(1, 2)), quantization="file")
    try:
        model = served.model()
        assert torch.equal(model.generate(**inputs, **GREEDY, max_new_tokens=12), text)
    finally:
        served.close()


def test_a_span_takes_what_its_tensors_take(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(path)
    loaded = load_part(checkpoint, Span(1, 2), ends=False, dtype=torch.float32, quantization="file", progress=False)
    model, tensors = loaded.model, checkpoint.tensors
    stored = sum(tensors.nbytes(name) for name in tensors.names() if "layers.1." in name)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    held = sum(layer.nbytes for layer in layers) + sum(each.nbytes for each in model.parameters())
    assert len(layers) == 7 and held <= 1.05 * stored


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no m\.gguf"):
        open_checkpoint(tmp_path / "m.gguf")
    with pytest.raises(ModelNotFound, match=r"no m\.gguf"):
        open_checkpoint(tmp_path, gguf_file="m.gguf")
    with pytest.raises(ModelNotFound, match="no folder"):
        open_checkpoint("./nowhere/m.gguf")
    with pytest.raises(ModelNotFound, match="no file"):
        open_checkpoint("nowhere/m.gguf")


def test_the_tokenizer_is_the_librarys(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    own, library = load_tokenizer(str(path)), AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in ("abcd", "cdab"):
        assert own(text)["input_ids"] == library(text)["input_ids"]
    talk = [{"role": "user", "content": "ab"}]
    assert own.apply_chat_template(talk, tokenize=False) == "ab" == library.apply_chat_template(talk, tokenize=False)
    assert (own.bos_token, own.eos_token, own.pad_token) == (library.bos_token, library.eos_token, library.pad_token)
    assert own.eos_token_id == 2
