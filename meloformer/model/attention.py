"""One attention call, two backends: `flex` (block-sparse, CUDA) and `dense` (the oracle).

Both take the same plan, made from the same rule: `dense` as a bool mask, `flex` as block lists plus
the rule as a mask function.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from meloformer.errors import ConfigError
from meloformer.model import masks
from meloformer.model.kernel import attend_blocks, block_mask
from meloformer.model.masks import Blocks, Label, Layout, Rule

Backend = Literal["dense", "flex"]


@dataclass(frozen=True)
class CallPlan:
    """One attention call: which pairs count, and the storage order of its tokens.

    Args:
        mask: (B, 1, Q, N) bool, or 0 and -inf in the dtype of the call; or a BlockMask; None is
            plain causal attention over the tokens in time, pieces not told apart.
        order_BT: time index of the token stored at each place; None where that is time itself.
        inverse_BT: place of each token in that order.
    """

    mask: Tensor | BlockMask | None
    order_BT: Tensor | None = None
    inverse_BT: Tensor | None = None


@dataclass(frozen=True)
class AttentionPlan:
    """The calls of every layer: one SUMMARIZE, one UPDATE per head group of the rule.

    `summarize` is None where there are no summaries: then keys are tokens alone.
    """

    summarize: CallPlan | None
    update: tuple[CallPlan, ...]
    rule: Rule
    precision: torch.dtype | None = None

    def for_dtype(self, dtype: torch.dtype) -> "AttentionPlan":
        """The same plan with dense masks as numbers to add, once for all layers."""
        dtype = self.precision or dtype

        def additive(call: CallPlan) -> CallPlan:
            if not isinstance(call.mask, Tensor):
                return call
            numbers = torch.zeros_like(call.mask, dtype=dtype)
            return replace(call, mask=numbers.masked_fill_(~call.mask, -torch.inf))

        return replace(
            self,
            summarize=self.summarize and additive(self.summarize),
            update=tuple(map(additive, self.update)),
        )


def causal_plan(precision: torch.dtype | None = None) -> AttentionPlan:
    """Plain causal attention over whole rows, without summaries, by torch's fastest dense kernel.

    The dense twin of a speed comparison: no mask is read, so pieces packed into a row meet.

    Args:
        precision: dtype to run the call in; None keeps that of the inputs.
    """
    return AttentionPlan(None, (CallPlan(None),), masks.RULES["full"], precision)


def build_plan(
    layout: Layout,
    rule: Rule,
    backend: Backend = "dense",
    blocks: Blocks | None = None,
    precision: torch.dtype | None = None,
) -> AttentionPlan:
    """Everything about a batch that attention has to know, for all layers.

    Args:
        layout: labels of tokens and summaries, torch int32.
        rule: head groups.
        backend: `dense` or `flex`.
        blocks: block lists of the batch, required by `flex`.
        precision: dtype to run the call in; None keeps that of the inputs.
    """
    if backend == "flex" and blocks is None:
        raise ConfigError("the flex backend needs the block lists of its batch; found none")
    if backend == "flex" and blocks is not None:
        return _flex_plan(layout, rule, blocks, precision)
    tokens, summaries = labels_of(layout)
    summarize = None
    if layout.piece_BS.shape[1]:
        keys = _concatenate(summaries, tokens)
        summarize = CallPlan(_dense_mask(masks.summary_reads, summaries, keys))
    update = []
    for group in rule:
        order_BT = inverse_BT = None
        queries = tokens
        if group.order == "instrument":
            order_BT = _instrument_order(layout)
            inverse_BT = torch.argsort(order_BT, dim=1)
            queries = Label(*(torch.gather(field, 1, order_BT) for field in tokens))
        reads = functools.partial(masks.token_reads, group)
        mask = _dense_mask(reads, queries, _concatenate(summaries, queries))
        update.append(CallPlan(mask, order_BT, inverse_BT))
    return AttentionPlan(summarize, tuple(update), rule, precision)


def _flex_plan(
    layout: Layout, rule: Rule, blocks: Blocks, precision: torch.dtype | None
) -> AttentionPlan:
    """All of it was made where the batch was: here it is put into torch's words."""
    num_tokens, num_slots = layout.piece_BT.shape[1], layout.piece_BS.shape[1]
    assert len(blocks.update) == len(rule) and (blocks.summarize is not None) == (num_slots > 0)
    summarize = None
    if blocks.summarize is not None:
        summarize = CallPlan(block_mask(blocks.summarize, num_slots, blocks.block_size))
    update = tuple(
        CallPlan(block_mask(stage, num_tokens, blocks.block_size), stage.order_BT, stage.inverse_BT)
        for stage in blocks.update
    )
    return AttentionPlan(summarize, update, rule, precision)


def summarize(q_BHSK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, plan: AttentionPlan) -> Tensor:
    """Summaries read summaries and tokens; N = S + T, summaries first. Returns (B, H, S, K)."""
    assert plan.summarize is not None, "a plan without summaries has no SUMMARIZE"
    return _attend(q_BHSK, k_BGNK, v_BGNK, plan.summarize.mask, plan.precision)


