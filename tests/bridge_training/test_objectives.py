"""The contrastive term against arithmetic, and what must not count in it."""

import math

import pytest
import torch

from meloformer.bridge.bridges import BridgeBatch
from meloformer.bridge.qformer import QFormer
from meloformer.bridge_training.objectives import (
    ContrastiveConfig,
    QFormerObjective,
    contrastive,
    pooled,
)
from meloformer.errors import ConfigError
from tests.bridge.test_qformer import SMALL, batch_of, text_states


def test_the_contrastive_term_is_the_cross_entropy_of_cosines() -> None:
    predicted, summaries = torch.randn(4, 6), torch.randn(4, 6)
    term, _ = contrastive(predicted, summaries, torch.arange(4), 0.5)
    cosines = [[float(p @ s / (p.norm() * s.norm())) / 0.5 for s in summaries] for p in predicted]
    forward = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(cosines)]
    columns = list(zip(*cosines, strict=True))
    back = [math.log(sum(map(math.exp, column))) - column[i] for i, column in enumerate(columns)]
    assert float(term) == pytest.approx((sum(forward) + sum(back)) / 8, abs=1e-5)


def test_answers_that_are_all_alike_cost_as_much_as_a_guess() -> None:
    term, found = contrastive(torch.ones(8, 6), torch.randn(8, 6), torch.arange(8), 0.07)
    assert float(term) >= math.log(8) / 2
    assert float(found) == 1 / 8


def test_windows_of_one_piece_are_no_negatives_of_one_another() -> None:
    rows = torch.randn(3, 6)
    same = torch.cat([rows, rows[:1]])
    pieces = torch.tensor([5, 6, 7, 5])
    together, _ = contrastive(same, same, pieces, 0.1)
    alone, _ = contrastive(rows, rows, pieces[:3], 0.1)
    apart, _ = contrastive(same, same, torch.arange(4), 0.1)
    assert float(together) < float(apart)
    # Every row sees the other pieces only, as without its copy, or one row more of the own piece.
    assert float(together) == pytest.approx(float(alone), rel=0.5)
    assert torch.isfinite(together)


def test_garbage_in_padded_bars_changes_no_pooled_vector() -> None:
    summaries, mask = torch.randn(2, 4, 3), torch.tensor([[True] * 4, [True, True, False, False]])
    spoiled = summaries.masked_fill(~mask[..., None], float("nan"))
    assert torch.equal(pooled(spoiled, mask), pooled(summaries, mask))
    torch.testing.assert_close(pooled(summaries, mask)[1], summaries[1, :2].mean(0))


def test_the_term_adds_its_gradient_in_training_only() -> None:
    torch.manual_seed(0)
    model = QFormer(SMALL)
    batch = batch_of([5, 7, 3], text_states([4, 3, 6]))
    plain = QFormerObjective(model, ContrastiveConfig(contrastive_weight=0.0))
    both = QFormerObjective(model, ContrastiveConfig(contrastive_weight=0.5))
    loss, metrics = both(batch)
    alone, _ = plain(batch)
    torch.testing.assert_close(loss, alone + 0.5 * metrics["contrastive"])
    assert torch.equal(both.eval()(batch)[0], plain.eval()(batch)[0])


def test_the_term_parts_answers_that_regression_leaves_alike() -> None:
    """Two texts, and targets whose mean is the best answer where the text is not heard yet."""
    torch.manual_seed(0)
    model = QFormer(SMALL)
    batch = batch_of([4, 4], text_states([4, 4]))
    gradients = []
    for weight in (0.0, 1.0):
        objective = QFormerObjective(model, ContrastiveConfig(contrastive_weight=weight))
        model.zero_grad()
        objective(batch)[0].backward()
        gradients.append(model.text_projection.weight.grad.norm())  # type: ignore[union-attr]
    assert gradients[1] > gradients[0]


def test_a_batch_that_names_no_pieces_takes_all_rows_for_different_ones() -> None:
    batch = batch_of([4, 4], text_states([4, 4]))
    named = BridgeBatch(
        states=batch.states,
        summaries_BSD=batch.summaries_BSD,
        mask_BS=batch.mask_BS,
        row_seeds=batch.row_seeds,
        pieces=[8, 9],
    )
    torch.manual_seed(0)
    objective = QFormerObjective(QFormer(SMALL), ContrastiveConfig())
    assert torch.equal(objective(batch)[0], objective(named)[0])


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"contrastive_weight": -1.0}])
def test_a_term_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        ContrastiveConfig(**wrong)
