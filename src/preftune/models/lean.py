"""Decoder layers that go over the memory less often and keep less for backward: the same numbers, for layers built as Llama's are.

On a CPU a training step's products are a good half of its time; most of the rest is one pass over memory after the other, for norms,
gates and rotations. Here what stands between two products is one function with its own backward. It keeps what the products gave and
makes the rest again: of a layer of width H with a gate of width I about 4 H + 2 I numbers a token stay, where the plain layer keeps
10 H + 4 I.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_layers import GradientCheckpointingLayer

from preftune.models.attention import attend
from preftune.models.product import add_product, product

# Layers whose forward is: norm, queries, keys and values, rotation, attention, output; norm, silu(gate) · up, output.
LIKE_LLAMA = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
ARGUMENTS = {"attention_mask", "position_ids", "cache", "past_key_values", "use_cache", "cache_position", "position_embeddings", "spans"}
ROWS = 128  # of the gate, worked on at once: what fits a core's cache


def lean_layers(model: nn.Module) -> None:
    """Let every layer that is built as Llama's take the leaner way; where a call asks for anything else, it takes its own.

    That way is for float32 on a CPU, plain linear layers and plain LoRA (see `LoraLinear`), and the attention of torch.
    """
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ in LIKE_LLAMA]
    for layer in layers:
        if type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation"):
            layer.forward, layer.is_lean = _lean(layer, layer.forward), True


def plain_layers(model: nn.Module) -> None:
    """Let every layer take its own way again, as others compute it: sums in another order differ in the last digits."""
    for module in model.modules():
        if type(module).__name__ in LIKE_LLAMA:
            module.__dict__.pop("forward", None)
            module.__dict__.pop("is_lean", None)


def takes_spans(backbone: Any) -> bool:
    """Say whether all layers take the leaner way here and now, so that rows can lie one after the other, without padding (see `attend`)."""
    if hasattr(backbone, "takes_spans"):  # a role on a shared base, which has to put its adapters on first
        return bool(backbone.takes_spans())
    layers: list[Any] = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    words = backbone.get_input_embeddings().weight
    return bool(layers) and all(is_lean(layer) and linears_of(layer, words, {}) is not None for layer in layers)


def is_lean(layer: Any) -> bool:
    """Say whether a layer has a leaner way, which it takes where a call allows it (see `linears_of`)."""
    return hasattr(layer, "is_lean")


def _lean(layer: Any, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def lean(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        linears = None if args else linears_of(layer, hidden_states, kwargs)
        if linears is None:
            assert kwargs.get("spans") is None, "transformers' own layers would let rows see each other"
            return forward(hidden_states, *args, **kwargs)
        x, attention = hidden_states, layer.self_attn
        q, k, v, o, gate, up, down = linears
        heads = [part.unflatten(-1, (-1, attention.head_dim)) for part in _normed(x, layer.input_layernorm, q, k, v)]
        for place, norm in enumerate(("q_norm", "k_norm")):  # Qwen 3's
            heads[place] = getattr(attention, norm, nn.Identity())(heads[place])
        cos, sin = kwargs["position_embeddings"]
        queries, keys = (_Rotated.apply(part, cos, sin).transpose(1, 2) for part in heads[:2])  # type: ignore[no-untyped-call]
        values = heads[2].transpose(1, 2)
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is not None:
            keys, values = cache.update(keys, values, attention.layer_idx)
        attended = attend(queries, keys, values, kwargs.get("attention_mask"), attention.scaling, kwargs.get("spans"))
        x = _Added.apply(x, attended, o.scaling, *o.tensors)  # type: ignore[no-untyped-call]
        gates, ups = _normed(x, layer.post_attention_layernorm, gate, up)
        gated: Tensor = _Gated.apply(gates, ups, x, down.scaling, *down.tensors)  # type: ignore[no-untyped-call]
        return gated

    return lean


def linears_of(layer: Any, x: Tensor, asked: dict[str, Any]) -> list[Linear] | None:
    """Return the linear layers of a decoder layer, or None where this call, or one of its modules, is not the plain kind."""
    attention, mlp = layer.self_attn, layer.mlp
    if not type(attention).__name__.endswith("Attention") or not type(mlp).__name__.endswith("MLP"):  # wrapped, by peft say
        return None
    if is_hooked(attention) or is_hooked(mlp):
        return None
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and not layer.training
    if not plain or asked.keys() - ARGUMENTS or attention.config._attn_implementation != "sdpa":
        return None
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if any(not type(norm).__name__.endswith("RMSNorm") or norm.weight.dtype != x.dtype or is_hooked(norm) for norm in norms):
        return None
    modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    linears = [found for found in map(Linear.of, modules) if found is not None]
    return linears if len(linears) == len(modules) else None


def is_hooked(module: nn.Module) -> bool:
    """Say whether something of someone else looks on as a module computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


