"""Plans of attention calls, and the refusals around the kernel."""

import torch

from meloformer.model import attention
from meloformer.model.masks import RULES
from tests.layouts import as_torch, random_layout


def random_heads(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_causal_plan_reads_every_earlier_token_and_no_later_one() -> None:
    q, k, v = random_heads(2, 4, 40, 16), random_heads(2, 2, 40, 16), random_heads(2, 2, 40, 16)
    plan = attention.causal_plan().for_dtype(torch.float32)
    assert plan.summarize is None
    causal = torch.ones(40, 40, dtype=torch.bool).tril()
    scores = q @ k.repeat_interleave(2, dim=1).mT / 4
    expected = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ v.repeat_interleave(2, dim=1)
    assert torch.allclose(attention.update(q, k, v, plan), expected, atol=1e-5)


def test_a_layout_without_summaries_has_no_summarize_and_tokens_alone_as_keys() -> None:
    layout = as_torch(random_layout(seed=1, length=200)).without_summaries()
    plan = attention.build_plan(layout, RULES["full"])
    assert plan.summarize is None
    mask = plan.update[0].mask
    assert mask.shape == (2, 1, 200, 200)
    expected = (layout.piece_BT[:, :, None] == layout.piece_BT[:, None, :]).tril()
    expected &= (layout.piece_BT >= 0)[:, :, None] | torch.eye(200, dtype=torch.bool)
    assert torch.equal(mask[:, 0], expected)
