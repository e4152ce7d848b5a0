"""LoRA beside remote blocks, by unmodified peft, is what it is on one machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load
from safetensors.torch import save as save_tensors
from transformers import AutoModelForCausalLM

from swarm.errors import InvalidInput, SwarmError
from swarm.models.lora import Pair, Place, decode, encode
from swarm.types import Span
from tests.checkpoints import GREEDY, Served, left_padded, prompt, put_on_grids, reference, save
from tests.quantizing import quantize

Serve = Callable[[str, int], Served]
Whole = Callable[[str], Any]
CLOSE, ON_GRIDS = 1e-5, 2e-3
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "gemma2": ["q_proj", "o_proj", "up_proj"],
    "mixtral": ["q_proj", "v_proj"],
}


def lora(kind: str, **options: Any) -> LoraConfig:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[kind], "fan_in_fan_out": kind == "gpt2", **options}
    return LoraConfig(task_type=TaskType.CAUSAL_LM, **settings)


def adapted(model: Any, config: LoraConfig, seed: int = 0) -> Any:
    """With matrices of which none is zero."""
    generator, made = torch.Generator().manual_seed(seed), get_peft_model(model, config)
    for name, parameter in sorted(made.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def learning(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_gradients(here: Any, right: Any, close: float = CLOSE) -> None:
    ids = prompt(7, batch=3)
    mask = torch.arange(7) < torch.tensor([[7], [4], [6]])
    losses = []
    for model in (right, here):
        model.train(model.config.model_type != "gpt2")  # in which something would be random
        loss = model(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=close)
    expected, found = learning(right), learning(here)
    assert expected.keys() == found.keys()
    for name, parameter in expected.items():
        gradient = found[name].grad
        assert gradient is not None and parameter.grad is not None, name
        assert float((gradient - parameter.grad).norm() / parameter.grad.norm()) < close, name


@pytest.mark.parametrize(("kind", "spans"), [("llama", 1), ("llama", 2), ("llama", 4), ("gpt2", 2), ("mixtral", 2)])
def test_gradients_of_lora_are_those_of_local_peft(served: Serve, whole: Whole, kind: str, spans: int) -> None:
    right = adapted(copy.deepcopy(whole(kind)), lora(kind))
    check_gradients(adapted(served(kind, spans).model(), lora(kind)), right)


def test_ranks_scales_and_layers_of_their_own_and_several_adapters(served: Serve, whole: Whole) -> None:
    options = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True}
    late = lora("llama", layers_to_transform=[3, 4], r=3)
    found = []
    for model in (copy.deepcopy(whole("llama")), served("llama", 2).model()):
        made = adapted(model, lora("llama", **options))
        made.add_adapter("late", late)
        for name, parameter in sorted(made.named_parameters()):
            if "late" in name:
                generator = torch.Generator().manual_seed(len(name))
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        found.append(made)
    right, here = found
    check_gradients(here, right)
    for model in found:
        model.zero_grad()
        model.set_adapter("late")  # nothing before its blocks is asked for gradients
    check_gradients(here, right)
    for model in found:
        model.zero_grad()
        model.base_model.set_adapter(["default", "late"])
    check_gradients(here, right)
    with torch.no_grad(), right.disable_adapter(), here.disable_adapter():
        ids = prompt(5)
        torch.testing.assert_close(here(input_ids=ids).logits, right(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_with_adapters_of_their_own_are_as_with_local_peft(served: Serve, whole: Whole) -> None:
    found, names = [], ["late", "__base__", "default", "late"]
    servers = served("llama", 2)
    for model in (copy.deepcopy(whole("llama")), servers.model()):
        made = get_peft_model(model, lora("llama")).eval()
        made.add_adapter("late", lora("llama", layers_to_transform=[2, 3], r=3))
        for name, parameter in sorted(made.named_parameters()):
            if "lora_" in name:
                generator = torch.Generator().manual_seed(len(name) + ("late" in name))
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        found.append(made)
    right, here = found
    inputs = left_padded([6, 9, 4, 7])
    for model in found:
        model(**inputs, adapter_names=names).logits.square().mean().backward()
    assert learning(right)
    for (name, parameter), other in zip(learning(right).items(), learning(here).values(), strict=True):
        assert other.grad is not None and parameter.grad is not None
        assert float((other.grad - parameter.grad).norm() / parameter.grad.norm()) < CLOSE, name
    with torch.no_grad():
        logits = [model(**inputs, adapter_names=names).logits[inputs["attention_mask"].bool()] for model in found]
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
        for options in ({}, {"num_beams": 2}):
            texts = [
                model.generate(**inputs, **GREEDY, max_new_tokens=6, adapter_names=names, **options) for model in found
            ]
            assert torch.equal(*texts)
        plain = here.generate(**inputs, **GREEDY, max_new_tokens=6)
        assert not torch.equal(plain, here.generate(**inputs, **GREEDY, max_new_tokens=6, adapter_names=names))
        with pytest.raises(InvalidInput, match="3 names for a batch of 4"):
            here(**inputs, adapter_names=names[:3])
        cache = here(**inputs, adapter_names=names).past_key_values
        cache.reorder_cache(torch.tensor([1, 0, 2, 3]))
        with pytest.raises(InvalidInput, match="has got the cache of another"):
            mask = torch.nn.functional.pad(inputs["attention_mask"][[1, 0, 2, 3]], (0, 1), value=1)
            here(
                input_ids=prompt(1, batch=4), attention_mask=mask, past_key_values=cache, adapter_names=names
            )  # fmt: skip
    del cache
    servers.assert_free()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_over_quantized_blocks_gradients_are_those_of_peft_over_their_numbers(checkpoints: Any, scheme: str) -> None:
    folder = checkpoints("llama")
    right = reference(folder)
    put_on_grids(right.model.layers, scheme)
    servers = Served(folder, [Span(0, 2), Span(2, 6)], quantization=scheme)
    # The kernel for grids rounds rows to 16 bits; gradients are computed with the numbers of the grid.
    check_gradients(adapted(servers.model(), lora("llama")), adapted(right, lora("llama")), ON_GRIDS)
    servers.close()


def test_in_bfloat16_gradients_are_as_far_from_float32_as_those_of_local_peft(checkpoints: Any) -> None:
    folder, ids, found = checkpoints("llama"), prompt(12, batch=6), []
    servers = Served(folder, [Span(0, 3), Span(3, 6)], dtype="bfloat16")
    for model in (reference(folder), reference(folder, torch.bfloat16), servers.model()):
        made = adapted(model, lora("llama")).train()
        for parameter in learning(made).values():
            parameter.data = parameter.data.to(model.dtype)
        made(input_ids=ids, labels=ids).loss.backward()
        found.append(torch.cat([each.grad.float().flatten() for _, each in sorted(learning(made).items())]))
    exact, local, here = found
    assert float((here - exact).norm()) < 1.2 * float((local - exact).norm())
    assert float((here - local).norm()) < 0.5 * float((local - exact).norm())
    servers.close()


@pytest.mark.parametrize(("layout", "kind"), [("gptq-ordered", "llama"), ("nf4", "llama"), ("fp8", "llama")])
def test_over_a_files_own_grid_gradients_are_those_of_peft_over_its_numbers(
    tmp_path: Path, layout: str, kind: str
) -> None:
    quantized, plain = quantize(save(tmp_path / "model", kind), layout)
    right = adapted(AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32), lora(kind))
    servers = Served(quantized, [Span(0, 2), Span(2, 6)], quantization="file")
    check_gradients(adapted(servers.model(), lora(kind)), right, ON_GRIDS)
    servers.close()


@pytest.mark.parametrize("wrong", ["shape", "nan", "none", "rows"])
def test_what_cannot_be_gradients_is_asked_of_another_server(checkpoints: Any, whole: Whole, wrong: str) -> None:
    servers = Served(checkpoints("llama"), [Span(0, 3), Span(3, 6), Span(3, 6)])
    here, right = adapted(servers.model(), lora("llama")), adapted(copy.deepcopy(whole("llama")), lora("llama"))
    ids = prompt(6, batch=3)
    right(input_ids=ids, labels=ids).loss.backward()
    loss = here(input_ids=ids, labels=ids).loss
    liar = here.base_model.model.route.hops[-1].peer_id
    runner: Any = servers.hosted[int(liar.removeprefix("server"))].engine.runner
    honest = runner.slices

    def lying(job: Any) -> Generator[None, None, Any]:
        rows, file = yield from honest(job)
        pairs = decode(file, None)
        place = next(iter(pairs))
        if wrong == "shape":
            pairs[place] = Pair(pairs[place].a[:1], pairs[place].b[:, :1])
        elif wrong == "nan":
            tensors = load(file)
            tensors[f"{place}.A"][0, 0] = torch.nan
            return rows, save_tensors(tensors)
        elif wrong == "none":
            del pairs[place]
        else:
            rows = rows * torch.inf
        return rows, encode(pairs)

    runner.slices = lying
    loss.backward()
    for name, parameter in learning(right).items():
        gradient = learning(here)[name].grad
        assert float((gradient - parameter.grad).norm() / parameter.grad.norm()) < CLOSE
    assert here.base_model.model.route.hops[-1].peer_id != liar
    servers.close()


def test_an_adapter_is_saved_and_loaded_as_anywhere(served: Serve, whole: Whole, tmp_path: Path) -> None:
    servers, ids = served("llama", 2), prompt(6, batch=2)
    here = adapted(servers.model(), lora("llama"))
    here.save_pretrained(tmp_path)
    right = PeftModel.from_pretrained(copy.deepcopy(whole("llama")), tmp_path)
    again = PeftModel.from_pretrained(servers.model(), tmp_path)
    with torch.no_grad():
        expected = right(input_ids=ids).logits
        torch.testing.assert_close(here(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(input_ids=ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_survives_its_server(checkpoints: Any, whole: Whole) -> None:
    servers = Served(checkpoints("llama"), [Span(0, 3), Span(3, 6), Span(3, 4), Span(4, 6)])
    here, right = adapted(servers.model(), lora("llama")), adapted(copy.deepcopy(whole("llama")), lora("llama"))
    ids = prompt(6, batch=3)
    right(input_ids=ids, labels=ids).loss.backward()
    loss = here(input_ids=ids, labels=ids).loss
    servers.network.kill(next(hop.peer_id for hop in here.base_model.model.route.hops if hop.span == Span(3, 6)))
    loss.backward()
    for name, parameter in learning(right).items():
        assert float((learning(here)[name].grad - parameter.grad).norm() / parameter.grad.norm()) < CLOSE
    servers.close()


def test_text_with_an_adapter_is_that_of_local_peft_beside_others_and_when_its_server_is_lost(
    checkpoints: Any, whole: Whole
) -> None:
    servers = Served(checkpoints("llama"), [Span(0, 3), Span(3, 6), Span(0, 2), Span(2, 6)])
    plain, options = servers.model(), {**GREEDY, "max_new_tokens": 24}
    models = [adapted(servers.model(), lora("llama"), seed) for seed in (1, 2)] + [plain]
    rights = [adapted(copy.deepcopy(whole("llama")), lora("llama"), seed) for seed in (1, 2)] + [whole("llama")]
    ids = prompt(5, batch=2)
    expected = [right.generate(input_ids=ids, **options).tolist() for right in rights]
    assert len({str(text) for text in expected}) == 3
    with ThreadPoolExecutor(3) as pool:  # of strangers, in the same passes
        texts = [pool.submit(model.generate, input_ids=ids, **options) for model in models]
        assert [text.result().tolist() for text in texts] == expected

    class Killer:
        def __init__(self) -> None:
            self.count = 0

        def put(self, value: torch.Tensor) -> None:
            self.count += 1
            if self.count == 12:
                servers.network.kill(models[0].base_model.model.route.hops[0].peer_id)

        def end(self) -> None:
            pass

    one = rights[0].generate(input_ids=ids[:1], **options).tolist()
    assert models[0].generate(input_ids=ids[:1], streamer=Killer(), **options).tolist() == one
    with torch.no_grad():
        cache = models[1](input_ids=ids).past_key_values
        for parameter in learning(models[1]).values():
            parameter.add_(1.0)
        with pytest.raises(InvalidInput, match="adapters have changed"):
            models[1](input_ids=ids[:, :1], past_key_values=cache)
    servers.close()


def test_what_is_dropped_is_drawn_by_the_callers_seed_and_the_same_backwards_and_elsewhere(checkpoints: Any) -> None:
    servers = Served(checkpoints("llama"), [Span(0, 3), Span(3, 6), Span(3, 4), Span(4, 6)])
    here, ids, losses = adapted(servers.model(), lora("llama", lora_dropout=0.3)), prompt(6, batch=3), []
    found: list[dict[str, torch.Tensor]] = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(seed)
        here.train().zero_grad()
        loss = here(input_ids=ids, labels=ids).loss
        if number == 1:
            hops = here.base_model.model.route.hops
            servers.network.kill(next(hop.peer_id for hop in hops if hop.span == Span(3, 6)))
        loss.backward()
        losses.append(loss.item())
        found.append({name: parameter.grad.clone() for name, parameter in learning(here).items()})
    assert losses[1] == pytest.approx(losses[0], rel=CLOSE)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)
    assert all(torch.allclose(found[1][name], found[0][name], rtol=1e-4, atol=1e-6) for name in found[0])
    # The gradients are those of what was computed: a small step along them changes the loss as they say.
    step, square = 1e-3, sum(float((gradient**2).sum()) for gradient in found[2].values())
    with torch.no_grad():
        for name, parameter in learning(here).items():
            parameter -= step * found[2][name]
    torch.manual_seed(2)
    assert losses[2] - here(input_ids=ids, labels=ids).loss.item() == pytest.approx(step * square, rel=0.05)
    with pytest.raises(InvalidInput, match="lora_dropout: sessions drop nothing"), torch.no_grad():
        here(input_ids=ids)
    here.eval()(input_ids=ids)
    servers.close()


@pytest.mark.soak
def test_fifty_steps_with_a_server_lost_every_fifth_are_those_of_an_undisturbed_run(checkpoints: Any) -> None:
    found = []
    for loses in (False, True):
        servers = Served(checkpoints("llama"), [Span(0, 3), *[Span(3, 6)] * 11])
        here = adapted(servers.model(), lora("llama"))
        optimizer = torch.optim.AdamW(learning(here).values(), lr=1e-3)
        for step in range(50):
            ids = prompt(6, seed=step, batch=4)
            optimizer.zero_grad()
            loss = here(input_ids=ids, labels=ids).loss
            if loses and step % 5 == 4:
                servers.network.kill(here.base_model.model.route.hops[-1].peer_id)
            loss.backward()
            optimizer.step()
        found.append({name: parameter.detach().clone() for name, parameter in learning(here).items()})
        servers.close()
    undisturbed, disturbed = found
    for name, parameter in undisturbed.items():
        assert float((disturbed[name] - parameter).norm() / parameter.norm()) < CLOSE, name


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA"),
    "pissa": ({"init_lora_weights": "pissa"}, "PiSSA"),
    "olora": ({"init_lora_weights": "olora"}, "weights of remote blocks are elsewhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_on_weights_that_are_elsewhere_is_refused_by_name(served: Serve, name: str) -> None:
    options, words = REFUSED[name]
    with pytest.raises(InvalidInput, match=words):
        adapted(served("llama", 2).model(), lora("llama", **options)).train()(input_ids=prompt(4))


def test_merging_and_training_remote_weights_are_refused(served: Serve) -> None:
    model = served("llama", 2).model()
    with pytest.raises(InvalidInput, match="not merged"):
        adapted(model, lora("llama")).merge_and_unload()
    model = served("llama", 2).model().requires_grad_(True)
    with pytest.raises(InvalidInput, match=r"elsewhere and cannot be trained"):
        model(input_ids=prompt(4), labels=prompt(4))


def test_remote_blocks_weigh_nothing_here_and_are_no_part_of_what_is_saved(served: Serve, whole: Whole) -> None:
    model = served("llama+untied", 2).model()
    assert not any("layers" in name for name in model.state_dict())
    assert "model.layers.5.mlp.up_proj.weight" in dict(model.named_parameters())
    assert model.to(torch.bfloat16).model.layers.hollow[0].mlp.up_proj.weight.dtype == torch.bfloat16
    twin = copy.deepcopy(adapted(served("llama", 2).model(), lora("llama")))
    twin(input_ids=prompt(4), labels=prompt(4)).loss.backward()
    assert all(parameter.grad is not None for parameter in learning(twin).values())


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({Place(0, "self_attn.q_proj"): (3, 4)}, "features, which has"),
        ({Place(0, "self_attn"): (64, 64)}, "is no linear layer"),
        ({Place(0, "nothing"): (64, 64)}, "is no layer"),
        ({Place(5, "self_attn.q_proj"): (64, 64)}, "block 5, which is not among"),
    ],
    ids=["shape", "kind", "name", "block"],
)
def test_an_adapter_that_does_not_fit_is_refused_before_it_is_used(
    checkpoints: Any, pairs: dict[Place, tuple[int, int]], words: str
) -> None:
    from swarm.models.span.load import load_span

    span = load_span(checkpoints("llama"), Span(0, 2), progress=False)
    made = {place: Pair(torch.ones(2, ins), torch.ones(outs, 2)) for place, (ins, outs) in pairs.items()}
    with pytest.raises(InvalidInput, match=words):
        span.check_adapter(encode(made))
    with pytest.raises(InvalidInput, match="no safetensors file"):
        span.check_adapter(b"what is this")
    nothing = {Place(0, "self_attn.q_proj"): Pair(torch.full((2, 64), torch.nan), torch.ones(64, 2))}
    with pytest.raises(SwarmError, match="not finite"):
        span.check_adapter(encode(nothing))