class Linear(NamedTuple):
    """x Wᵀ + b + scaling · (x Aᵀ) Bᵀ; b, and A with B, may be None."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None
    scaling: float = 0.0

    @classmethod
    def of(cls, module: nn.Module) -> Linear | None:
        """Return what a layer computes, or None where that is more than this."""
        adapted: Any = module if hasattr(module, "base_layer") else None
        base: Any = module if adapted is None else adapted.base_layer
        if type(base) is not nn.Linear or base.weight.dtype != torch.float32 or is_hooked(module):
            return None
        if adapted is None or (adapted.disable_adapters and not adapted.merged):
            return cls(base.weight, base.bias)
        update = adapted.plain_update(base.weight) if hasattr(adapted, "plain_update") else None
        return cls(base.weight, base.bias, *update) if update is not None else None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors, as autograd takes them."""
        return self[:4]

    def onto(self, out: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (what it gives [N, out], added to `out` if there is one; scaling · rows Aᵀ [N, r])."""
        weight, bias, a, b, scaling = self
        given = product(rows, weight, bias)
        if out is not None:
            given += out
        if a is None or b is None:
            return given, None
        low = (rows @ a.t()).mul_(scaling)
        return given.addmm_(low, b.t()), low

    def low_gradient(self, grad: Tensor) -> Tensor | None:
        """Return the gradient of x Aᵀ [N, r], which those of A and of the input are made from. grad: [N, out]."""
        return None if self.b is None else (grad @ self.b).mul_(self.scaling)

    def gradients(
        self, grad: Tensor, grad_low: Tensor | None, rows: Tensor, low: Tensor | None, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of (weight, bias, a, b). rows: [N, in], the input. low: as `onto` gave it. needs: which are wanted."""
        return (
            grad.t() @ rows if needs[0] else None,
            grad.sum(0) if needs[1] else None,
            grad_low.t() @ rows if needs[2] and grad_low is not None else None,
            grad.t() @ low if needs[3] and low is not None else None,
        )

    def input_gradient(self, grad: Tensor, grad_low: Tensor | None, onto: Tensor | None = None) -> Tensor:
        """Return the gradient of the input [N, in], added to `onto` if there is one."""
        found = product(grad, self.weight.t()) if onto is None else add_product(onto, grad, self.weight.t())
        return found if self.a is None or grad_low is None else found.addmm_(grad_low, self.a)


def _normed(x: Tensor, norm: Any, *linears: Linear) -> list[Tensor]:
    """Return what the linear layers make of RMS-normed x [B, T, H]."""
    tensors = [tensor for linear in linears for tensor in linear.tensors]
    found: tuple[Tensor, ...] = _NormedLinears.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.variance_epsilon, [linear.scaling for linear in linears], *tensors
    )
    return list(found)


