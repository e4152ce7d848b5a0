"""A linear layer laid out for the processor that is what it stands for: looked at, it is the plain layer."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from swarm.models.linear.laid_out import LaidOutLinear, laid_out_linear
from swarm.models.linear.shared import SharedLinear


class SubstituteLinear(nn.Linear):
    """Computes by a `SharedLinear` until somebody looks at its weight, from then on as the plain layer that it is.

    Who holds the weight may change it, of which the processor's layout would not know; both at once would take twice
    the memory. Reading, replacing, casting, moving, copying and pickling are those of the plain layer.
    """

    _laid_out: LaidOutLinear | None

    def __init__(
        self,
        laid_out: LaidOutLinear,
        of_weight: Mapping[str, Any] | None = None,
        marks: Mapping[str, Any] | None = None,
    ) -> None:
        """`of_weight`, `marks`: further attributes of the layer's weight, and of the layer."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = laid_out.in_features, laid_out.out_features
        self._looking = threading.Lock()
        # Past nn.Module, for which the layer has a weight and no parts.
        self._of_weight = dict(of_weight or {})
        vars(self).update(marks or {})
        vars(self).update(_laid_out=laid_out, _parameters=_Unseen(self._look))

    def extra_repr(self) -> str:
        bias = self._laid_out.bias if self._laid_out is not None else self.bias
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias is not None}"

    @property
    def is_laid_out(self) -> bool:
        """Whether nobody has looked at the weight yet."""
        return self._laid_out is not None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[…, in_features]` → `[…, out_features]`."""
        laid_out = self._laid_out
        product: torch.Tensor = super().forward(input) if laid_out is None else laid_out(input)
        return product

    def _look(self) -> dict[str, Any]:
        """The parameters of the plain layer, which it is from now on."""
        with self._looking:
            if (laid_out := self._laid_out) is not None:
                with torch.inference_mode(mode=False), torch.no_grad():
                    weight = nn.Parameter(laid_out.dense(), requires_grad=False)
                vars(weight).update(self._of_weight)
                vars(self).update(_parameters={"weight": weight, "bias": laid_out.bias}, _laid_out=None)
        parameters: dict[str, Any] = vars(self)["_parameters"]
        return parameters

    def _plain(self) -> nn.Linear:
        parameters = self._look()
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight, plain.bias = parameters["weight"], parameters["bias"]
        plain.train(self.training)
        return plain

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        return copy.deepcopy(self._plain(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copy.copy, (self._plain(),)


class _Unseen(dict[str, Any]):
    """The parameters of a module as nn.Module keeps them, which are made when somebody looks at one."""

    def __init__(self, look: Callable[[], dict[str, Any]]) -> None:
        super().__init__(weight=None, bias=None)
        self._look = look

    def __getitem__(self, name: str) -> Any:
        return self._look()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._look()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._look()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._look())

    def get(self, name: str, default: Any = None) -> Any:
        """The parameter, made for it."""
        return self._look().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """Take the parameter out."""
        return self._look().pop(name, *default)

    def items(self) -> Any:
        """Names and parameters."""
        return self._look().items()

    def values(self) -> Any:
        """The parameters."""
        return self._look().values()

    def copy(self) -> dict[str, Any]:
        """A plain dict of them."""
        return self._look().copy()

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Put several in."""
        self._look().update(*args, **kwargs)


def substitute(linear: nn.Module) -> SubstituteLinear | None:
    """A plain linear layer laid out for this processor; None where that cannot be had, or computes something else."""
    laid_out = laid_out_linear(linear, SharedLinear)
    return None if laid_out is None else SubstituteLinear(laid_out, vars(linear.weight), _marks(linear))


def _marks(linear: nn.Module) -> dict[str, Any]:
    """What a library has noted in the layer, such as that it is initialised."""
    return {name: value for name, value in vars(linear).items() if name.startswith("_is_")}
