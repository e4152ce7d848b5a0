"""Gradients through remote blocks are those of plain transformers on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from swarm.errors import InvalidInput
from swarm.models.ends.hollow import HollowWeight
from tests.checkpoints import Served, prompt

Serve = Callable[[str, int], Served]
Whole = Callable[[str], Any]
CLOSE = 1e-5


def far(got: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    assert got is not None and expected is not None
    return float((got - expected).norm() / expected.norm())


@contextmanager
def trained(module: torch.nn.Module) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Its parameters that are here, to be trained meanwhile."""
    named = module.named_parameters()
    parameters = {name: parameter for name, parameter in named if not isinstance(parameter, HollowWeight)}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    yield parameters
    for parameter in parameters.values():
        parameter.requires_grad_(False)
        parameter.grad = None


@pytest.mark.parametrize(
    ("kind", "spans"),
    [("llama", 1), ("llama", 2), ("llama", 4), ("gemma2", 2), ("mixtral", 2), ("gpt2", 2), ("bloom", 2)],
)
def test_gradients_of_embeddings_and_prompts_are_those_of_plain_transformers(
    served: Serve, whole: Whole, kind: str, spans: int
) -> None:
    lengths = torch.tensor([[7], [4], [9]])
    ids, real = prompt(9, batch=3), torch.arange(9) < lengths
    mask = torch.cat([torch.ones(3, 2), real], dim=1).long()
    labels = torch.cat([torch.full((3, 2), -100), ids.masked_fill(~real, -100)], dim=1)
    found = []
    for model in (whole(kind), served(kind, spans).model()):
        width = model.get_input_embeddings().weight.shape[1]
        soft = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        together = torch.cat([soft.expand(3, -1, -1), embedded], dim=1)
        loss = model(inputs_embeds=together, attention_mask=mask, labels=labels).loss
        loss.backward()
        found.append((loss.detach(), soft.grad, embedded.grad))
    (right, soft, embedded), (loss, soft_here, embedded_here) = found
    assert far(loss, right) < CLOSE
    assert far(soft_here, soft) < CLOSE
    assert far(embedded_here, embedded) < CLOSE


def test_embeddings_local_blocks_and_head_are_trained_around_remote_ones(served: Serve, whole: Whole) -> None:
    right, model = copy.deepcopy(whole("llama+untied")), served("llama+untied", 2).model(local_blocks="0:2")
    ids = prompt(8, batch=2)
    with trained(right) as expected, trained(model) as found:
        model.activation_checkpointing_enable()  # of local blocks
        for each in (right.train(), model.train()):
            each(input_ids=ids, labels=ids).loss.backward()
        assert len(found) > 10
        for name, parameter in found.items():
            assert far(parameter.grad, expected[name].grad) < CLOSE, name


def test_a_frozen_model_is_run_without_gradients_and_a_trained_one_leaves_no_cache(served: Serve) -> None:
    servers = served("llama", 2)
    model, ids = servers.model(), prompt(5)
    assert not model(ids).logits.requires_grad
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    output = model(inputs_embeds=embedded)
    with torch.no_grad():
        torch.testing.assert_close(output.logits, model(ids).logits, rtol=1e-4, atol=1e-4)
        with pytest.raises(InvalidInput, match="forward with gradients, which leaves nothing behind"):
            model(ids[:, :1], past_key_values=output.past_key_values)
        cache = model(ids).past_key_values
    with pytest.raises(InvalidInput, match="no gradients flow through what is cached"):
        model(inputs_embeds=embedded, past_key_values=cache)
    with pytest.raises(InvalidInput, match="not finite"):
        (output.logits.sum() * float("nan")).backward()


def test_packed_texts_are_trained_each_by_itself(served: Serve, whole: Whole) -> None:
    ids, positions, found = prompt(7), torch.tensor([[0, 1, 2, 3, 0, 1, 2]]), []
    for model in (whole("llama"), served("llama", 2).model()):
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=embedded, position_ids=positions, use_cache=False, labels=ids).loss.backward()
        found.append(embedded.grad)
    assert far(found[1], found[0]) < CLOSE
    with pytest.raises(InvalidInput, match="position_ids: gradients flow where they go on one by one"):
        model(inputs_embeds=embedded, position_ids=2 * torch.arange(7).unsqueeze(0))


def test_a_server_lost_between_forward_and_backward_changes_nothing(served: Serve, checkpoints: Any) -> None:
    from swarm.types import Span

    servers = Served(checkpoints("llama"), [Span(0, 3), Span(3, 6), Span(3, 4), Span(4, 6)])
    model, ids, found = servers.model(), prompt(6, batch=3), []
    for loses in (False, True):
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        loss = model(inputs_embeds=embedded, labels=ids).loss
        if loses:
            (hop,) = [hop for hop in model.route.hops if hop.span.last == 6][-1:]
            servers.network.kill(hop.peer_id)
        loss.backward()
        found.append((loss.detach(), embedded.grad))
    assert far(found[1][0], found[0][0]) < CLOSE
    assert far(found[1][1], found[0][1]) < CLOSE
    servers.close()


def test_what_blocks_would_draw_in_training_is_refused_by_name(served: Serve) -> None:
    model = served("gpt2", 2).model().train()
    for name in ("resid_pdrop", "attn_pdrop"):
        setattr(model.config, name, 0.1)
        with pytest.raises(InvalidInput, match=rf"^train\(\): {name} .*call model.eval\(\)"):
            model(prompt(4))
        setattr(model.config, name, 0.0)
    model.config.embd_pdrop = 0.1  # drawn here
    model(prompt(4))
