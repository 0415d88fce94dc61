"""A layer for single tokens: the values of model/museformer.py in fewer calls.

For one token a call costs as much as its arithmetic. So queries, keys and values are projected,
normed and turned together, and what all layers share of a rotation is computed once a step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meloformer.model.museformer import Layer, MuseFormer


class Turn(NamedTuple):
    """Rotation of some tokens, (B, N, 1, K) each: x cos + (x, halves swapped) sin."""

    cos: Tensor
    sin: Tensor


class DecodeLayer:
    """Queries, keys and values of a layer's tokens and summaries.

    Args:
        layer: which must not change its weights while this is in use.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._num_heads, self._num_turned = (
            layer.num_heads,
            layer.num_heads + layer.num_kv_heads,
        )
        self._head_width = layer.head_width
        self._project = _joined(layer.query, layer.key_value)
        weights = [layer.query_norm.weight.expand(layer.num_heads, -1)]
        weights.append(layer.key_norm.weight.expand(layer.num_kv_heads, -1))
        self._norm_HK = torch.cat(weights).detach()
        self._norm_eps = layer.query_norm.eps

    def read(self, x_BND: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Of a stream before attention: q (B, H, N, K), k and v (B, G, N, K)."""
        projected = self._project(rms_norm(x_BND, self._layer.attention_norm))
        projected = projected.unflatten(-1, (-1, self._head_width)).transpose(1, 2)
        turned = projected[:, : self._num_turned].transpose(1, 2)
        # All heads have one eps and lie beside each other; their weights differ.
        turned = _turned(_normed(turned, self._norm_HK, self._norm_eps), turn).transpose(1, 2)
        q, k = turned[:, : self._num_heads], turned[:, self._num_heads :]
        return q, k, projected[:, self._num_turned :]

    def coarse(self, s_BND: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Keys and values (B, G, N, K) that tokens read of summaries."""
        layer = self._layer
        kv = layer.coarse_key_value(rms_norm(s_BND, layer.coarse_norm))
        k, v = kv.unflatten(-1, (2, -1, self._head_width)).unbind(2)
        norm = layer.coarse_key_norm
        k = _turned(_normed(k, norm.weight, norm.eps), turn)
        return k.transpose(1, 2), v.transpose(1, 2)

    def add_attention(self, x_BND: Tensor, heads_BHNK: Tensor) -> Tensor:
        """Residual of an attention call."""
        return self._layer.add_attention(x_BND, heads_BHNK)

    def add_ffn(self, x_BND: Tensor) -> Tensor:
        """Residual of the feed-forward network."""
        layer = self._layer
        gate, value = layer.ffn_in(rms_norm(x_BND, layer.ffn_norm)).chunk(2, dim=-1)
        return x_BND + layer.ffn_out(F.silu(gate).mul_(value))


def decode_layers(model: MuseFormer) -> list[DecodeLayer]:
    """All layers of a model whose weights stay as they are."""
    layers = []
    for layer in model.layers:
        assert isinstance(layer, Layer)
        layers.append(DecodeLayer(layer))
    return layers


def turn_of(angles: Tensor, dtype: torch.dtype) -> Turn:
    """The rotation by (B, 1, N, K/2) angles."""
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Turn(
        torch.cat([cos, cos], dim=-1).transpose(1, 2),
        torch.cat([-sin, sin], dim=-1).transpose(1, 2),
    )


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """What the module computes."""
    return _normed(x, norm.weight, norm.eps)


def _normed(x: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """RMSNorm of the last dimension, with weights that may differ between heads.

    On a CPU torch composes its own of more calls than this.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.rms_norm(x, x.shape[-1:], None, eps) * weight
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight)


def _turned(x_BNHK: Tensor, turn: Turn) -> Tensor:
    swapped = x_BNHK.roll(x_BNHK.shape[-1] // 2, dims=-1)
    return (x_BNHK * turn.cos).addcmul_(swapped, turn.sin)


def _joined(first: nn.Module, second: nn.Module) -> Callable[[Tensor], Tensor]:
    """Both linear maps beside each other.

    Only of plain ones, since others (adapters, weights of 8 bits) are more than their weight.
    """
    if type(first) is nn.Linear and type(second) is nn.Linear:
        weight = torch.cat([first.weight, second.weight]).detach()
        return lambda x: F.linear(x, weight)
    return lambda x: torch.cat([first(x), second(x)], dim=-1)
