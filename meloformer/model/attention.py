"""One attention call, two backends: `flex` (block-sparse, CUDA) and `dense` (the oracle).

Both take the same plan, made from the same rule: `dense` as a bool mask, `flex` as block lists plus
the rule as a mask function.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from meloformer.errors import ConfigError
from meloformer.model import dense_masks, masks
from meloformer.model.kernel import attend_blocks, block_mask
from meloformer.model.masks import Blocks, Layout, Rule

Backend = Literal["dense", "flex"]
KeysValues = tuple[Tensor, Tensor]


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

    `opened` is the same for layers with open summaries: its SUMMARIZE is that of the open ones,
    which read each other alone, and its UPDATE has their keys between the summaries and the tokens.
    """

    summarize: CallPlan | None
    update: tuple[CallPlan, ...]
    rule: Rule
    precision: torch.dtype | None = None
    opened: "AttentionPlan | None" = None

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
            opened=self.opened and self.opened.for_dtype(dtype),
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
    summarize = opened = None
    if layout.piece_BS.shape[1]:
        summarize = CallPlan(dense_masks.summarize_mask(layout))
    update, update_opened = [], []
    for group in rule:
        order_BT = inverse_BT = None
        if group.order == "instrument":
            order_BT = dense_masks.instrument_order(layout)
            inverse_BT = torch.argsort(order_BT, dim=1)
        mask = dense_masks.update_mask(layout, group, order_BT)
        update.append(CallPlan(mask, order_BT, inverse_BT))
        if layout.open_BS is not None:
            mask = dense_masks.with_open(mask, layout, order_BT)
            update_opened.append(CallPlan(mask, order_BT, inverse_BT))
    if layout.open_BS is not None:
        own = CallPlan(dense_masks.open_mask(layout))
        opened = AttentionPlan(own, tuple(update_opened), rule, precision)
    return AttentionPlan(summarize, tuple(update), rule, precision, opened)


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
    opened = None
    if layout.open_BS is not None:
        if len(blocks.opened) != len(rule):
            raise ConfigError(
                "the flex backend needs block lists of the layout with its open summaries; found "
                "those of one without; build them again, or take the dense backend"
            )
        own = CallPlan(dense_masks.open_mask(layout))
        calls = (
            CallPlan(
                block_mask(stage, num_tokens, blocks.block_size), call.order_BT, call.inverse_BT
            )
            for stage, call in zip(blocks.opened, update, strict=True)
        )
        opened = AttentionPlan(own, tuple(calls), rule, precision)
    return AttentionPlan(summarize, update, rule, precision, opened)


def summarize(
    q_BHSK: Tensor,
    k_BGNK: Tensor,
    v_BGNK: Tensor,
    plan: AttentionPlan,
    summaries: KeysValues | None = None,
) -> Tensor:
    """Summaries read summaries and tokens. Returns (B, H, S, K).

    Args:
        q_BHSK: queries of summaries.
        k_BGNK: keys of tokens, N = T; where `summaries` are not handed over apart, of both,
            N = S + T, summaries first.
        v_BGNK: values, likewise.
        plan: with a SUMMARIZE.
        summaries: keys and values of summaries, (B, G, S, K) each.
    """
    assert plan.summarize is not None, "a plan without summaries has no SUMMARIZE"
    # Norms and rotary may hand over another dtype than the projections; one kernel needs one.
    model_dtype = v_BGNK.dtype
    dtype = plan.precision or model_dtype
    k_BGNK, v_BGNK = _joined((k_BGNK, v_BGNK), summaries, dtype)
    read = _attend(q_BHSK.to(dtype), k_BGNK, v_BGNK, plan.summarize.mask, plan)
    return read.to(model_dtype)


def update(
    q_BHTK: Tensor,
    k_BGNK: Tensor,
    v_BGNK: Tensor,
    plan: AttentionPlan,
    summaries: KeysValues | None = None,
) -> Tensor:
    """Tokens read summaries and tokens, each head group in its own order. Returns (B, H, T, K).

    Args:
        q_BHTK: queries of tokens.
        k_BGNK: keys; see `summarize`.
        v_BGNK: values.
        plan: one call per head group.
        summaries: keys and values that tokens read of summaries, (B, G, S, K) each.
    """
    model_dtype = v_BGNK.dtype
    dtype = plan.precision or model_dtype
    if len(plan.update) == 1 and plan.update[0].order_BT is None:
        k_BGNK, v_BGNK = _joined((k_BGNK, v_BGNK), summaries, dtype)
        read = _attend(q_BHTK.to(dtype), k_BGNK, v_BGNK, plan.update[0].mask, plan)
        return read.to(model_dtype)
    if summaries is None:
        sizes = (k_BGNK.shape[2] - q_BHTK.shape[2], q_BHTK.shape[2])
        (k_BGSK, k_BGNK), (v_BGSK, v_BGNK) = (x.split(sizes, dim=2) for x in (k_BGNK, v_BGNK))
        summaries = k_BGSK, v_BGSK
    groups = _Groups.of(plan, k_BGNK.shape[1])
    query_groups = groups.times(q_BHTK.shape[1] // k_BGNK.shape[1])
    q = _Store.apply(None, q_BHTK, query_groups, dtype)
    k, v = (
        _Store.apply(lead, x, groups, dtype)
        for lead, x in zip(summaries, (k_BGNK, v_BGNK), strict=True)
    )
    parts = [_attend(*call, plan) for call in zip(q, k, v, groups.masks, strict=True)]
    restored: Tensor = _Restore.apply(query_groups, model_dtype, *parts)
    return restored


def _joined(
    tokens: KeysValues, summaries: KeysValues | None, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    if summaries is None:
        return tuple(x.to(dtype) for x in tokens)
    pairs = zip(summaries, tokens, strict=True)
    return tuple(torch.cat([x.to(dtype) for x in pair], dim=2) for pair in pairs)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, plan: AttentionPlan
) -> Tensor:
    # Autocast has casts of its own, which would hand a kernel of another precision bf16 again.
    is_cast_again = plan.precision is not None and torch.is_autocast_enabled(q.device.type)
    with torch.autocast(q.device.type, enabled=False) if is_cast_again else nullcontext():
        if isinstance(mask, BlockMask):
            return attend_blocks(q, k, v, mask)
        is_grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=is_grouped
        )


