"""A layer that is laid out for the processor can be used in every way in which the plain layer can."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from swarm.models.linear.substitute import SubstituteLinear, substitute

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def pair(bias: bool = False) -> tuple[nn.Linear, SubstituteLinear]:
    plain = nn.Linear(6, 5, bias=bias).requires_grad_(False)
    twin = substitute(plain)
    assert twin is not None
    assert twin.is_laid_out
    return plain, twin


def scaled(layer: Any) -> Any:
    layer.weight.data.mul_(2.0)
    return layer


def replaced(layer: Any) -> Any:
    layer.weight = nn.Parameter(torch.full((5, 6), 0.5))
    return layer


def written(layer: Any) -> Any:
    with torch.no_grad():
        layer.weight[2] = 3.0
    return layer


def loaded(layer: Any) -> Any:
    layer.load_state_dict({name: torch.ones_like(value) for name, value in layer.state_dict().items()})
    return layer


def applied(layer: Any) -> Any:
    for parameter in layer.parameters():
        parameter.data.zero_()
    return layer


def forgotten(layer: Any) -> Any:
    del layer.weight
    layer.weight = nn.Parameter(torch.ones(5, 6))
    return layer


USES: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda layer: layer,
    "half": lambda layer: layer.half().float(),
    "bfloat16": lambda layer: layer.bfloat16().float(),
    "double": lambda layer: layer.to(torch.float64).float(),
    "to its own dtype": lambda layer: layer.to("cpu", torch.float32),
    "copied": copy.deepcopy,
    "copied shallowly": copy.copy,
    "pickled": lambda layer: pickle.loads(pickle.dumps(layer)),
    "changed past autograd": scaled,
    "replaced": replaced,
    "written into": written,
    "loaded": loaded,
    "through its parameters": applied,
    "deleted and made anew": forgotten,
    "in training": lambda layer: layer.train().eval().requires_grad_(True),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("use", USES)
def test_it_computes_as_the_plain_layer_used_alike(use: str, bias: bool) -> None:
    plain, twin = (USES[use](layer) for layer in pair(bias))
    assert isinstance(twin, nn.Linear)
    x = torch.randn(2, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), plain(x), rtol=1e-5, atol=1e-5)
    assert repr(twin).partition("(")[2] == repr(plain).partition("(")[2]


@pytest.mark.parametrize("bias", [False, True])
def test_what_is_seen_of_it_is_the_plain_layer(bias: bool) -> None:
    looks: list[Callable[[Any], Any]] = [
        lambda layer: layer.weight,
        lambda layer: list(layer.parameters()),
        lambda layer: dict(layer.named_parameters()),
        lambda layer: layer.state_dict(),
        lambda layer: dict(layer._parameters),
        lambda layer: {**layer._parameters},
        lambda layer: layer.get_parameter("weight"),
        lambda layer: layer.bias,
        lambda layer: sum(p.numel() for p in layer.parameters()),
    ]
    for look in looks:
        plain, twin = pair(bias)
        torch.testing.assert_close(look(twin), look(plain), rtol=0, atol=0)
        assert not twin.is_laid_out


def test_what_is_seen_in_inference_mode_can_learn() -> None:
    _, twin = pair()
    with torch.inference_mode():
        assert twin.weight.shape == (5, 6)
    twin.requires_grad_(True)
    twin(torch.randn(2, 6)).sum().backward()
    assert twin.weight.grad is not None


def test_walking_through_modules_is_no_look() -> None:
    _, twin = pair()
    assert list(twin.modules()) == [twin]
    assert "weight" in twin._parameters
    twin.eval()
    twin(torch.randn(2, 6))
    assert twin.is_laid_out
