import torch
import torch.nn.functional as F

from meloformer.batches.batch import IGNORE_INDEX
from meloformer.training.loss import step_loss, token_nats

V = 13


def ragged(seed: int, rows: int = 3, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, V, generator=generator)
    targets = torch.randint(V, (rows, length), generator=generator)
    for row in range(rows):
        targets[row, length - 2 * row :] = IGNORE_INDEX
    return logits, targets


def test_nats_are_minus_the_log_of_the_targets_probability_and_zero_without_a_target() -> None:
    logits, targets = ragged(0)
    nats = token_nats(logits, targets)
    for row in range(3):
        for t in range(7):
            if targets[row, t] == IGNORE_INDEX:
                assert nats[row, t] == 0
            else:
                probability = logits[row, t].exp()[targets[row, t]] / logits[row, t].exp().sum()
                assert torch.isclose(nats[row, t], -probability.log(), atol=1e-5)


def test_nats_of_bf16_logits_are_taken_in_float32() -> None:
    logits, targets = ragged(1)
    nats = token_nats(logits.bfloat16(), targets)
    assert nats.dtype == torch.float32
    assert torch.equal(nats, token_nats(logits.bfloat16().float(), targets))


def test_the_mean_over_ranks_of_summed_shares_is_the_mean_over_all_targets() -> None:
    batches = [[ragged(seed) for seed in (1, 2)], [ragged(3), ragged(4, rows=1)]]
    every = [batch for rank in batches for batch in rank]
    num_targets = sum(int((targets != IGNORE_INDEX).sum()) for _, targets in every)
    ranks = [sum(step_loss(*batch, num_targets, 2) for batch in rank) for rank in batches]
    logits = torch.cat([logits.flatten(0, 1) for logits, _ in every])
    targets = torch.cat([targets.flatten() for _, targets in every])
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
    assert torch.isclose(torch.stack(ranks).mean(), expected)


def test_rows_without_targets_weigh_nothing_and_stay_in_the_graph() -> None:
    logits, targets = ragged(5)
    logits.requires_grad_()
    loss = step_loss(logits, torch.full_like(targets, IGNORE_INDEX), 100, 4)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))
