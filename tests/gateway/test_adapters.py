"""Adapters as models of a gateway, and in a chat: what plain transformers and peft make of the same folders."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file

from swarm.cli.values import adapters_of
from swarm.errors import BadCheckpoint, InvalidInput, ModelNotFound
from swarm.gateway.life import Gateway, HttpPlace
from swarm.gateway.loading import load_model
from swarm.models.ends.adapter_folder import put_adapter, read_adapter
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.net.loop import shared_loop
from tests.checkpoints import GREEDY, Served, make_tokenizer, prompt

Serve = Callable[[str, int], Served]
Whole = Callable[[str], Any]
NEW = 6
TARGETS = ["q_proj", "v_proj", "down_proj"]


def write(whole: Any, folder: Path, seed: int, embeddings: bool = False, **options: Any) -> Path:
    """An adapter of matrices of which none is zero, and all are large enough to be seen in the text."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **options}
    made = get_peft_model(copy.deepcopy(whole), LoraConfig(task_type=TaskType.CAUSAL_LM, **settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(made.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    made.save_pretrained(folder, save_embedding_layers=embeddings)
    return folder


def expected(whole: Any, folder: Path | None, ids: torch.Tensor) -> list[int]:
    model = whole if folder is None else PeftModel.from_pretrained(copy.deepcopy(whole), folder).eval()
    return model.generate(input_ids=ids, **GREEDY, max_new_tokens=NEW)[0, ids.shape[1] :].tolist()


def test_a_gateway_offers_adapters_beside_the_model(served: Serve, whole: Whole, tmp_path: Path) -> None:
    servers, right = served("llama", 2), whole("llama")
    folders = {name: write(right, tmp_path / name, seed, r=4 + seed) for seed, name in enumerate(("one", "two"))}
    shutil.copytree(servers.folder, tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_model(
        str(tmp_path / "model"), dtype="float32", adapters={name: str(path) for name, path in folders.items()}
    )
    loaded = replace(loaded, info=servers.info)
    base = servers.info.name
    ids = prompt(9)
    wanted = {base: expected(right, None, ids)} | {
        f"{base}:{name}": expected(right, folder, ids) for name, folder in folders.items()
    }
    assert len(set(map(tuple, wanted.values()))) == 3, "each says something else"

    async def work(gateway: Gateway) -> None:
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            assert [each["id"] for each in (await client.get("/models")).json()["data"]] == list(wanted)

            async def ask(model: str) -> tuple[str, str]:
                body = {"model": model, "prompt": ids[0].tolist(), "max_tokens": NEW, "ignore_eos": True}
                answer = (await client.post("/completions", json=body | {"temperature": 0})).json()
                return answer["model"], answer["choices"][0]["text"]

            got = await asyncio.gather(*map(ask, [*wanted, *wanted]))
            assert got == [(name, loaded.texts.decode(tokens)) for name, tokens in wanted.items()] * 2
            vectors = [
                (await client.post("/embeddings", json={"model": name, "input": ids[0].tolist()})).json()
                for name in (base, f"{base}:one")
            ]
            assert vectors[0]["data"][0]["embedding"] != vectors[1]["data"][0]["embedding"]
            body = {"model": f"{base}:three", "prompt": "abc"}
            assert (await client.post("/completions", json=body)).status_code == 404
        nodes = await servers.swarm.directory.query_nodes(servers.info.key)
        assert len(nodes) == 1, "adapters are this gateway's own business"

    async def main() -> None:
        ready: asyncio.Future[Gateway] = asyncio.get_running_loop().create_future()
        async with servers.network.join("gateway") as network:
            gateway = Gateway(network, loaded, http=HttpPlace(port=0), on_ready=ready.set_result)
            running = asyncio.create_task(gateway.run())
            await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            await work(await ready)
            gateway.leave()
            await running

    shared_loop().run(main())
    servers.assert_free()


def test_a_chat_speaks_with_an_adapter(served: Serve, whole: Whole, tmp_path: Path) -> None:
    ids, folder = prompt(9), write(whole("llama"), tmp_path / "one", 0)
    model = served("llama", 2).model()
    put_adapter(model, folder)
    got = model.generate(ids, **GREEDY, max_new_tokens=NEW)[0, ids.shape[1] :].tolist()
    assert got == expected(whole("llama"), folder, ids)


def of_prompts(whole: Any, folder: Path) -> None:
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    get_peft_model(copy.deepcopy(whole), config).save_pretrained(folder)


def of_another_model(whole: Any, folder: Path) -> None:
    write(whole, folder, 0)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name.replace("layers.5.", "layers.6."): tensor for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )


def of_other_shapes(whole: Any, folder: Path) -> None:
    write(whole, folder, 0)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))


def cut(whole: Any, folder: Path) -> None:
    write(whole, folder, 0)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


REFUSED: dict[str, tuple[Callable[[Any, Path], object], type[Exception], str]] = {
    "prompts": (of_prompts, InvalidInput, "PROMPT_TUNING in .*: LoRA beside linear layers"),
    "DoRA": (lambda whole, folder: write(whole, folder, 0, use_dora=True), InvalidInput, "DoRA"),
    "the head": (
        lambda whole, folder: write(whole, folder, 0, target_modules=["q_proj", "lm_head"]),
        InvalidInput,
        "changes lm_head, which is no block's",
    ),
    "a head of its own": (
        lambda whole, folder: write(whole, folder, 0, embeddings=True),
        InvalidInput,
        "brings base_model.model.*weight, weights of the model itself",
    ),
    "another model": (of_another_model, BadCheckpoint, "is of another model"),
    "other shapes": (of_other_shapes, BadCheckpoint, "does not fit this model"),
    "damaged": (cut, BadCheckpoint, "does not fit this model"),
    "nothing": (lambda whole, folder: folder.mkdir(), ModelNotFound, "holds no adapter_config.json"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_had_is_refused_by_name(checkpoints: Any, whole: Whole, tmp_path: Path, what: str) -> None:
    make, error, words = REFUSED[what]
    make(whole("llama+untied"), tmp_path / "adapter")
    with pytest.raises(error, match=words):
        read_adapter(open_checkpoint(checkpoints("llama+untied")), tmp_path / "adapter", torch.float32)


def test_how_adapters_are_named() -> None:
    context = click.Context(click.Command("x"))
    parameter = click.Option(["--adapter"])
    assert adapters_of(context, parameter, ("a=b", "c.1=/d=e")) == {"a": "b", "c.1": "/d=e"}
    for wrong in (("a",), ("=b",), ("a=",), ("a:b=c",), ("a/b=c",), ("a=b", "a=c")):
        with pytest.raises(click.BadParameter):
            adapters_of(context, parameter, wrong)
