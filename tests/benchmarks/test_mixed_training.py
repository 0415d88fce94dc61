"""A learner steps as training does, and in bf16 loses nothing that is smaller than bf16 shows."""

import copy

import pytest
import torch
from torch import nn

from meloformer.benchmarks.mixed_training import Learner

CPU = torch.device("cpu")


def a_learner(dtype: torch.dtype = torch.float32) -> Learner:
    torch.manual_seed(0)
    return Learner(nn.Linear(4, 3), CPU, dtype)


def give(learner: Learner, norm: float) -> None:
    """Gradients of a norm, all alike but for their signs."""
    weights = list(learner.model.parameters())
    size = norm / sum(weight.numel() for weight in weights) ** 0.5
    for weight in weights:
        weight.grad = torch.full_like(weight, size)
        weight.grad.view(-1)[::2] *= -1


def values(module: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().float().flatten() for weight in module.parameters()])


def test_gradients_are_clipped_to_a_norm_of_one() -> None:
    """Adam forgets the size of the first gradient with the first step, not with the second."""
    wild, tame, small = a_learner(), a_learner(), a_learner()
    for learner, norms in ((wild, (50, 0.5)), (tame, (1, 0.5)), (small, (0.1, 0.5))):
        for norm in norms:
            give(learner, norm)
            learner.step(1e-2)
    torch.testing.assert_close(values(wild.model), values(tame.model), rtol=1e-5, atol=1e-6)
    assert (values(small.model) - values(tame.model)).abs().max() > 5e-4


def test_a_step_moves_weights_by_its_own_rate() -> None:
    learner = a_learner()
    before = values(learner.model)
    give(learner, 0.5)
    learner.step(0.0)
    assert torch.equal(values(learner.model), before)
    give(learner, 0.5)
    learner.step(1e-2)
    assert (values(learner.model) - before).abs().max() == pytest.approx(1e-2, rel=0.2)


def test_in_fp32_there_is_one_set_of_weights_and_in_bf16_two() -> None:
    assert (one := a_learner()).model is one.master
    two = a_learner(torch.bfloat16)
    assert {weight.dtype for weight in two.model.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in two.master.parameters()} == {torch.float32}


def test_steps_that_bf16_cannot_show_add_up_in_the_copies() -> None:
    learner = a_learner(torch.bfloat16)
    with torch.no_grad():
        for weight in (*learner.master.parameters(), *learner.model.parameters()):
            weight.fill_(1.0)
    before = copy.deepcopy(learner.model)
    give(learner, 0.5)
    learner.step(1e-4)
    assert torch.equal(values(learner.model), values(before)), "too little to show"
    for _ in range(60):
        give(learner, 0.5)
        learner.step(1e-4)
    assert (values(learner.model) != values(before)).all()
    assert torch.equal(values(learner.model), values(learner.master).bfloat16().float())
    assert all(
        weight.grad is None
        for module in (learner.model, learner.master)
        for weight in module.parameters()
    )


def test_gradients_that_are_dropped_move_nothing_later() -> None:
    dropped, never = a_learner(), a_learner()
    give(dropped, 1.0)
    dropped.drop_gradients()
    assert all(weight.grad is None for weight in dropped.model.parameters())
    for learner in (dropped, never):
        give(learner, 0.5)
        learner.step(1e-2)
    assert torch.equal(values(dropped.model), values(never.model))
