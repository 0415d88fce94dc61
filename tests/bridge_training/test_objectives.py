"""The contrastive term against arithmetic, and what must not count in it."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from meloformer.bridge.bridges import BridgeBatch
from meloformer.bridge.qformer import QFormer
from meloformer.bridge_training.objectives import (
    ContrastiveConfig,
    QFormerObjective,
    TokenTerm,
    contrastive,
    pooled,
)
from meloformer.bridge_training.token_loss import TokenLoss
from meloformer.errors import ConfigError
from meloformer.model.injection import Injection
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.windows import cut_window
from tests.bridge.bases import random_base
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


def base_loss() -> TokenLoss:
    """Of a base of random weights."""
    width = SMALL.summary_width
    base = random_base(width=width, ffn_width=32)
    return TokenLoss(base, torch.zeros(width), torch.ones(width))


@pytest.fixture(scope="module")
def windows(chorale_shards: Path) -> BridgeBatch:
    """Three windows of real bars, with their tokens."""
    index = ShardFolder.open(chorale_shards).split("train")
    bars = (2, 3, 5)
    tokens = [
        cut_window(index.read(n), 0, last, index.bar_starts(n)) for n, last in enumerate(bars)
    ]
    batch = batch_of([*bars], text_states([4, 3, 6]))
    return replace(batch, tokens=[ids.astype(np.int64) for ids in tokens])


def test_without_a_regression_the_base_alone_says_what_is_better(windows: BridgeBatch) -> None:
    torch.manual_seed(0)
    model, term = QFormer(SMALL), TokenTerm(loss=base_loss(), weight=2.0, layer=0)
    objective = QFormerObjective(model, ContrastiveConfig(), regression_weight=0, token_term=term)
    loss, metrics = objective(windows)
    assert set(metrics) == {"nats_per_token"}
    torch.testing.assert_close(loss, 2 * metrics["nats_per_token"])
    loss.backward()
    for name, parameter in model.named_parameters():
        # What all keys have in common changes no attention.
        if not name.endswith("key.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name
    # What the targets hold has no say: at the input there are none.
    spoiled = replace(windows, summaries_BSD=windows.summaries_BSD * float("nan"))
    torch.testing.assert_close(objective(spoiled)[0], loss)


def test_where_the_answers_enter_is_what_the_base_hears(windows: BridgeBatch) -> None:
    torch.manual_seed(0)
    model, loss = QFormer(SMALL).eval(), base_loss()
    objectives = [
        QFormerObjective(model, ContrastiveConfig(), regression_weight=0, token_term=term).eval()
        for term in (TokenTerm(loss=loss, weight=1, layer=layer) for layer in (0, 1, 3))
    ]
    nats = [float(objective(windows)[0]) for objective in objectives]
    assert len({round(found, 4) for found in nats}) == 3, nats


def test_the_weight_of_the_answers_in_the_blend_is_what_the_base_hears(
    windows: BridgeBatch,
) -> None:
    torch.manual_seed(0)
    model, loss = QFormer(SMALL).eval(), base_loss()
    terms = [
        TokenTerm(loss=loss, weight=1),
        *(TokenTerm(loss=loss, weight=1, alpha=alpha) for alpha in (Injection.alpha, 0.1, 1.0)),
    ]
    nats = [
        float(
            QFormerObjective(model, ContrastiveConfig(), regression_weight=0, token_term=term)
            .eval()(windows)[0]
            .detach()
        )
        for term in terms
    ]
    assert nats[0] == nats[1] and len(set(nats)) == 3


def test_validation_says_the_regression_or_without_one_the_nats_per_token(
    windows: BridgeBatch,
) -> None:
    torch.manual_seed(0)
    model, term = QFormer(SMALL), TokenTerm(loss=base_loss(), weight=7.0)
    for weight, name, over_tokens in (
        (0.5, "regression", {"nats_per_token"}),
        (0.0, "nats_per_token", {"nats_per_token", "loss"}),
    ):
        objective = QFormerObjective(
            model, ContrastiveConfig(), regression_weight=weight, token_term=term
        ).eval()
        loss, metrics = objective(windows)
        assert torch.equal(loss, metrics[name]) and objective.over_tokens == over_tokens
        assert "nats_per_token" in metrics


def test_the_contrastive_term_stands_beside_a_regression_unless_it_is_asked_for() -> None:
    beside = ContrastiveConfig()
    assert beside.weight_beside(1.0) > 0 == beside.weight_beside(0.0)
    asked = ContrastiveConfig(contrastive_weight=0.3)
    assert asked.weight_beside(0.0) == asked.weight_beside(1.0) == 0.3
    assert ContrastiveConfig(contrastive_weight=0.0).weight_beside(1.0) == 0


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"contrastive_weight": -1.0}])
def test_a_term_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        ContrastiveConfig(**wrong)
