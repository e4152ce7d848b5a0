"""The base model around a span's blocks, made transparent: what goes in reaches the first block, what the last gives
comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from swarm.errors import UnsupportedModel
from swarm.models.blocks import find_blocks, per_block, recount
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.row_shape import BATCH, COUNT, TOKENS, RowShape
from swarm.models.span.attention.base import Attention
from swarm.models.span.stand_ins import AddsNothing, Entered, PassThrough, Reached, hidden_among, reach
from swarm.types import Span

PROBE = 3
"""Positions of the probe that looks for what happens before and after the blocks."""


INDEX_NAMES = {"layer_idx", "layer_id", "layer_index", "layer_number"}
"""What architectures call a block's number, by which it finds its part of the cache."""


OTHER_CACHE = "cache_params"
"""What models that have nothing but states call their cache."""


class BaseModel:
    """Runs the module that owns the blocks, over any part of them. Raises UnsupportedModel.

    `fewest_rows`: a pass over fewer positions takes longer than one over so many. `singly`: what follows the first
    positions of a sequence is right only position by position. `hands_on_tokens`: blocks are given token ids, which
    come behind the hidden states.
    """

    def __init__(self, model: PreTrainedModel, span: Span) -> None:
        found = find_blocks(model)
        self.span = span
        self._module: Any = found.base
        self._owner: Any = found.owner
        self._name = found.attribute
        self.blocks = list(found.layers)[span.first : span.last]
        config: Any = self._module.config
        self.config = config
        self._embedding_size = int(config.hidden_size)
        on_grids = [m for block in self.blocks for m in block.modules() if isinstance(m, QuantizedLinear)]
        self.quantized = bool(on_grids)
        self.fewest_rows = 1
        self.singly = False
        self.hands_on_tokens = False
        numbers: torch.Tensor = next(iter([*self.blocks[0].parameters(), *(layer.weight for layer in on_grids)]))
        self.dtype, self.device = numbers.dtype, numbers.device
        self._lists = _per_block_lists(self.config, found.total, span)
        self._attention: str = config._attn_implementation
        self._model = model
        self._accepts = _accepted(self._module)
        self._narrowed: Span | None = None
        self._entered: Entered | None = None
        self._positions: list[AddsNothing] = []
        if "inputs_embeds" not in self._accepts:
            raise UnsupportedModel(f"{type(self._module).__name__} takes no embeddings in place of tokens")
        self._module.eval()
        self._make_transparent()

    @property
    def hidden_size(self) -> int:
        """Numbers of a position that go into a block, and come out of it."""
        return self._embedding_size if self._entered is None else self._entered.shape.size

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
        setattr(self._owner, self._name, nn.ModuleList(layers))
        # The library sizes its masks from cache layer 0, so the blocks of any slice count from 0.
        for index, layer in enumerate(layers):
            for module in layer.modules():
                for name in INDEX_NAMES & vars(module).keys():
                    setattr(module, name, index)
        values = {name: whole[begin:end] for name, whole in self._lists.items()}
        recount(self.config, end - begin, values)
        self._narrowed = None

    def run(self, hidden: torch.Tensor, positions: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """`hidden` `[batch, T, hidden_size]`, `positions` `[1, T]` → the same shape as `hidden`."""
        if self._entered is None:
            return self._run(hidden, positions, **kwargs)
        plain = hidden.new_zeros(*hidden.shape[:2], self._embedding_size)
        with self._entered.between(list(getattr(self._owner, self._name)), hidden) as left:
            self._run(plain, positions, **kwargs)
        return left()

    def _run(self, hidden: torch.Tensor, positions: torch.Tensor, **kwargs: Any) -> torch.Tensor:
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
        """Whether a span of no layers gives back what it gets; where not, hidden states are put in at the first block
        and taken at the last. Raises UnsupportedModel where blocks are given more than comes of hidden states and
        positions."""
        hidden = torch.linspace(-1.0, 1.0, PROBE * self._embedding_size).view(1, PROBE, -1).to(self.device, self.dtype)
        self._entered = None
        output = self._probe(hidden)
        self._check_others(hidden)
        if self.hands_on_tokens or output.shape != hidden.shape or not torch.equal(output, hidden):
            probe = self._entering(hidden[:, :1].repeat(BATCH, COUNT, 1)).hidden
            shape = RowShape.of(probe, tokens=self.hands_on_tokens)
            self._entered = Entered(shape, int(self.config.vocab_size))
        self.narrow(self.span)

    def _check_others(self, hidden: torch.Tensor) -> None:
        """Raises UnsupportedModel where what blocks are given beside hidden states is made of these, or of what the
        client has."""
        one = self._entering(hidden)
        for stand_in in self._positions:
            stand_in.value = 1.0
        try:
            other = self._entering(hidden * -3.0)
        finally:
            for stand_in in self._positions:
                stand_in.value = 0.0
        self.hands_on_tokens = TOKENS in one.others
        if name := one.difference(other):
            raise UnsupportedModel(f"its blocks are given more than hidden states and positions: {name}")

    def _entering(self, hidden: torch.Tensor) -> Reached:
        """What comes to the first block."""
        self._set_layers(0, 1)
        handle = self.blocks[0].register_forward_pre_hook(reach, with_kwargs=True)
        try:
            self._run_probe(hidden)
        except Reached as reached:
            return reached
        finally:
            handle.remove()
        raise UnsupportedModel(f"{type(self._module).__name__} does not call its blocks")

    def _probe(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run without any layer. Raises UnsupportedModel when the model cannot do that."""
        self._set_layers(0, 0)
        return self._run_probe(hidden)

    def _run_probe(self, hidden: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        try:
            return self._run(hidden, positions, use_cache=False)
        except Reached:
            raise
        except Exception as error:
            words = " ".join(str(error).split())[:200]
            reason = f"{type(self._module).__name__} needs more than hidden states and positions: {words}"
            raise UnsupportedModel(reason) from error

    def _make_transparent(self) -> None:
        """Replace every child that touches the hidden states outside the blocks."""
        called: dict[str, bool] = {}
        children = {name: child for name, child in self._around() if not _is_rotary(name, child)}
        hooks = [
            child.register_forward_pre_hook(_note(called, name, self._embedding_size), with_kwargs=True)
            for name, child in children.items()
        ]
        replaced: set[str] = set()
        hidden = torch.zeros(1, PROBE, self._embedding_size, dtype=self.dtype, device=self.device)
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
                self._replace(name, positions)
                replaced.add(name)
        for hook in hooks:
            hook.remove()

    def _around(self) -> Iterator[tuple[str, nn.Module]]:
        """What there is in the base model beside its blocks, by name: the children of all that has them."""
        layers = getattr(self._owner, self._name)
        way = {"": self._module} if self._owner is self._module else _way(self._module, self._owner)
        for prefix, module in way.items():
            for name, child in module.named_children():
                if child is not layers and child not in way.values():
                    yield f"{prefix}.{name}".lstrip("."), child

    def _replace(self, name: str, positions: bool) -> None:
        parent, _, attribute = name.rpartition(".")
        stand_in: nn.Module = PassThrough(self._embedding_size)
        if positions:
            stand_in = AddsNothing(self._embedding_size, self.dtype, self.device)
            self._positions.append(stand_in)
        setattr(self._module.get_submodule(parent), attribute, stand_in)


def _way(module: nn.Module, owner: nn.Module) -> dict[str, nn.Module]:
    """The modules from one to another within it, by name."""
    name = next(name for name, each in module.named_modules() if each is owner)
    names = ["", *(name[:place] for place, letter in enumerate(name) if letter == "."), name]
    return {each: module.get_submodule(each) for each in names}


def _note(called: dict[str, bool], name: str, hidden_size: int) -> Callable[..., None]:
    """A hook that notes that a child was called, and whether with positions rather than with hidden states."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        called[name] = hidden_among((*args, *kwargs.values()), hidden_size) is None

    return hook


def _is_rotary(name: str, child: nn.Module) -> bool:
    """Rotary embeddings make cosines and sines for the blocks; they do not touch the hidden states."""
    return "rotary" in name.lower() or "rope" in name.lower() or "rotary" in type(child).__name__.lower()


def _per_block_lists(config: Any, total: int, span: Span) -> dict[str, list[Any]]:
    """The configuration's lists that have one entry a block, cut to the span."""
    return {name: value[span.first : span.last] for name, value in per_block(config, total).items()}


def _accepted(module: nn.Module) -> set[str]:
    parameters = inspect.signature(module.forward).parameters
    return {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
