"""The base model around a span's blocks, made transparent: what goes in reaches the first block, what the last gives
comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from swarm.errors import UnsupportedModel
from swarm.models.blocks import find_blocks, per_block, recount
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.loading.partial import Absent
from swarm.models.span.attention.base import Attention
from swarm.types import Span

PROBE = 3
"""Positions of the probe that looks for what happens before and after the blocks."""


INDEX_NAMES = {"layer_idx", "layer_id", "layer_index", "layer_number"}
"""What architectures call a block's number, by which it finds its part of the cache."""


OTHER_CACHE = "cache_params"
"""What models that have nothing but states call their cache."""


class _PassThrough(Absent):
    """In place of a module that changes the hidden states outside the blocks: returns what it is given."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))


class _Nothing(nn.Module):
    """In place of learned position embeddings, which the client has added already."""

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.dtype = dtype

    def forward(self, positions: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(1, 1, self.hidden_size, dtype=self.dtype, device=positions.device)


class BaseModel:
    """Runs the module that owns the blocks, over any part of them. Raises UnsupportedModel.

    `fewest_rows`: a pass over fewer positions takes longer than one over so many. `singly`: what follows the first
    positions of a sequence is right only position by position.
    """

    def __init__(self, model: PreTrainedModel, span: Span) -> None:
        found = find_blocks(model)
        self.span = span
        self._module: Any = found.owner
        self._name = found.attribute
        self.blocks = list(found.layers)[span.first : span.last]
        config: Any = self._module.config
        self.config = config
        self.hidden_size = int(config.hidden_size)
        on_grids = [m for block in self.blocks for m in block.modules() if isinstance(m, QuantizedLinear)]
        self.quantized = bool(on_grids)
        self.fewest_rows = 1
        self.singly = False
        numbers: torch.Tensor = next(iter([*self.blocks[0].parameters(), *(layer.weight for layer in on_grids)]))
        self.dtype, self.device = numbers.dtype, numbers.device
        self._lists = _per_block_lists(self.config, found.total, span)
        self._attention: str = config._attn_implementation
        self._model = model
        self._accepts = _accepted(self._module)
        self._narrowed: Span | None = None
        if "inputs_embeds" not in self._accepts:
            raise UnsupportedModel(f"{type(self._module).__name__} takes no embeddings in place of tokens")
        self._module.eval()
        self._make_transparent()

    @property
    def takes_positions(self) -> bool:
        """Whether it can be told where positions stand."""
        return "position_ids" in self._accepts

    # ---- running ----------------------------------------------------------------------------------------------

    def narrow(self, span: Span) -> None:
        """From now on `run` computes only the blocks of `span`, as if the model had no others."""
        if span == self._narrowed:
            return
        begin = span.first - self.span.first
        self._set_layers(begin, begin + len(span))
        self._narrowed = span

    def _set_layers(self, begin: int, end: int) -> None:
        layers = self.blocks[begin:end]
        setattr(self._module, self._name, nn.ModuleList(layers))
        # The library sizes its masks from cache layer 0, so the blocks of any slice count from 0.
        for index, layer in enumerate(layers):
            for module in layer.modules():
                for name in INDEX_NAMES & vars(module).keys():
                    setattr(module, name, index)
        values = {name: whole[begin:end] for name, whole in self._lists.items()}
        recount(self.config, end - begin, values)
        self._narrowed = None

    def run(self, hidden: torch.Tensor, positions: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """`hidden` `[1, T, hidden_size]`, `positions` `[1, T]` → `[1, T, hidden_size]`."""
        arguments = {"position_ids": positions, "return_dict": True, **kwargs}
        if "past_key_values" not in self._accepts:
            arguments[OTHER_CACHE] = arguments.get("past_key_values")
        arguments = {name: value for name, value in arguments.items() if name in self._accepts}
        output = self._module(inputs_embeds=hidden, **arguments)
        result = output[0] if isinstance(output, tuple) else output.last_hidden_state
        return torch.as_tensor(result)

    def use_attention(self, attention: Attention) -> None:
        """Attention looks at the lanes of the row."""
        attention.register()
        self._set_attention(attention.name)

    def use_own_attention(self) -> None:
        """Attention is what the library chose."""
        self._set_attention(self._attention)

    def _set_attention(self, name: str) -> None:
        configs = {id(config): config for config in self._configs()}
        for config in configs.values():
            config._attn_implementation_internal = name

    def _configs(self) -> list[Any]:
        modules = [self._module, *(m for layer in self.blocks for m in layer.modules())]
        return [module.config for module in modules if hasattr(getattr(module, "config", None), "_attn_implementation")]

    def after_each_block(self, beat: Callable[[], None]) -> None:
        """Call `beat` when a block has been computed, and when it has got its gradients."""

        def computed(block: nn.Module, inputs: Any, output: Any) -> None:
            beat()
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
                hidden.register_hook(lambda gradient: beat())  # type: ignore[no-untyped-call]

        for layer in self.blocks:
            layer.register_forward_hook(computed)

    # ---- transparency -----------------------------------------------------------------------------------------

    def check_identity(self) -> None:
        """A span of no layers gives back what it gets. Raises UnsupportedModel with what happens instead."""
        hidden = torch.linspace(-1.0, 1.0, PROBE * self.hidden_size).view(1, PROBE, -1).to(self.device, self.dtype)
        output = self._probe(hidden)
        factor = _factor(hidden, output)
        if factor not in (None, 1.0) and self._neutralise_factor(float(factor)):
            output = self._probe(hidden)
        if output.shape != hidden.shape or not torch.equal(output, hidden):
            what = f"multiplies them by {factor:g}" if factor is not None else "changes them"
            raise UnsupportedModel(
                f"{type(self._module).__name__} {what} outside its blocks, in a way that cannot be left to the client"
            )
        self.narrow(self.span)

    def _probe(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run without any layer. Raises UnsupportedModel when the model cannot do that."""
        self._set_layers(0, 0)
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        try:
            return self.run(hidden, positions, use_cache=False)
        except Exception as error:
            reason = f"{type(self._module).__name__} needs more than hidden states and positions: {error}"
            raise UnsupportedModel(reason) from error

    def _make_transparent(self) -> None:
        """Replace every child that touches the hidden states outside the blocks."""
        called: dict[str, bool] = {}
        hooks = [
            child.register_forward_pre_hook(_note(called, name, self.hidden_size), with_kwargs=True)
            for name, child in self._module.named_children()
            if name != self._name and not _is_rotary(name, child)
        ]
        replaced: set[str] = set()
        hidden = torch.zeros(1, PROBE, self.hidden_size, dtype=self.dtype, device=self.device)
        while True:
            called.clear()
            try:
                self._probe(hidden)
            except UnsupportedModel:
                if not set(called) - replaced:
                    raise
            fresh = {name: positions for name, positions in called.items() if name not in replaced}
            if not fresh:
                break
            for name, positions in fresh.items():
                stand_in = _Nothing(self.hidden_size, self.dtype) if positions else _PassThrough()
                setattr(self._module, name, stand_in)
                replaced.add(name)
        for hook in hooks:
            hook.remove()

    def _neutralise_factor(self, factor: float) -> bool:
        """Set the one attribute that holds the factor to 1. False if there is none, or no single one."""
        names = [
            name
            for name, value in vars(self._module).items()
            if isinstance(value, float | int)
            and not isinstance(value, bool)
            and abs(value - factor) < 1e-6 * abs(factor)
        ]
        if len(names) != 1:
            return False
        setattr(self._module, names[0], 1.0)
        return True


