"""A weight that is somewhere else, as a tensor: only what is used of it is read, until somebody looks at all of it.

Rows that are looked up, and products with it, are computed from parts; what else is done with it is done with the plain
tensor, which is made for it and stays. By torch's protocols for foreign tensors
(https://pytorch.org/docs/stable/notes/extending.html), so that no architecture has code of its own.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_map

from swarm.errors import InvalidInput

aten = torch.ops.aten
VIEWS = (aten.detach.default, aten.alias.default)
"""What gives the same tensor."""
OF_STORAGE = frozenset({
    "numpy", "tolist", "__array__", "data_ptr", "storage", "untyped_storage", "share_memory_", "pin_memory",
    "__dlpack__",
})  # fmt: skip
"""Methods of tensors that need numbers, and are no operations of torch's dispatcher."""


class Numbers(Protocol):
    """`[rows, columns]` numbers that are somewhere."""

    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def fixed(self) -> str | None:
        """Why they cannot be changed; None where they can."""

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """`[count, columns]` of `dtype`: the rows of these numbers, int64 `[count]`."""

    def parts(self) -> Iterator[torch.Tensor]:
        """All rows, some after others."""

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` `[count, columns]` with each of the numbers' rows: `[count, rows]`, without a gradient."""


class Held:
    """Numbers, and the plain tensor of them from when on there is one."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers
        self.plain: torch.Tensor | None = None
        self._looking = threading.Lock()

    def look(self) -> torch.Tensor:
        """All numbers, which stay."""
        with self._looking:
            if self.plain is None:
                with torch.inference_mode(mode=False), torch.no_grad():
                    plain = torch.empty(self.numbers.shape, dtype=self.numbers.dtype)
                    first = 0
                    for part in self.numbers.parts():
                        plain[first : first + len(part)] = part
                        first += len(part)
                self.plain = plain
            return self.plain


class UnreadWeight(torch.Tensor):
    """On the CPU, of the numbers' shape and dtype. Copies, casts, moves and pickles are plain tensors, but for a deep
    copy of what nobody has looked at. Raises InvalidInput where numbers that are fixed are changed."""

    held: Held

    @staticmethod
    def __new__(cls, held: Held) -> UnreadWeight:
        made: Any = torch.Tensor
        weight: UnreadWeight = made._make_wrapper_subclass(cls, held.numbers.shape, dtype=held.numbers.dtype)
        weight.held = held
        return weight

    @property
    def is_unread(self) -> bool:
        """Whether nobody has looked at all of it yet."""
        return self.held.plain is None

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if function is torch.nn.functional.linear:
            product = _product(*args, **given)
            if product is not None:
                return product
        if getattr(function, "__name__", "") in OF_STORAGE:
            args, given = tree_map(_looked_at, tuple(args)), tree_map(_looked_at, given)
            return function(*args, **given)
        if function == _SET_DATA:
            return _become(args[0], args[1])
        with _plainly():
            return function(*args, **given)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, UnreadWeight):
            if function in VIEWS:
                return UnreadWeight(first.held)
            if function is aten.embedding.default and first.is_unread:
                return _looked_up(first.held.numbers, args[1])
        if function._schema.is_mutable:
            _check_changeable(function, args)
        return function(*tree_map(_looked_at, tuple(args)), **tree_map(_looked_at, dict(kwargs or {})))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        where = "unread" if self.is_unread else repr(self.held.plain)
        return f"{type(self).__name__}({where}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        plain = self.held.plain
        twin: torch.Tensor = UnreadWeight(Held(self.held.numbers)) if plain is None else copy.deepcopy(plain, memo)
        memo[id(self)] = twin = _as(self, twin)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain: Any = _as(self, self.held.look())
        return plain.__reduce_ex__(protocol)


_plainly: Any = torch._C.DisableTorchFunctionSubclass
_SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__


def unread(numbers: Numbers) -> nn.Parameter:
    """As a parameter that does not learn."""
    return nn.Parameter(UnreadWeight(Held(numbers)), requires_grad=False)


def _as(weight: torch.Tensor, twin: torch.Tensor) -> torch.Tensor:
    """A parameter, where `weight` is one."""
    return nn.Parameter(twin, weight.requires_grad) if isinstance(weight, nn.Parameter) else twin


def _become(weight: torch.Tensor, plain: torch.Tensor) -> None:
    """What `weight.data = plain` does: from now on it is a plain tensor."""
    if isinstance(weight, UnreadWeight):
        if isinstance(plain, UnreadWeight) and (plain.shape, plain.dtype) == (weight.shape, weight.dtype):
            weight.held = plain.held
            return
        if (why := weight.held.numbers.fixed) is not None:
            raise InvalidInput(why)
        if isinstance(plain, UnreadWeight):
            plain = plain.held.look()
        swap: Any = torch.utils.swap_tensors
        swap(weight, _as(weight, plain.detach()))
    else:
        weight.data = plain.held.look() if isinstance(plain, UnreadWeight) else plain


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _product(input: Any, weight: Any, bias: Any = None) -> torch.Tensor | None:
    """Of rows with an unread weight; None where that is not what is asked for."""
    if isinstance(input, UnreadWeight) or not isinstance(weight, UnreadWeight) or not weight.is_unread:
        return None
    if _learns(input, weight, bias) or (input.dtype, input.device.type) != (weight.dtype, "cpu"):
        return None
    product = weight.held.numbers.product(input.reshape(-1, input.shape[-1]))
    product = product if bias is None else product + bias
    return product.view(*input.shape[:-1], product.shape[-1])


def _learns(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _looked_at(value: Any) -> Any:
    return value.held.look() if isinstance(value, UnreadWeight) else value


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _looked_up(numbers: Numbers, chosen: torch.Tensor) -> torch.Tensor:
    flat = chosen.reshape(-1).to("cpu", torch.int64)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < numbers.shape[0]:
        raise IndexError("index out of range in self")
    different, places = torch.unique(flat, return_inverse=True)
    return numbers.rows(different)[places].view(*chosen.shape, numbers.shape[1])


def _check_changeable(function: Any, args: Sequence[Any]) -> None:
    for value, argument in zip(args, function._schema.arguments, strict=False):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and isinstance(value, UnreadWeight) and (why := value.held.numbers.fixed) is not None:
            raise InvalidInput(why)
