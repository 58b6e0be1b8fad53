"""A token more for every row at once, for layers built as Llama's: what `lean` is for training, for decoding (float32 on a CPU).

With few rows a step waits for the weights, and then for the many small operations around each product. So queries, keys and values are
one product, an adapter and the gains of the norms are in the weights, activations and sums in the products, and the weights lie as oneDNN
reads them. That is a copy of the weights, made anew for each sampling and let go after it: those of the model are never touched.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from preftune.models.attention import Part, attend_once
from preftune.models.lean import Linear, is_hooked, linears_of, takes_spans, turned
from preftune.models.load import output_head, unwrap
from preftune.models.product import keep_little_code
from preftune.parallel.shard import root_of

LIKE_LLAMA = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
KIND = "full_attention"  # of a layer that looks back as far as there is something


class Decoder:
    """The layers and the output layer of a model, ready to be read token by token. Its weights must not change while this is used.

    model: one of which `packed_bytes` says a number.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        backbone: Any = unwrap(model).base_model
        words = backbone.get_input_embeddings()
        self._words, self._rotary, self._norm = words.weight, backbone.rotary_emb, backbone.norm
        self._layers = [_Layer(layer, linears_of(layer, words.weight, {}) or []) for layer in backbone.layers]
        self._head = output_head(model)
        self._scores = _Product(Linear(self._head.weight, self._head.bias))

    @torch.no_grad()
    def read(self, tokens: Tensor, positions: Tensor, cache: Any, parts: Sequence[Part]) -> Tensor:
        """Return the last hidden states [R, H], after the final norm.

        tokens, positions: int64 [R], one of each row. cache: of transformers' kind; each layer takes the keys and values of this token, and
        gives back all [R, heads, S, D]. parts: which of these each row sees (see `attend_once`).
        """
        x = self._words[tokens]
        cos, sin = self._rotary(x[:, None], position_ids=positions[:, None])
        for place, layer in enumerate(self._layers):
            x = layer.read(x, cos, sin, cache.layers[place], parts)
        return nn.functional.rms_norm(x, x.shape[-1:], self._norm.weight, self._norm.variance_epsilon)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [R, V] of hidden states [R, H]."""
        return self._head.shaped(self._scores(hidden))


def packed_bytes(model: nn.Module) -> int | None:
    """Return about how many bytes a decoder's copy of the weights takes: all but the embedding.

    None where a decoder cannot read the model: its layers are not all of the known kind, here and now.
    """
    whole = unwrap(model)
    backbone: Any = whole.base_model
    if root_of(backbone) is not None or type(backbone).__name__ not in LIKE_LLAMA or not _sees_all(backbone.config):
        return None
    words, head = backbone.get_input_embeddings(), whole.get_output_embeddings()
    around = (backbone, words, head, backbone.norm, backbone.rotary_emb, *backbone.layers)
    if type(words) is not nn.Embedding or type(head) is not nn.Linear or not type(backbone.norm).__name__.endswith("RMSNorm"):
        return None
    if any(map(is_hooked, around)) or head.weight.dtype != torch.float32 or not takes_spans(backbone):
        return None
    return sum(int(p.nbytes) for layer in (*backbone.layers, head) for p in layer.parameters())


def _sees_all(config: Any) -> bool:
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds:
        return kinds == {KIND}
    window = getattr(config, "sliding_window", None)
    return window is None or window >= config.max_position_embeddings


class _Layer:
    def __init__(self, layer: Any, linears: Sequence[Linear]) -> None:
        q, k, v, o, gate, up, down = linears
        self._attention, self._norms = layer.self_attn, [_Norm(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
        self._heads, self._fewer = (len(linear.weight) // layer.self_attn.head_dim for linear in (q, k))
        first, second = (norm.gain for norm in self._norms)
        self._qkv, self._o = _Product(q, k, v, gain=first), _Product(o)
        self._gate, self._up, self._down = _Product(gate, gain=second), _Product(up, gain=second), _Product(down)

    def read(self, x: Tensor, cos: Tensor, sin: Tensor, room: Any, parts: Sequence[Part]) -> Tensor:
        attention, heads, fewer = self._attention, self._heads, self._fewer
        found = self._qkv(self._norms[0](x)).unflatten(1, (-1, attention.head_dim))[:, None]  # [R, 1, heads, D]
        pair = found[:, :, : heads + fewer]
        if hasattr(attention, "q_norm"):  # Qwen 3's
            pair = torch.cat([attention.q_norm(pair[:, :, :heads]), attention.k_norm(pair[:, :, heads:])], dim=2)
        pair = turned(pair, cos, sin, 1.0)
        keys, values = room.update(pair[:, :, heads:].transpose(1, 2), found[:, :, heads + fewer :].transpose(1, 2))
        attended = attend_once(pair[:, 0, :heads], keys, values, parts, attention.scaling)
        x = self._o.added(attended.flatten(1), x)
        unit = self._norms[1](x)
        return self._down.added(self._up.times(unit, self._gate.silu(unit)), x)


class _Norm:
    """x / √(mean x² + eps) · gain (Zhang & Sennrich 1910.07467) in two parts: x / √(Σ x² + H eps), and √H · gain, for the weights."""

    def __init__(self, norm: Any) -> None:
        width = norm.weight.shape[0]
        self.gain = norm.weight * width**0.5
        self._least = norm.weight.new_full((1, 1), (width * norm.variance_epsilon) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._least)


class _Product:
    """Linear layers of one input as one product: x [R, in] → what they give, side by side [R, out].

    An adapter is added into the weights, and so is `gain` [in], by which the layers' input is to be multiplied.
    """

    def __init__(self, *linears: Linear, gain: Tensor | None = None) -> None:
        weight = linears[0].weight.new_empty(sum(len(linear.weight) for linear in linears), linears[0].weight.shape[1])
        for part, linear in zip(weight.split([len(linear.weight) for linear in linears]), linears, strict=True):
            part.copy_(linear.weight)
            if linear.a is not None and linear.b is not None:
                part.addmm_(linear.b, linear.a, alpha=linear.scaling)
        if gain is not None:
            weight *= gain
        self._bias: Tensor | None = None
        if any(linear.bias is not None for linear in linears):
            self._bias = torch.cat([weight.new_zeros(len(each.weight)) if each.bias is None else each.bias for each in linears])
        self._packed = packing_works()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if self._packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        return _packed_product(x, self._weight, self._bias) if self._packed else self._plain(x)

    def silu(self, x: Tensor) -> Tensor:
        """Return silu of what it gives (Elfwing et al. 1702.03118)."""
        return _packed_product(x, self._weight, self._bias, "swish") if self._packed else nn.functional.silu(self._plain(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Return what it gives times `other` [R, out]."""
        return _packed_and(x, other, self._weight, self._bias, "mul") if self._packed else self._plain(x).mul_(other)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """Return what it gives plus `other` [R, out]."""
        return _packed_and(x, other, self._weight, self._bias, "add") if self._packed else self._plain(x).add_(other)

    def _plain(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._weight, self._bias)


ROWS = 8  # for which the weights are laid out; any number may come


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, then, [], "")
    return found


def _packed_and(x: Tensor, other: Tensor, packed: Tensor, bias: Tensor | None, what: str) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, what)
    return found


@functools.cache
def packing_works() -> bool:
    """Say whether this build of torch lays weights out for oneDNN and multiplies by them, as its own compiler does with frozen ones."""
    if not torch.backends.mkldnn.is_available():
        return False
    keep_little_code()
    x, weight = torch.ones(3, 16), torch.arange(64.0).view(4, 16) / 64
    plain = nn.functional.linear(x, weight)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        found = [_packed_product(x, packed, None), _packed_product(x, packed, None, "swish")]
        found += [_packed_and(x, plain, packed, None, what) for what in ("mul", "add")]
    except (AttributeError, RuntimeError, TypeError):  # another version of torch, or another processor
        return False
    expected = [plain, nn.functional.silu(plain), plain * plain, plain + plain]
    return all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))
