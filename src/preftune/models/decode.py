"""A token more for every row at once, for layers built as Llama's: what `lean` is for training, for decoding (float32 on a CPU).

With few rows a step waits for the weights, and then for the many small operations around each product. So the layers that read the
same input are one product, an adapter's first matrices ride along in it, and the weights lie as oneDNN reads them. That is a copy of the
weights, made anew for each sampling and let go after it: those of the model are never touched.
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
        self._scores = _Products(Linear(self._head.weight, self._head.bias))

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
        return _normed(x, self._norm)

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
        self._attention, self._norms = layer.self_attn, (layer.input_layernorm, layer.post_attention_layernorm)
        self._heads, self._fewer = (len(linear.weight) // layer.self_attn.head_dim for linear in (q, k))
        self._qkv, self._o, self._gates, self._down = _Products(q, k, v), _Products(o), _Products(gate, up), _Products(down)

    def read(self, x: Tensor, cos: Tensor, sin: Tensor, room: Any, parts: Sequence[Part]) -> Tensor:
        attention, heads, fewer = self._attention, self._heads, self._fewer
        found = self._qkv(_normed(x, self._norms[0])).unflatten(1, (-1, attention.head_dim))[:, None]  # [R, 1, heads, D]
        pair = found[:, :, : heads + fewer]
        if hasattr(attention, "q_norm"):  # Qwen 3's
            pair = torch.cat([attention.q_norm(pair[:, :, :heads]), attention.k_norm(pair[:, :, heads:])], dim=2)
        pair = turned(pair, cos, sin, 1.0)
        keys, values = room.update(pair[:, :, heads:].transpose(1, 2), found[:, :, heads + fewer :].transpose(1, 2))
        attended = attend_once(pair[:, 0, :heads], keys, values, parts, attention.scaling)
        x = x + self._o(attended.flatten(1))
        gates = self._gates(_normed(x, self._norms[1]))
        gate, up = gates.chunk(2, dim=1)
        return x.add_(self._down(nn.functional.silu(gate).mul_(up)))


def _normed(x: Tensor, norm: Any) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


class _Products:
    """Linear layers of one input as one product: x [R, in] → what they give, side by side [R, out].

    The rows of an adapter's A lie below the weights, so that x Aᵀ comes with x Wᵀ; its Bs stand in a matrix of their own, each below the
    columns of its layer.
    """

    def __init__(self, *linears: Linear) -> None:
        lows = [linear for linear in linears if linear.a is not None]
        weight = torch.cat([linear.weight for linear in linears] + [low.a for low in lows if low.a is not None])
        self._out, self._inner = sum(len(linear.weight) for linear in linears), weight.shape[1]
        self._bias: Tensor | None = None
        if any(linear.bias is not None for linear in linears):
            parts = [weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias for linear in linears]
            self._bias = torch.cat([*parts, weight.new_zeros(len(weight) - self._out)])
        self._updates = _block_diagonal(linears, self._out) if lows else None
        self._packed = packing_works()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if self._packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        found = _packed_product(x, self._weight, self._bias) if self._packed else nn.functional.linear(x, self._weight, self._bias)
        if self._updates is None:
            return found
        return found[:, : self._out].addmm_(found[:, self._out :], self._updates)


def _block_diagonal(linears: Sequence[Linear], width: int) -> Tensor:
    """Return scaling · Bᵀ of each layer, in rows of its own and the columns of its layer: float [all ranks, width]."""
    ranks = [0 if linear.a is None else len(linear.a) for linear in linears]
    found = linears[0].weight.new_zeros(sum(ranks), width)
    row = column = 0
    for linear, rank in zip(linears, ranks, strict=True):
        if linear.b is not None:
            torch.mul(linear.b.t(), linear.scaling, out=found[row : row + rank, column : column + len(linear.weight)])
        row, column = row + rank, column + len(linear.weight)
    return found


ROWS = 8  # for which the weights are laid out; any number may come


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return found


@functools.cache
def packing_works() -> bool:
    """Say whether this build of torch lays weights out for oneDNN and multiplies by them, as its own compiler does with frozen ones."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.ones(3, 16), torch.arange(64.0).view(4, 16)
    try:
        found = _packed_product(x, torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), None)
    except (AttributeError, RuntimeError, TypeError):  # another version of torch, or another processor
        return False
    return torch.equal(found, nn.functional.linear(x, weight))
