"""Models that see: images at the client, blocks in a swarm, answers as the library's own whole model gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from survey.images import build_seeing, image, image_token, question, seeing_config
from swarm.client.model import DistributedModelForCausalLM, DistributedModelForImageTextToText
from swarm.errors import InvalidInput, UnsupportedModel
from swarm.models.ends.hollow import HollowWeight
from swarm.types import Span
from tests.checkpoints import GREEDY, Served

TYPES = ("llava", "qwen2_vl", "qwen3_vl", "mistral3", "smolvlm", "internvl", "qwen3_5")
SPANS = [Span(0, 2), Span(2, 6), Span(0, 3), Span(3, 6)]
Saved = Callable[[str], tuple[Path, Any, dict[str, Any]]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A checkpoint of a type, its whole model, and a question with an image."""
    made: dict[str, tuple[Path, Any, dict[str, Any]]] = {}

    def save(kind: str) -> tuple[Path, Any, dict[str, Any]]:
        if kind not in made:
            folder, model = tmp_path_factory.mktemp(kind), build_seeing(seeing_config(kind))
            model.save_pretrained(folder)
            made[kind] = folder, model, question(model)
        return made[kind]

    return save


class KillAfter:
    """A streamer that ends a server of the route with a token."""

    def __init__(self, servers: Served, model: Any, number: int) -> None:
        self.servers, self.model, self.left = servers, model, number + 1

    def put(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            self.servers.kill(self.model.route.hops[0].peer_id)

    def end(self) -> None:
        pass


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", TYPES)
def test_an_answer_goes_on_when_a_server_dies(saved: Saved, kind: str) -> None:
    folder, whole, inputs = saved(kind)
    options = GREEDY | {"max_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
    expected = whole.generate(**inputs, **options)
    servers = Served(folder, SPANS)
    model = servers.model(DistributedModelForImageTextToText)
    assert isinstance(model, type(whole))
    got = model.generate(**inputs, **options, streamer=KillAfter(servers, model, 3))
    assert got.sequences.tolist() == expected.sequences.tolist()
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)
    servers.close()


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_another_image_is_another_answer_and_text_alone_is_text(saved: Saved, kind: str) -> None:
    folder, whole, inputs = saved(kind)
    servers = Served(folder, SPANS[:2])
    model = servers.model(DistributedModelForImageTextToText)
    other = dict(inputs)
    other["pixel_values"] = inputs["pixel_values"].flip(-1) * 0.5
    text = {"input_ids": torch.arange(5, 14)[None]}
    for each in (inputs, other, text):
        torch.testing.assert_close(model(**each).logits, whole(**each).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole(**inputs).logits, whole(**other).logits, atol=1e-3)
    servers.assert_free()
    servers.close()


@torch.no_grad()
def test_a_batch_of_images_with_padding(saved: Saved) -> None:
    folder, whole, inputs = saved("qwen2_vl")
    ids, count = inputs["input_ids"], inputs["input_ids"].shape[1]
    batch = {
        "input_ids": torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), ids[:, :-3]], dim=1), ids]),
        "attention_mask": torch.ones(2, count, dtype=torch.long),
        "pixel_values": torch.cat([inputs["pixel_values"], -inputs["pixel_values"]]),
        "image_grid_thw": inputs["image_grid_thw"].repeat(2, 1),
    }
    batch["attention_mask"][0, :3] = 0
    batch["mm_token_type_ids"] = (batch["input_ids"] == image_token(whole.config)).long()
    servers = Served(folder, SPANS[:2])
    model = servers.model(DistributedModelForImageTextToText)
    got, expected = (each.generate(**batch, **GREEDY, max_new_tokens=6) for each in (model, whole))
    assert got.tolist() == expected.tolist()
    servers.close()


def test_only_what_looks_and_the_ends_are_here(saved: Saved) -> None:
    folder, whole, _ = saved("qwen3_vl")
    servers = Served(folder, SPANS[:2])
    named = servers.model(DistributedModelForImageTextToText).named_parameters()
    here = {name for name, weight in named if not isinstance(weight, HollowWeight)}
    every = {name for name, _ in whole.named_parameters()}
    blocks = "model.language_model.layers."
    # What is seen is added to the outputs of the first two.
    assert here == {name for name in every if not name.startswith(blocks) or name[len(blocks)] in "01"}
    assert any("visual" in name for name in here)
    servers.close()


def test_blocks_that_need_what_is_seen_must_be_here(saved: Saved) -> None:
    folder, _, inputs = saved("qwen3_vl")
    servers = Served(folder, SPANS[:2])
    model = servers.model(DistributedModelForImageTextToText, local_blocks="0:1")
    with pytest.raises(InvalidInput, match="load the model with local_blocks='0:2'"):
        model(**inputs)
    servers.assert_free()
    servers.close()


def test_where_an_image_is_seen_as_a_whole_it_is_refused(saved: Saved) -> None:
    folder, _, inputs = saved("gemma3")
    servers = Served(folder, SPANS[:2])
    with pytest.raises(InvalidInput, match="images: Gemma3TextModel sees them as a whole"):
        servers.model(DistributedModelForImageTextToText)(**inputs)
    servers.assert_free()
    servers.close()


def test_the_wrong_class_says_which_is_right(saved: Saved, tmp_path: Path) -> None:
    folder, _, _ = saved("llava")
    with pytest.raises(UnsupportedModel, match="use DistributedModelForImageTextToText"):
        DistributedModelForCausalLM.from_pretrained(str(folder))
    seeing_config("llava").text_config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="'llama' has no model that sees"):
        DistributedModelForImageTextToText.from_pretrained(str(tmp_path))


def test_the_image_is_a_picture() -> None:
    assert image().shape == (3, 28, 28)
    assert len(image().unique()) > 20