def update(q_BHTK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, plan: AttentionPlan) -> Tensor:
    """Tokens read summaries and tokens, each head group in its own order. Returns (B, H, T, K)."""
    num_kv_heads, queries_per_kv = k_BGNK.shape[1], q_BHTK.shape[1] // k_BGNK.shape[1]
    outputs = []
    for heads, call in zip(masks.split_heads(plan.rule, num_kv_heads), plan.update, strict=True):
        q = q_BHTK[:, heads.start * queries_per_kv : heads.stop * queries_per_kv]
        k, v = k_BGNK[:, heads], v_BGNK[:, heads]
        if call.order_BT is None or call.inverse_BT is None:
            outputs.append(_attend(q, k, v, call.mask, plan.precision))
            continue
        num_slots = k.shape[2] - q.shape[2]
        order = call.order_BT, call.inverse_BT
        q = _Reorder.apply(q, *order)
        k, v = (
            torch.cat([x[:, :, :num_slots], _Reorder.apply(x[:, :, num_slots:], *order)], dim=2)
            for x in (k, v)
        )
        read = _attend(q, k, v, call.mask, plan.precision)
        outputs.append(_Reorder.apply(read, *reversed(order)))
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, precision: torch.dtype | None
) -> Tensor:
    dtype = v.dtype
    # Norms and rotary may hand over another dtype than the projections; one kernel needs one.
    q, k, v = (x.to(precision or dtype) for x in (q, k, v))
    if precision is not None and torch.is_autocast_enabled(q.device.type):
        # Autocast has casts of its own, which would hand the kernel bf16 again.
        with torch.autocast(q.device.type, enabled=False):
            return _attend(q, k, v, mask, precision).to(dtype)
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        return attend_blocks(q, k, v, mask).to(dtype)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
    ).to(dtype)


class _Reorder(torch.autograd.Function):
    """Tokens in another order, (B, H, T, K).

    `gather` alone would keep its input for the backward pass, and add up gradients one by one
    where each has a place of its own.
    """

    @staticmethod
    def forward(ctx: Any, x_BHTK: Tensor, order_BT: Tensor, inverse_BT: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_BT)
        return _gather(x_BHTK, order_BT)

    @staticmethod
    def backward(ctx: Any, gradient_BHTK: Tensor) -> tuple[Tensor, None, None]:
        (inverse_BT,) = ctx.saved_tensors
        return _gather(gradient_BHTK, inverse_BT), None, None


def _gather(x_BHTK: Tensor, order_BT: Tensor) -> Tensor:
    index = order_BT[:, None, :, None].expand(-1, x_BHTK.shape[1], -1, x_BHTK.shape[3])
    return torch.gather(x_BHTK, 2, index)


def labels_of(layout: Layout) -> tuple[Label, Label]:
    """Labels of tokens (B, T) and of summaries (B, S)."""
    piece_BT, piece_BS = layout.piece_BT, layout.piece_BS
    time_BT = torch.arange(piece_BT.shape[1], device=piece_BT.device, dtype=torch.int32)
    slot_BS = torch.arange(piece_BS.shape[1], device=piece_BS.device, dtype=torch.int32)
    absent_BS = torch.full_like(piece_BS, -1)
    tokens = Label(
        piece_BT,
        layout.bar_BT,
        layout.instrument_BT,
        layout.index_BT,
        time_BT.expand_as(piece_BT),
        torch.zeros_like(piece_BT, dtype=torch.bool),
    )
    summaries = Label(
        piece_BS,
        layout.bar_BS,
        absent_BS,
        absent_BS,
        slot_BS.expand_as(piece_BS),
        torch.ones_like(piece_BS, dtype=torch.bool),
    )
    return tokens, summaries


def _concatenate(first: Label, second: Label) -> Label:
    return Label(*(torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)))


def _instrument_order(layout: Layout) -> Tensor:
    """(B, T) int64: piece by piece, instrument by instrument, in time; padding last."""
    piece_BT = layout.piece_BT.long()
    last = piece_BT.amax(dim=1, keepdim=True) + 1
    piece_BT = torch.where(piece_BT < 0, last, piece_BT)
    # Instruments are small non-negative numbers once the prefix (-1) is shifted to 0.
    instrument_BT = layout.instrument_BT.long() + 1
    key_BT = piece_BT * (instrument_BT.max() + 1) + instrument_BT
    return torch.argsort(key_BT, dim=1, stable=True)


def _narrowed(field: Tensor, narrow: bool) -> Tensor:
    return field.to(torch.int16) if narrow and field.dtype != torch.bool else field


def _dense_mask(reads: Callable[[Label, Label], Tensor], q: Label, k: Label) -> Tensor:
    # Pairs are many and labels small: halving their width nearly halves the time.
    narrow = k.piece.shape[1] <= torch.iinfo(torch.int16).max
    q, k = (Label(*(_narrowed(field, narrow) for field in label)) for label in (q, k))
    rows = Label(*(field[:, None, :, None] for field in q))
    columns = Label(*(field[:, None, None, :] for field in k))
    return reads(rows, columns)
