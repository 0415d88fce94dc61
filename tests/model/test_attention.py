"""The order in which a head group's tokens are stored."""

import torch

from meloformer.model import attention


def test_gradients_of_another_order_go_back_to_their_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    order = torch.stack([torch.randperm(7, generator=generator) for _ in range(2)])
    inverse = torch.argsort(order, dim=1)
    stored = attention._Reorder.apply(x, order, inverse)
    assert torch.equal(attention._Reorder.apply(stored, inverse, order), x)
    assert torch.autograd.gradcheck(attention._Reorder.apply, (x, order, inverse))