def _note(called: dict[str, bool], name: str, hidden_size: int) -> Callable[..., None]:
    """A hook that notes that a child was called, and whether with positions rather than with hidden states."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        called[name] = not any(t.is_floating_point() and t.shape[-1] == hidden_size for t in tensors)

    return hook


def _is_rotary(name: str, child: nn.Module) -> bool:
    """Rotary embeddings make cosines and sines for the blocks; they do not touch the hidden states."""
    return "rotary" in name.lower() or "rope" in name.lower() or "rotary" in type(child).__name__.lower()


def _factor(hidden: torch.Tensor, output: torch.Tensor) -> float | None:
    """c where output = c · hidden everywhere, else None."""
    if output.shape != hidden.shape:
        return None
    ratio = float((output.float() * hidden.float()).sum() / (hidden.float() ** 2).sum())
    return ratio if torch.allclose(output.float(), hidden.float() * ratio, rtol=1e-2, atol=1e-4) else None


def _per_block_lists(config: Any, total: int, span: Span) -> dict[str, list[Any]]:
    """The configuration's lists that have one entry a block, cut to the span."""
    return {name: value[span.first : span.last] for name, value in per_block(config, total).items()}


def _accepted(module: nn.Module) -> set[str]:
    parameters = inspect.signature(module.forward).parameters
    return {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
