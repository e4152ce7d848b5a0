"""Blocks that are given several hidden states a position, or its token: what travels, and that texts are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from survey.examine import cuts, through
from swarm.errors import InvalidInput, UnsupportedModel
from swarm.jobs import Afresh
from swarm.models.ends.ends import Ends
from swarm.models.ends.load import load_ends
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.row_shape import BATCH, COUNT, RowShape
from swarm.models.span.load import load_span
from swarm.types import Segment, Span
from tests.checkpoints import GREEDY, Served, prompt, reference, save

KINDS = ("deepseek_v4", "hy_v4")
NEW = 6


@given(
    st.lists(st.integers(1, 4), max_size=2).map(tuple),
    st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 1 << 23),
)
def test_what_a_block_is_given_comes_back_out_of_its_rows(
    before: tuple[int, ...], behind: tuple[int, ...], dtype: torch.dtype, token: int
) -> None:
    given_ = torch.randn(*before, BATCH, COUNT, *behind).to(dtype)
    shape = RowShape.of(given_, tokens=True)
    assert (shape.before, shape.behind) == (before, behind)
    ids = torch.full((BATCH, COUNT), token)
    rows = shape.rows(given_, ids)
    assert rows.shape == (BATCH, COUNT, shape.size)
    assert torch.equal(shape.hidden(rows), given_)
    assert torch.equal(shape.ids(rows, 1 << 24), ids)
    assert torch.equal(RowShape(before, behind).rows(given_), rows[..., : shape.numbers])


def test_whatever_strangers_send_is_some_token() -> None:
    shape = RowShape((), (1,), tokens=True)
    rows = torch.tensor([[[0.0, float("nan"), float("inf"), -7.0], [1.0, 1e30, 99.4, 3.0]]])
    ids = shape.ids(rows, 160)
    assert bool(((ids >= 0) & (ids < 160)).all())


def test_blocks_that_are_given_no_rows_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="for 5 sequences of 7 positions"):
        RowShape.of(torch.zeros(COUNT, BATCH, 8), tokens=False)


@pytest.fixture(params=KINDS, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp(request.param), request.param)


def test_a_text_is_that_of_the_whole_model(folder: Path) -> None:
    ids = prompt(9)
    right = reference(folder).generate(ids, **GREEDY, max_new_tokens=NEW)
    served = Served(folder, cuts(6, open_checkpoint(folder).joined))
    try:
        model = served.model()
        assert torch.equal(model.generate(ids, **GREEDY, max_new_tokens=NEW), right)
        model.get_input_embeddings().weight.requires_grad_()
        with pytest.raises(InvalidInput, match="gradients"):
            model(ids, labels=ids)
        if folder.name.startswith("deepseek_v4"):
            with torch.no_grad(), pytest.raises(InvalidInput, match="pass input_ids"):
                model(inputs_embeds=model.get_input_embeddings()(ids))
        assert not any(hosted.trains for hosted in served.hosted if hosted.contract.joined)
    finally:
        served.close()


def test_a_query_nodes_ends_give_the_same_logits(folder: Path) -> None:
    ids = prompt(9)
    with torch.no_grad():
        right = reference(folder)(ids).logits[0]
    ends = Ends(load_ends(folder, progress=False)[0])
    spans = [load_span(folder, span, progress=False) for span in cuts(6, open_checkpoint(folder).joined)]
    assert ends.row_numbers == spans[0].hidden_size > right.shape[-1]
    (rows,) = ends.embed([ids[0].tolist()], [0])
    out = through(spans, [Segment((b"s", 1), 0, 9)], rows)
    logits = ends.logits([out[i : i + spans[0].row_bytes] for i in range(0, len(out), spans[0].row_bytes)])
    assert float((logits - right).abs().max() / right.abs().max()) < 2e-4


def test_blocks_that_look_at_tokens_give_no_gradients(tmp_path: Path) -> None:
    span: Any = load_span(save(tmp_path, "deepseek_v4"), Span(0, 1), progress=False)
    assert not span.trains
    with pytest.raises(UnsupportedModel, match="no gradients"):
        span.run(Afresh(Span(0, 1), (3,), torch.zeros(3, span.hidden_size)))
