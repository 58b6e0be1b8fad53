"""The leaner way through a layer: the same numbers as transformers' own, less kept, and its own way for all else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from preftune.data.batches import Group, collate
from preftune.models import attention, lean, product
from preftune.models.adapter import Adapter, adapter_off, add_adapter
from preftune.models.load import batch_logprobs, hidden_states, load_causal_lm
from preftune.training.measure import kept_for_backward

CPU = torch.device("cpu")
BEGUN = tuple(range(1, 14))
GROUPS = [Group((*BEGUN, 21, 22), ((5, 6, 7, 8, 9), (8, 9)), 0), Group((*BEGUN, 23), ((4, 5, 6), (7,)), 1)]
LEAN = ["llama", "qwen3", "mistral"]


def learned(model: nn.Module, *, tree: bool = True, apart: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    logprobs, _ = batch_logprobs(model, collate(GROUPS, 0, tree=tree, apart=apart))
    (logprobs * torch.arange(logprobs.numel()).reshape(logprobs.shape).cos()).sum().backward()
    return logprobs.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def with_adapter(model: nn.Module, kind: str = "lora") -> nn.Module:
    model = add_adapter(model, Adapter(rank=2, kind=kind), seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys() != set()
    scale = max(float(slope.abs().max()) for slope in expected[1].values())
    for name, slope in found[1].items():
        torch.testing.assert_close(slope, expected[1][name], rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.fixture(params=[3, 128], ids=["few queries at once", "all queries at once"])
def queries(request, monkeypatch):
    """Attention in blocks, and whole; the gate a few rows at a time."""
    monkeypatch.setattr(attention, "QUERIES", request.param)
    monkeypatch.setattr(lean, "ROWS", 7)


@pytest.mark.parametrize("rows", ["tree", "tree without beginning", "plain"])
@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "whole"])
@pytest.mark.parametrize("family", LEAN)
def test_the_numbers_and_the_gradients_are_those_of_the_layers_own_way(tiny_folder, family, adapter, rows, queries, monkeypatch):
    results = []
    for ours in (False, True):
        model = load_causal_lm(tiny_folder(family), device=CPU)
        if not ours:
            lean.plain_layers(model)
        else:
            for layer in model.model.layers:
                monkeypatch.setattr(type(layer), "forward", lambda *_, **__: pytest.fail("the layer's own way was taken"))
        if adapter:
            model = with_adapter(model)
        results.append(learned(model, tree=rows != "plain", apart=rows == "tree"))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "whole"])
def test_products_by_the_other_library_give_the_same_numbers_and_gradients(tiny_folder, adapter, monkeypatch):
    results = []
    for faster in (False, True):
        monkeypatch.setattr(product, "onednn_is_faster", lambda faster=faster: faster)
        for least in ("LEAST", "LEAST_ROWS"):
            monkeypatch.setattr(product, least, 0)
        model = load_causal_lm(tiny_folder("llama"), device=CPU)
        calls = []
        with monkeypatch.context() as watched:
            by_onednn = product.onednn_product
            watched.setattr(product, "onednn_product", lambda *given, by=by_onednn, calls=calls: calls.append(given) or by(*given))
            results.append(learned(with_adapter(model) if adapter else model.requires_grad_(True)))
        # Of two layers seven products forward and as many backward (frozen words need none of the first three), and the head's two.
        assert len(calls) >= 14 + 14 - 3 + 2 if faster else not calls
    assert_same(results[1], results[0])


@pytest.mark.parametrize("tree", [True, False], ids=["tree", "plain"])
def test_padding_is_not_computed(tiny_folder, tree, monkeypatch):
    model, batch = load_causal_lm(tiny_folder("llama"), device=CPU), collate(GROUPS, 0, tree=tree)
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))
    states = hidden_states(model, batch)
    assert sum(seen) == batch.num_tokens < batch.ids.numel() + len(batch.beginning)
    assert states.shape[:2] == batch.ids.shape
    assert not states[~batch.attention_mask].any()


def test_rows_one_after_the_other_attend_as_rows_apart(monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 4)
    random = torch.Generator().manual_seed(0)
    spans = [(0, 3, 0), (3, 8, 3), (8, 9, 3), (9, 16, 3)]
    q, k, v = (torch.randn(1, heads, 16, 4, generator=random, requires_grad=True) for heads in (6, 2, 2))
    seen = torch.rand(1, 1, 16, 3 + 7, generator=random) < 0.7
    for start, stop, front in spans:
        seen[:, :, start:stop, front : front + stop - start] &= torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        seen[:, :, start:stop, front : front + stop - start] |= torch.eye(stop - start, dtype=torch.bool)
    found = attention.attend(q, k, v, seen, 0.5, spans)
    parts = []
    for start, stop, front in spans:
        keys, values = (torch.cat([part[:, :, :front], part[:, :, start:stop]], dim=2) for part in (k, v))
        scores = 0.5 * q[:, :, start:stop] @ keys.repeat_interleave(3, dim=1).transpose(2, 3)
        hidden = seen[:, :, start:stop, : front + stop - start].logical_not()
        parts.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values.repeat_interleave(3, dim=1))
    expected = torch.cat(parts, dim=2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(found.shape, generator=random)
    slopes = [torch.autograd.grad((out * weights).sum(), (q, k, v), retain_graph=True) for out in (found, expected)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-6)


def test_biases_are_added_and_learned():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
    expected = learned(model)
    model.zero_grad()
    lean.lean_layers(model)
    assert_same(learned(model), expected)
    assert any(name.endswith("bias") for name in expected[1])


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "whole"])
def test_a_good_part_less_is_kept_for_backward(tiny_folder, adapter):
    kept = []
    for ours in (False, True):
        model = load_causal_lm(tiny_folder("llama"), device=CPU)
        if not ours:
            lean.plain_layers(model)
        if adapter:
            model = with_adapter(model)
        kept.append(kept_for_backward(lambda model=model: batch_logprobs(model, collate(GROUPS, 0))[0], model))
    assert kept[1] < 0.65 * kept[0]


def test_the_adapter_can_be_off_and_the_first_layers_input_asks_for_no_gradient(tiny_folder):
    plain, model = load_causal_lm(tiny_folder("llama"), device=CPU), with_adapter(load_causal_lm(tiny_folder("llama"), device=CPU))
    batch = collate(GROUPS, 0)
    with torch.no_grad(), adapter_off(model):
        assert torch.equal(batch_logprobs(model, batch)[0], batch_logprobs(plain, batch)[0])
    with torch.no_grad():
        assert not torch.allclose(batch_logprobs(model, batch)[0], batch_logprobs(plain, batch)[0])


@pytest.mark.parametrize("case", ["dora", "hook", "training", "eager", "bfloat16", "dropout in the adapter"])
def test_what_is_not_plain_goes_the_layers_own_way(tiny_folder, case, monkeypatch):
    model = load_causal_lm(tiny_folder("llama"), device=CPU)
    match case:
        case "dora":
            model = with_adapter(model, "dora")
        case "hook":
            seen = []
            model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
        case "training":
            model.train()
        case "eager":
            model.set_attn_implementation("eager")
        case "bfloat16":
            model = model.to(torch.bfloat16)
        case _:
            model = with_adapter(model)
            for module in model.modules():
                if hasattr(module, "lora_dropout"):
                    module.lora_dropout["default"] = nn.Dropout(0.5)
    if case != "hook":  # there the other layer stays lean
        monkeypatch.setattr(lean._Gated, "apply", lambda *_: pytest.fail("the lean way was taken"))
    batch_logprobs(model, collate(GROUPS, 0))
    assert case != "hook" or seen


def linear(generator: torch.Generator, into: int, out: int, *, adapter: bool) -> list[Tensor | None]:
    shapes = [(out, into), (out,), (2, into) if adapter else None, (out, 2) if adapter else None]
    return [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() if s else None for s in shapes]


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "whole"])
def test_each_gradient_is_that_of_finite_differences(adapter, monkeypatch):
    monkeypatch.setattr(lean, "ROWS", 2)
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()

    x, gate, up, gain = numbers(2, 3, 4), numbers(2, 3, 5), numbers(2, 3, 5), numbers(4)
    two = [*linear(generator, 4, 3, adapter=adapter), *linear(generator, 4, 2, adapter=adapter)]
    assert torch.autograd.gradcheck(lambda x, gain, *ts: lean._NormedLinears.apply(x, gain, 1e-3, [1.5, 0.5], *ts), (x, gain, *two))
    down = linear(generator, 5, 4, adapter=adapter)
    assert torch.autograd.gradcheck(lambda gate, up, x, *ts: lean._Gated.apply(gate, up, x, 1.5, *ts), (gate, up, x, *down))
    attended = numbers(2, 3, 1, 5)
    assert torch.autograd.gradcheck(lambda x, attended, *ts: lean._Added.apply(x, attended, 1.5, *ts), (x, attended, *down))
    angles = torch.randn(2, 3, 2, dtype=torch.float64, generator=generator).repeat(1, 1, 2)
    heads = numbers(2, 3, 2, 4)
    assert torch.autograd.gradcheck(lambda h: lean._Rotated.apply(h, angles.cos(), angles.sin()), (heads,))


@pytest.mark.parametrize("together", [1, 3, 16])
@pytest.mark.parametrize("kind", ["bool", "added", "one for all", "none"])
def test_one_query_a_row_attends_as_a_loop_over_rows_and_heads_says(together, kind, monkeypatch):
    monkeypatch.setattr(attention, "ROWS_TOGETHER", together)
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(5, heads, n, 4, generator=random) for heads, n in ((6, 1), (2, 9), (2, 9)))
    starts = [3, 0, 7, 8, 4] if kind in ("bool", "added") else [2 if kind == "one for all" else 0] * 5
    mask = torch.arange(9) >= torch.tensor(starts)[:, None, None, None]
    k[~mask.expand(5, 2, 1, 9).squeeze(2)] = 1e4  # what is masked may hold anything finite
    given = {
        "bool": mask,
        "added": torch.zeros(mask.shape).masked_fill(mask.logical_not(), -torch.inf),
        "one for all": mask[:1],
        "none": None,
    }
    found = attention.attend(q, k, v, given[kind], 0.5)
    assert found.shape == (5, 1, 6, 4)
    for row, start in enumerate(starts):
        for head in range(6):
            keys, values = (side[row, head // 3, start:] for side in (k, v))
            expected = (0.5 * keys @ q[row, head, 0]).softmax(0) @ values
            torch.testing.assert_close(found[row, 0, head], expected, rtol=1e-5, atol=1e-6)
