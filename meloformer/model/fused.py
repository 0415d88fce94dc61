"""Pointwise parts in one kernel each: the values of the plain calls, by torch.compile.

Uncompiled, each of their operations reads and writes a whole stream. The length of a row is a
symbol to the compiler, everything else is a constant: the number of graphs depends on the number of
rows alone, never on their lengths.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.model.rotary import rotate

# Queries and keys, which lie differently in memory, the feed-forward network, and the loss.
GRAPHS_PER_ROWS = 4
BACKEND = "inductor"
# On a GPU, torch 2.10 and later decide by the length of the rows whether the two sums of a norm's
# backward share a kernel, and compile anew on the other side: the summaries of the first layer.
_OPTIONS: dict[str, Any] = {"triton.mix_order_reduction": False}


def norm_rotate(x_BNHK: Tensor, weight_K: Tensor, eps: float | None, angles: Tensor) -> Tensor:
    """RMSNorm of every head, then its rotation; (B, N, H, K), dense.

    Args:
        x_BNHK: queries or keys.
        weight_K: of the norm.
        eps: of the norm; that of the precision if None.
        angles: (B, 1, N, K/2).
    """
    _set_symbol(x_BNHK, 1)
    _set_symbol(angles, 2)
    return _compiled(_norm_rotate)(x_BNHK, weight_K, eps, angles)


def swiglu(both_BNF: Tensor) -> Tensor:
    """SiLU of the first half of the last dimension, times the second."""
    _set_symbol(both_BNF, 1)
    return _compiled(plain_swiglu)(both_BNF)


def plain_swiglu(both_BNF: Tensor) -> Tensor:
    """The same, uncompiled (Shazeer 2020)."""
    gate_BNF, value_BNF = both_BNF.chunk(2, dim=-1)
    return F.silu(gate_BNF) * value_BNF


def token_nats(logits_BTV: Tensor, targets_BT: Tensor, ignore_index: int) -> Tensor:
    """Cross entropy of every target in float32, (B, T), 0 where there is none.

    No float32 copy of the logits is written, here or in the backward pass.

    Args:
        logits_BTV: of any precision.
        targets_BT: class ids.
        ignore_index: id of a place without a target.
    """
    _set_symbol(logits_BTV, 1)
    _set_symbol(targets_BT, 1)
    return _compiled(_token_nats)(logits_BTV, targets_BT, ignore_index)


def _token_nats(logits_BTV: Tensor, targets_BT: Tensor, ignore_index: int) -> Tensor:
    logits_BTV = logits_BTV.float()
    # A comparison and not an index, whose backward would be a scatter into zeros.
    classes_V = torch.arange(logits_BTV.shape[-1], device=logits_BTV.device)
    is_target_BTV = classes_V == targets_BT.unsqueeze(-1)
    target_BT = torch.where(is_target_BTV, logits_BTV, 0.0).sum(-1)
    nats_BT = torch.logsumexp(logits_BTV, -1) - target_BT
    return torch.where(targets_BT == ignore_index, 0.0, nats_BT)


def _norm_rotate(x_BNHK: Tensor, weight_K: Tensor, eps: float | None, angles: Tensor) -> Tensor:
    return rotate(F.rms_norm(x_BNHK, weight_K.shape, weight_K, eps), angles.transpose(1, 2))


def _set_symbol(tensor: Tensor, dimension: int) -> None:
    torch._dynamo.mark_dynamic(tensor, dimension)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Built at the first call: it loads the compiler. A length that it wants to compile in is an
    # error there, not one graph more per length.
    options = _OPTIONS if BACKEND == "inductor" else None
    return torch.compile(function, dynamic=False, fullgraph=True, backend=BACKEND, options=options)