@dataclass(frozen=True)
class _Groups:
    """Heads of each group of a rule, and the order that their tokens are stored in."""

    heads: tuple[slice, ...]
    calls: tuple[CallPlan, ...]

    @classmethod
    def of(cls, plan: AttentionPlan, num_kv_heads: int) -> "_Groups":
        return cls(masks.split_heads(plan.rule, num_kv_heads), plan.update)

    @property
    def masks(self) -> tuple[Tensor | BlockMask | None, ...]:
        return tuple(call.mask for call in self.calls)

    def times(self, count: int) -> "_Groups":
        """The same for heads of which so many belong to each of these."""
        heads = (slice(part.start * count, part.stop * count) for part in self.heads)
        return _Groups(tuple(heads), self.calls)


class _Store(torch.autograd.Function):
    """What each call reads: its group's heads, summaries first, then tokens in its order.

    One copy, straight to its place; kept for the backward pass are the orders alone, and gradients
    go back the same way.
    """

    @staticmethod
    def forward(
        ctx: Any, lead_BGSK: Tensor | None, x_BGTK: Tensor, groups: _Groups, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*(call.inverse_BT for call in groups.calls))
        ctx.heads = groups.heads
        inputs = (lead_BGSK, x_BGTK)
        ctx.like = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        B, _, T, K = x_BGTK.shape
        num_lead = 0 if lead_BGSK is None else lead_BGSK.shape[2]
        stored = []
        for heads, call in zip(groups.heads, groups.calls, strict=True):
            count = heads.stop - heads.start
            place = x_BGTK.new_empty(B, count, num_lead + T, K, dtype=dtype)
            if lead_BGSK is not None:
                place[:, :, :num_lead] = lead_BGSK[:, heads]
            _put(place[:, :, num_lead:], x_BGTK[:, heads], call.order_BT)
            stored.append(place)
        return tuple(stored)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        device = gradients[0].device
        lead, tokens = (like and _side_by_side(like[0], like[1], device) for like in ctx.like)
        num_lead = 0 if lead is None else lead.shape[2]
        for heads, found, inverse_BT in zip(ctx.heads, gradients, ctx.saved_tensors, strict=True):
            if lead is not None:
                lead[:, heads] = found[:, :, :num_lead]
            _put(tokens[:, heads], found[:, :, num_lead:], inverse_BT)
        return lead, tokens, None, None


class _Restore(torch.autograd.Function):
    """Results of all groups side by side, in time; in memory the heads of a token lie together."""

    @staticmethod
    def forward(ctx: Any, groups: _Groups, dtype: torch.dtype, *read: Tensor) -> Tensor:
        ctx.save_for_backward(*(call.order_BT for call in groups.calls))
        ctx.heads, ctx.dtype = groups.heads, read[0].dtype
        B, _, T, K = read[0].shape
        restored = _side_by_side((B, groups.heads[-1].stop, T, K), dtype, read[0].device)
        for heads, x, call in zip(groups.heads, read, groups.calls, strict=True):
            _put(restored[:, heads], x, call.inverse_BT)
        return restored

    @staticmethod
    def backward(ctx: Any, gradient_BHTK: Tensor) -> tuple[Tensor | None, ...]:
        gradients = []
        for heads, order_BT in zip(ctx.heads, ctx.saved_tensors, strict=True):
            part = gradient_BHTK[:, heads]
            found = torch.empty(part.shape, dtype=ctx.dtype, device=part.device)
            _put(found, part, order_BT)
            gradients.append(found)
        return (None, None, *gradients)


def _side_by_side(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """An empty (B, H, T, K) with the heads of a token together, as projections write and read."""
    _, H, T, K = shape
    return torch.empty_strided(shape, (T * H * K, K, H * K, 1), dtype=dtype, device=device)


def _put(place_BGTK: Tensor, x_BGTK: Tensor, order_BT: Tensor | None) -> None:
    """Copy tokens to where they belong, in an order, in the dtype of the place."""
    if order_BT is None:
        place_BGTK.copy_(x_BGTK)
        return
    index = order_BT[:, None, :, None].expand(-1, x_BGTK.shape[1], -1, x_BGTK.shape[3])
    if place_BGTK.dtype == x_BGTK.dtype:
        torch.gather(x_BGTK, 2, index, out=place_BGTK)
    else:
        place_BGTK.copy_(torch.gather(x_BGTK, 2, index))
