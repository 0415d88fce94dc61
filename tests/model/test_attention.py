"""What the calls of a plan read: which heads, in which order, copied how often."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.model import attention, masks
from meloformer.model.attention import AttentionPlan, CallPlan
from tests.layouts import as_torch, random_layout

ROWS, LENGTH, SLOTS, WIDTH = 2, 96, 32, 16
Update = Callable[[tuple[Tensor, ...], AttentionPlan], Tensor]


def drawn(heads: int, kv_heads: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries, keys and values of tokens, keys and values of summaries."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, LENGTH), *[(kv_heads, LENGTH)] * 2, *[(kv_heads, SLOTS)] * 2]
    return tuple(
        torch.randn(ROWS, count, length, WIDTH, generator=generator).to(dtype).requires_grad_()
        for count, length in shapes
    )


def plan_of(rule: str, dtype: torch.dtype, precision: torch.dtype | None) -> AttentionPlan:
    layout = as_torch(random_layout(3, rows=ROWS, length=LENGTH, slots=SLOTS))
    return attention.build_plan(layout, masks.RULES[rule], precision=precision).for_dtype(dtype)


def apart(inputs: tuple[Tensor, ...], plan: AttentionPlan) -> Tensor:
    q, k, v, *summaries = inputs
    return attention.update(q, k, v, plan, tuple(summaries))


def joined_before(inputs: tuple[Tensor, ...], plan: AttentionPlan) -> Tensor:
    q, k, v, k2, v2 = inputs
    return attention.update(q, torch.cat([k2, k], dim=2), torch.cat([v2, v], dim=2), plan)


def step_by_step(inputs: tuple[Tensor, ...], plan: AttentionPlan) -> Tensor:
    """Join all heads, take a group's, put its tokens in order one row at a time, and back."""
    q, k, v, k2, v2 = inputs
    dtype = v.dtype
    k, v = torch.cat([k2, k], dim=2), torch.cat([v2, v], dim=2)
    per_kv = q.shape[1] // k.shape[1]

    def ordered(x: Tensor, order_BT: Tensor, start: int) -> Tensor:
        rows = [
            torch.cat([x[b, :, :start], x[b, :, start:][:, order]], dim=1)
            for b, order in enumerate(order_BT)
        ]
        return torch.stack(rows)

    read = []
    for heads, call in zip(masks.split_heads(plan.rule, k.shape[1]), plan.update, strict=True):
        group = [q[:, heads.start * per_kv : heads.stop * per_kv], k[:, heads], v[:, heads]]
        if call.order_BT is not None:
            starts = (0, SLOTS, SLOTS)
            group = [ordered(x, call.order_BT, n) for x, n in zip(group, starts, strict=True)]
        group = [x.to(plan.precision or dtype) for x in group]
        out = F.scaled_dot_product_attention(*group, attn_mask=call.mask, enable_gqa=per_kv > 1)
        out = out.to(dtype)
        read.append(out if call.inverse_BT is None else ordered(out, call.inverse_BT, 0))
    return torch.cat(read, dim=1)


def result_and_gradients(
    update: Update, inputs: tuple[Tensor, ...], plan: AttentionPlan
) -> list[Tensor]:
    out = update(inputs, plan)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)],
    ids=["fp32", "bf16", "fp32 inside bf16"],
)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("rule", masks.RULES)
def test_handing_over_summaries_apart_changes_no_bit_of_results_and_gradients(
    rule: str, kv_heads: int, dtype: torch.dtype, precision: torch.dtype | None
) -> None:
    inputs, plan = drawn(4, kv_heads, dtype), plan_of(rule, dtype, precision)
    expected = result_and_gradients(step_by_step, inputs, plan)
    for update in (apart, joined_before):
        for one, other in zip(result_and_gradients(update, inputs, plan), expected, strict=True):
            assert one.dtype == other.dtype == dtype
            assert torch.equal(one, other)


def random_orders(count: int) -> attention._Groups:
    """Two heads in another order, one in time."""
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(count, generator=generator) for _ in range(2)])
    calls = (CallPlan(None, order, torch.argsort(order, dim=1)), CallPlan(None))
    return attention._Groups((slice(0, 2), slice(2, 3)), calls)


def test_gradients_go_back_to_the_tokens_and_summaries_that_were_stored() -> None:
    generator = torch.Generator().manual_seed(0)
    lead, x = (
        torch.randn(2, 3, n, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (2, 7)
    )
    groups = random_orders(7)
    store = attention._Store.apply
    assert torch.autograd.gradcheck(lambda a, b: store(a, b, groups, a.dtype), (lead, x))
    stored = store(None, x, groups, x.dtype)
    assert torch.equal(attention._Restore.apply(groups, x.dtype, *stored), x)
    parts = [part.detach().requires_grad_() for part in stored]
    restore = attention._Restore.apply
    assert torch.autograd.gradcheck(lambda *read: restore(groups, x.dtype, *read), parts)


def test_storing_keeps_the_orders_alone_and_copies_each_head_once() -> None:
    groups = random_orders(7)
    lead, x = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (2, 7))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda found: found):
        stored = attention._Store.apply(lead, x, groups, x.dtype)
        attention._Restore.apply(groups, x.dtype, *(part[:, :, 2:] for part in stored))
    assert {tensor.data_ptr() for tensor in kept} == {
        groups.calls[0].order_BT.data_ptr(),
        groups.calls[0].inverse_BT.data_ptr(),
    }
    assert sum(part.numel() for part in stored) == lead.numel() + x.numel()
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in stored)


@pytest.mark.parametrize("rule", masks.RULES)
def test_heads_of_a_token_come_out_side_by_side_without_a_copy(rule: str) -> None:
    q, *rest = drawn(4, 4, torch.float32)
    # As a projection leaves them.
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    read = apart((q, *rest), plan_of(rule, torch.float32, None))
    assert read.transpose(1, 2).is_contiguous()
