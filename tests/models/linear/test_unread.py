"""A weight that is somewhere else can be used in every way in which a plain tensor can, and is read as it is used."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from swarm.errors import InvalidInput
from swarm.models.linear.head import QuantizedHead
from swarm.models.linear.schemes import quantize
from swarm.models.linear.unread import UnreadWeight, unread

IDS = torch.tensor([[1, 2, 1], [6, 0, 3]])


class Somewhere:
    """Numbers, of which is noted what is read."""

    fixed = None

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers
        self.shape, self.dtype = (numbers.shape[0], numbers.shape[1]), numbers.dtype
        self.read: list[list[int]] = []

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        self.read.append(chosen.tolist())
        return self.numbers[chosen]

    def parts(self) -> Iterator[torch.Tensor]:
        self.read.append(list(range(self.shape[0])))
        yield self.numbers[:3].clone()
        yield self.numbers[3:].clone()

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.numbers.T


def pair() -> tuple[nn.ModuleList, nn.ModuleList, Somewhere]:
    """Embeddings and the head that is tied to them: plain ones, and such whose weight is elsewhere."""
    torch.manual_seed(0)
    plain = nn.ModuleList([nn.Embedding(7, 5), nn.Linear(5, 7)]).requires_grad_(False)
    table, head = plain
    head.weight = table.weight
    there, twin = Somewhere(table.weight.detach().clone()), copy.deepcopy(plain)
    weight = unread(there)
    twin[0].weight, twin[1].weight = weight, weight
    return plain, twin, there


def changed(way: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @torch.no_grad()
    def use(ends: Any) -> Any:
        way(ends[0].weight)
        return ends

    return use


def resized(ends: Any) -> Any:
    wider = nn.Embedding(9, 5)
    with torch.no_grad():
        wider.weight.zero_()
        wider.weight.data[:7] = ends[0].weight.data
    ends[0].weight.data = wider.weight.data
    ends[1].bias.data = torch.zeros(9)
    return ends


def loaded(ends: Any) -> Any:
    ends.load_state_dict({name: torch.ones_like(value) for name, value in ends.state_dict().items()})
    return ends


USES: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda ends: ends,
    "half": lambda ends: ends.half().float(),
    "to its own dtype": lambda ends: ends.to("cpu", torch.float32),
    "copied": copy.deepcopy,
    "pickled": lambda ends: pickle.loads(pickle.dumps(ends)),
    "changed past autograd": changed(lambda weight: weight.data.mul_(2.0)),
    "written into": changed(lambda weight: weight.__setitem__(2, 3.0)),
    "a view of it changed": changed(lambda weight: weight[3].zero_()),
    "given other numbers": resized,
    "loaded": loaded,
}
UNREAD = ("as it is", "to its own dtype", "copied")


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("use", USES)
def test_it_computes_as_the_plain_layers_used_alike(use: str, inference: bool) -> None:
    plain, twin, _ = pair()
    plain, twin = USES[use](plain), USES[use](twin)
    assert twin[0].weight is twin[1].weight
    hidden = torch.randn(2, 3, 5)
    with torch.inference_mode(inference), torch.set_grad_enabled(False):
        torch.testing.assert_close(twin[0](IDS), plain[0](IDS), rtol=0, atol=0)
        torch.testing.assert_close(twin[1](hidden), plain[1](hidden), rtol=1e-5, atol=1e-5)
    weight = twin[0].weight
    assert (isinstance(weight, UnreadWeight) and weight.is_unread) == (use in UNREAD)


def test_only_the_rows_that_are_looked_up_are_read_each_once() -> None:
    _, twin, there = pair()
    twin[0](IDS)
    assert there.read == [[0, 1, 2, 3, 6]]
    for wrong in (7, -1):
        with pytest.raises(IndexError):
            twin[0](torch.tensor([wrong]))


@pytest.mark.parametrize("end", [0, 1])
def test_it_learns_as_the_plain_layer(end: int) -> None:
    grads = []
    for ends in pair()[:2]:
        ends[end].requires_grad_(True)
        ends[end]([IDS, torch.ones(2, 5)][end]).square().sum().backward()
        grads.append(ends[end].weight.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize(
    "look",
    [
        lambda weight: weight.sum(),
        lambda weight: torch.tensor(weight.tolist()),
        lambda weight: torch.from_numpy(weight.detach().numpy()),
        lambda weight: weight.t() @ torch.ones(7, 2),
        lambda weight: weight[2:4],
    ],
)
def test_what_is_seen_of_it_is_the_plain_tensor(look: Callable[[Any], Any]) -> None:
    plain, twin, _ = pair()
    torch.testing.assert_close(look(twin[0].weight), look(plain[0].weight), rtol=0, atol=0)
    assert "UnreadWeight" in repr(unread(pair()[2]))


def test_the_weight_of_a_head_on_a_grid_are_its_numbers_and_cannot_be_changed() -> None:
    grid = quantize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)), "int8")
    head = QuantizedHead(grid)
    assert torch.equal(head.weight[:], grid.dense())
    rows = torch.randn(3, 64)
    torch.testing.assert_close(nn.functional.linear(rows, head.weight), head(rows))
    assert torch.equal(nn.functional.embedding(torch.tensor([5, 1]), head.weight), grid.dense()[[5, 1]])
    for change in (
        lambda: head.weight.mul_(2),
        lambda: head.weight.data.zero_(),
        lambda: setattr(head, "weight", nn.Parameter(torch.zeros(40, 64))),
        lambda: setattr(head.weight, "data", torch.zeros(40, 64)),
    ):
        with pytest.raises(InvalidInput, match="head='memory'"):
            change()
    assert torch.equal(copy.deepcopy(head).half()(rows.half()), head(rows.half()))