class _NormedLinears(torch.autograd.Function):
    # x / √(mean x² + eps) · gain (Zhang & Sennrich 1910.07467), and several linear layers of it. Kept: x and one number a token.

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, scalings: list[float], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        inverse = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(rows.shape[-1]).add_(eps).rsqrt_()
        normed = (rows * inverse).mul_(gain)
        outs, lows = zip(*(linear.onto(None, normed) for linear in _linears(tensors, scalings)), strict=True)
        ctx.save_for_backward(rows, inverse, gain, *lows, *tensors)
        ctx.scalings, ctx.shape = scalings, x.shape
        return tuple(out.reshape(*x.shape[:-1], -1) for out in outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        rows, inverse, gain, *rest = ctx.saved_tensors  # read once: layers that are computed again allow no more
        lows, tensors = rest[: len(grads)], rest[len(grads) :]
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        linears = _linears(tensors, ctx.scalings)
        grad_lows = [linear.low_gradient(grad) for linear, grad in zip(linears, flat, strict=True)]
        unit = rows * inverse
        found: list[Tensor | None] = []
        if any(ctx.needs_input_grad[4:]):
            normed = unit * gain
            for place, (linear, grad, grad_low, low) in enumerate(zip(linears, flat, grad_lows, lows, strict=True)):
                found += linear.gradients(grad, grad_low, normed, low, ctx.needs_input_grad[4 + 4 * place : 8 + 4 * place])
            del normed
        if not any(ctx.needs_input_grad[:2]):
            return None, None, None, None, *found
        slope = None
        for linear, grad, grad_low in zip(linears, flat, grad_lows, strict=True):
            slope = linear.input_gradient(grad, grad_low, slope)
        assert slope is not None
        along = slope * unit
        grad_gain = along.sum(0) if ctx.needs_input_grad[1] else None
        share = torch.mv(along, gain).div_(-rows.shape[-1])[:, None]
        grad_x = slope.mul_(gain).addcmul_(unit, share).mul_(inverse).reshape(ctx.shape)
        return grad_x, grad_gain, None, None, *(found or [None] * len(tensors))


def _linears(tensors: Sequence[Tensor | None], scalings: Sequence[float]) -> list[Linear]:
    fours: list[Any] = [tensors[start : start + 4] for start in range(0, len(tensors), 4)]
    return [Linear(weight, bias, a, b, scaling) for (weight, bias, a, b), scaling in zip(fours, scalings, strict=True)]


class _Added(torch.autograd.Function):
    # residual + linear(attended). Kept: what attention gave, as attention keeps it too.

    @staticmethod
    def forward(ctx: Any, residual: Tensor, attended: Tensor, scaling: float, *tensors: Tensor | None) -> Tensor:
        (linear,) = _linears(tensors, [scaling])
        rows = attended.reshape(-1, attended.shape[2] * attended.shape[3])
        out, low = linear.onto(residual.reshape(-1, residual.shape[-1]), rows)
        ctx.save_for_backward(attended, low, *tensors)
        ctx.scaling = scaling
        return out.reshape(residual.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        attended, low, *tensors = ctx.saved_tensors
        (linear,) = _linears(tensors, [ctx.scaling])
        flat = grad.reshape(-1, grad.shape[-1])
        grad_low = linear.low_gradient(flat)
        found = linear.gradients(flat, grad_low, attended.reshape(len(flat), -1), low, ctx.needs_input_grad[3:])
        return grad, linear.input_gradient(flat, grad_low).reshape(attended.shape), None, *found


class _Gated(torch.autograd.Function):
    # residual + linear(silu(gate) · up) (Shazeer 2002.05202). Kept: gate and up; their product is made again, a few rows at a time.

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, residual: Tensor, scaling: float, *tensors: Tensor | None) -> Tensor:
        gates, ups = (part.reshape(-1, part.shape[-1]) for part in (gate, up))
        product = torch.empty_like(gates)
        for g, u, p in zip(*(part.split(ROWS) for part in (gates, ups, product)), strict=True):
            torch.ops.aten.silu.out(g, out=p).mul_(u)
        (linear,) = _linears(tensors, [scaling])
        out, low = linear.onto(residual.reshape(-1, residual.shape[-1]), product)
        ctx.save_for_backward(gates, ups, low, *tensors)
        ctx.scaling, ctx.shape = scaling, gate.shape
        return out.reshape(residual.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        gates, ups, low, *tensors = ctx.saved_tensors
        (linear,) = _linears(tensors, [ctx.scaling])
        flat = grad.reshape(-1, grad.shape[-1])
        grad_low = linear.low_gradient(flat)
        grad_up = linear.input_gradient(flat, grad_low)  # for now that of the product
        grad_gate, product = torch.empty_like(gates), torch.empty_like(gates)
        for g, u, p, dg, du in zip(*(part.split(ROWS) for part in (gates, ups, product, grad_gate, grad_up)), strict=True):
            silu = nn.functional.silu(g)
            torch.mul(silu, u, out=p)
            torch.ops.aten.silu_backward.grad_input(du * u, g, grad_input=dg)
            du.mul_(silu)
        found = linear.gradients(flat, grad_low, product, low, ctx.needs_input_grad[4:])
        return grad_gate.reshape(ctx.shape), grad_up.reshape(ctx.shape), grad, None, *found


class _Rotated(torch.autograd.Function):
    # Rotary positions (Su et al. 2104.09864), the halves of a head as the two coordinates. The backward is the turn back.

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turned(grad, cos, sin, -1.0), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    """Return x [B, T, heads, D] turned by the angles whose cos and sin are [B or 1, T, D], both halves of D alike."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    out = x * cos
    (out_first, out_second), (first, second), (sine, _) = (part.chunk(2, dim=-1) for part in (out, x, sin))
    out_first.addcmul_(second, sine, value=-way)
    out_second.addcmul_(first, sine, value=way)
    return out
