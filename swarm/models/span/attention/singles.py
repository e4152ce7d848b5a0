"""Attention of single positions, each of a sequence of its own, in one call of the compiled kernel (decode.c).

A decode step of many sessions is a lane of one position each; by torch, each costs a call and half a dozen views
a block. A position's result does not depend on what shares the call.
"""

from __future__ import annotations

import ctypes
from array import array

import torch

from swarm.models.linear.compiled import Kernel, kernel

WIDE = 8
"""As in decode.c: numbers computed at once."""


class _Shape(ctypes.Structure):
    """`shape_t` of decode.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "key_heads", "head_dim", "value_dim")),
        *((name, ctypes.c_float) for name in ("scale", "cap")),
        ("sinks", ctypes.c_void_p),
    )


class Singles:
    """Positions of one call of attention, all in float32 on the CPU."""

    def __init__(self, compiled: Kernel, shape: _Shape, sinks: torch.Tensor | None) -> None:
        self._kernel = compiled
        self._shape = shape
        self._held: list[torch.Tensor | None] = [sinks]
        self._positions = array("q")
        self._longest = 0

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> Singles | None:
        """For a call with query `[1, query heads, T, head_dim]`, key and value `[1, kv heads, T, …]`, capped scores and
        learned sinks `[query heads]`; None where the kernel cannot compute it, or gradients are wanted."""
        given = query, key, value
        if not all(each.dtype == torch.float32 and each.device.type == "cpu" for each in given):
            return None
        if query.stride(-1) != 1 or (torch.is_grad_enabled() and any(each.requires_grad for each in given)):
            return None
        if sinks is not None and (sinks.dtype != torch.float32 or not sinks.is_contiguous()):
            return None
        if (compiled := kernel()) is None:
            return None
        shape = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
        pointer = None if sinks is None else sinks.data_ptr()
        return cls(compiled, _Shape(*shape, scale, softcap or 0.0, pointer), sinks)

    def add(
        self,
        query: torch.Tensor,
        row: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        output: torch.Tensor,
    ) -> None:
        """The position at `row` of `query` attends to the cached `[kv heads, length, …]`, in which positions lie one
        behind the other, into `[row]` of `output` `[T, query heads, value_dim]`; `mask`: bool `[1, length]`."""
        length = keys.shape[1]
        if mask is not None:
            mask = mask.bool().contiguous()
        self._held.append(mask)
        self._longest = max(self._longest, length)
        self._positions.extend(
            (
                query.data_ptr() + 4 * row * query.stride(2),
                keys.data_ptr(),
                values.data_ptr(),
                0 if mask is None else mask.data_ptr(),
                output.data_ptr() + 4 * row * output.stride(0),
                length,
                query.stride(1),
                keys.stride(0),
                values.stride(0),
            )
        )

    def attend(self) -> None:
        """Compute what was added."""
        count, threads = len(self._positions) // 9, torch.get_num_threads()
        if not count:
            return
        room = self._longest + WIDE
        work = torch.empty(threads * room)
        address, _ = self._positions.buffer_info()
        self._kernel.attend(ctypes.addressof(self._shape), address, count, work.data_ptr(), room, threads)
