"""Which blocks must stay together is found from the configuration alone, and held to when they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from survey.configs import shrunk, small_config
from swarm.config import ServerConfig
from swarm.errors import InvalidInput, UnsupportedModel
from swarm.models.loading.joined import joined_blocks, runs
from swarm.models.span.load import load_span
from swarm.server.hosting import Hosting
from swarm.server.options import ServeOptions
from swarm.types import Span
from tests.checkpoints import save

MIXED = ["sliding_attention", "full_attention"] * 3


@pytest.mark.parametrize(
    ("read", "together"),
    [
        ([], []),
        ([(0, 1)], ["0:2"]),
        ([(2, 3), (2, 4), (4, 5), (0, 1)], ["0:2", "2:6"]),
        ([(0, 3), (1, 2), (4, 5)], ["0:4", "4:6"]),
    ],
)
def test_pairs_become_the_longest_runs(read: list[tuple[int, int]], together: list[str]) -> None:
    assert [str(run) for run in runs(read)] == together


@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen3_next", "gpt2", "deepseek_v32", "llama4_text", "mpt"])
def test_most_models_can_be_cut_anywhere(kind: str) -> None:
    assert joined_blocks(small_config(kind)) == ()


def test_the_configuration_stays_as_it_was() -> None:
    config = small_config("falcon")
    before = vars(config).copy()
    joined_blocks(config)
    assert vars(config) == before


def test_who_attends_to_what_others_have_selected_stays_with_them() -> None:
    assert [str(run) for run in joined_blocks(small_config("glm_moe_dsa"))] == ["0:2", "3:6"]


@pytest.mark.parametrize("kind", ["gemma3n_text", "gemma4_text"])
def test_who_uses_keys_and_values_of_others_stays_with_them(kind: str) -> None:
    config = shrunk(
        CONFIG_MAPPING[kind], {"layer_types": MIXED, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}
    )
    assert [str(run) for run in joined_blocks(config)] == ["2:6"]


def test_nobody_hosts_or_computes_a_part(tmp_path: Path) -> None:
    folder = save(tmp_path, "glm_moe_dsa")

    def hosting(**wishes: object) -> Hosting:
        wishes = {"dtype": "float32", "device": "cpu", **wishes}
        return Hosting(ServeOptions(str(folder), **wishes), ServerConfig(), progress=False)  # type: ignore[arg-type]

    with pytest.raises(InvalidInput, match=r"--blocks 1:5: blocks 0:2 must stay together: .*; host 0:6"):
        hosting(blocks=Span(1, 5)).choose([])
    assert hosting(blocks=Span(0, 3)).choose([]) == Span(0, 3)
    host = hosting()
    (smallest, *_) = sorted({sum(host.sizes.weights[b] for b in run) for run in (Span(0, 2), Span(2, 3), Span(3, 6))})
    narrow = hosting(memory=4 * smallest, cache_tokens=1)
    assert narrow.choose([]) in {Span(0, 2), Span(0, 3), Span(2, 3), Span(2, 6), Span(3, 6)}
    with pytest.raises(InvalidInput, match="3:6 must stay together"):
        load_span(folder, Span(3, 5), progress=False)
    span = load_span(folder, Span(0, 3), progress=False)
    assert span.proven.joined == (Span(0, 2),)
    with pytest.raises(InvalidInput, match="0:2 must stay together"):
        span._check_span(Span(1, 3))


def test_a_run_that_was_not_found_is_refused_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.models.loading.checkpoint.joined_blocks", lambda config, form: ())
    with pytest.raises(UnsupportedModel):
        load_span(save(tmp_path, "glm_moe_dsa"), Span(0, 3), progress=False)
