"""The layer that adds its update in place: against peft's own, and where it leaves the work to peft's."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from preftune.models.lora import LoraLinear


def layers(*, bias: bool = True, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> tuple[LoraLinear, Linear]:
    """Return ours and peft's over the same weights, with an update that is not zero."""
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias, dtype=dtype).requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=3, lora_dropout=dropout)
    ours = LoraLinear(base, "default", config=config, r=2, lora_alpha=3)
    peers = Linear(base, "default", config=config, r=2, lora_alpha=3)
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            values = torch.randn_like(getattr(ours, name)["default"].weight)
            for layer in (ours, peers):
                getattr(layer, name)["default"].weight.copy_(values)
    return ours.to(dtype), peers.to(dtype)


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    assert x.grad is not None
    trained = [p.grad for p in layer.parameters() if p.requires_grad]
    return [out.detach(), x.grad, *[g for g in trained if g is not None]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_it_gives_what_peft_gives(bias: bool, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, peers = (gradients(layer, x) for layer in layers(bias=bias))
    assert len(ours) == len(peers) == 4
    for a, b in zip(ours, peers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_several_adapters_at_once_give_what_peft_gives() -> None:
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pair = layers()
    torch.manual_seed(1)
    values = [torch.randn(3, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)]
    for layer in pair:
        layer.update_layer("second", r=3, lora_alpha=5, config=LoraConfig(r=3, lora_alpha=5))
        layer.set_adapter(["default", "second"])
        layer.double()
        with torch.no_grad():
            layer.lora_A["second"].weight.copy_(values[0])
            layer.lora_B["second"].weight.copy_(values[1])
    ours, peers = (gradients(layer, x) for layer in pair)
    assert len(ours) == len(peers) == 6
    for a, b in zip(ours, peers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_that_of_finite_differences() -> None:
    ours, _ = layers()
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    a, b = ours.lora_A["default"].weight, ours.lora_B["default"].weight

    def output(x: Tensor, *_: Tensor) -> Tensor:
        return ours(x)

    assert torch.autograd.gradcheck(output, (x, a, b))


def test_input_without_gradient_gets_none_and_the_adapter_still_learns() -> None:
    ours, _ = layers()
    ours(torch.ones(2, 6, dtype=torch.float64)).sum().backward()
    assert ours.lora_B["default"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("case", ["dropout", "off", "merged", "narrow adapter", "trained base", "autocast"])
def test_all_else_is_left_to_peft(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, peers = layers(dropout=0.5 if case == "dropout" else 0.0, dtype=torch.float32)
    for layer in (ours, peers):
        layer.eval()
        if case == "off":
            layer.enable_adapters(False)
        if case == "merged":
            layer.base_layer = nn.Linear(6, 5).requires_grad_(False)
            torch.nn.init.ones_(layer.base_layer.weight)
            torch.nn.init.ones_(layer.base_layer.bias)
            layer.merge()
        if case == "narrow adapter":
            layer.lora_A.to(torch.bfloat16)
            layer.lora_B.to(torch.bfloat16)
    if case == "trained base":
        ours.base_layer.weight.requires_grad_(True)
    monkeypatch.setattr("preftune.models.lora._Updated.apply", lambda *_: pytest.fail("the fast way was taken"))
    x = torch.ones(2, 6)
    with torch.autocast("cpu", enabled=case == "autocast"):
        torch.testing.assert_close(ours(x), peers(x))
