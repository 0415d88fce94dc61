"""The frozen base's own loss: the right mean, and a gradient that reaches summaries alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from meloformer.batches.collate import collate_rows
from meloformer.bridge.summarising import bare_window, count_bars, row_length
from meloformer.bridge.targets import TargetWindow
from meloformer.bridge_training.token_loss import Inject, TokenLoss, WindowTokens
from meloformer.errors import ConfigError
from meloformer.model.attention import build_plan
from meloformer.model.injection import Injection
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from tests.bridge.bases import random_base

# Windows of several lengths, short enough for a test.
BARS = (2, 3, 5)


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    return random_base(open_summary_rate=0.3)


@pytest.fixture(scope="module")
def windows(chorale_shards: Path) -> list[TargetWindow]:
    index = ShardFolder.open(chorale_shards).split("train")
    return [TargetWindow(index.key(i), i, i + bars, "") for i, bars in enumerate(BARS)]


@pytest.fixture(scope="module")
def tokens(chorale_shards: Path, windows: list[TargetWindow]) -> list[np.ndarray]:
    folder = ShardFolder.open(chorale_shards)
    reader = WindowTokens(chorale_shards, folder.manifest_sha256, "train")
    return [reader.read(window) for window in windows]


def predicted(model: MuseFormer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(BARS), max(BARS), model.config.width, generator=generator)


def entering(alpha: float) -> Inject:
    return lambda summaries, mask: Injection(summaries_BSD=summaries, mask_BS=mask, alpha=alpha)


def loss_of(model: MuseFormer) -> TokenLoss:
    width = model.config.width
    return TokenLoss(model, torch.linspace(-1, 1, width), torch.linspace(0.5, 2, width))


def nats_alone(model: MuseFormer, ids: np.ndarray, summaries_SD: torch.Tensor) -> list[float]:
    """Nats of each token of a window after the first, from the logits, one by one."""
    length = row_length(len(ids), count_bars(ids))
    batch = collate_rows([[ids]], length, open_seeds=[0])
    assert batch.layout.open_BS is not None
    slots = torch.zeros(1, batch.layout.open_BS.shape[1], summaries_SD.shape[1])
    slots[0, : len(summaries_SD)] = summaries_SD
    injection = entering(0.7)(slots, batch.layout.open_BS >= 0)
    plan = build_plan(batch.layout, rule_of(model.config.rule), "dense", None)
    with torch.no_grad():
        chances = model(batch.ids_BT, batch.layout, plan, injection)[0].log_softmax(-1)
    return [-float(chances[place, int(ids[place + 1])]) for place in range(len(ids) - 1)]


def test_tokens_are_those_of_the_window_without_its_attributes(
    chorale_shards: Path, windows: list[TargetWindow], tokens: list[np.ndarray]
) -> None:
    index = ShardFolder.open(chorale_shards).split("train")
    for piece, (window, ids) in enumerate(zip(windows, tokens, strict=True)):
        span = (window.first_bar, window.last_bar)
        assert np.array_equal(ids, bare_window(index.read(piece), index.bar_starts(piece), *span))
        assert count_bars(ids) == window.bars


def test_it_is_the_mean_nats_per_token_over_all_windows_with_the_answers_injected(
    model: MuseFormer, tokens: list[np.ndarray]
) -> None:
    loss = loss_of(model)
    summaries = predicted(model)
    in_scale = summaries * torch.linspace(0.5, 2, summaries.shape[-1]) + torch.linspace(
        -1, 1, summaries.shape[-1]
    )
    nats = [nats_alone(model, ids, in_scale[row, : BARS[row]]) for row, ids in enumerate(tokens)]
    wanted = sum(map(sum, nats)) / sum(map(len, nats))
    assert float(loss(summaries, tokens, 1, entering(0.7))[1]) == pytest.approx(wanted, rel=1e-4)


def test_rows_of_one_shape_for_a_kernel_that_is_compiled_by_shape_cost_the_same(
    model: MuseFormer, tokens: list[np.ndarray]
) -> None:
    """The second batch has fewer rows than the first, and is filled up."""
    width = model.config.width
    loss = TokenLoss(model, torch.zeros(width), torch.ones(width), one_shape=True)
    plain = TokenLoss(model, torch.zeros(width), torch.ones(width))
    summaries = predicted(model)
    all_rows, one_row = slice(0, 3), slice(1, 2)
    for rows, given in ((all_rows, summaries), (one_row, summaries[one_row]), (one_row, None)):
        found, num_targets = loss.nats(given, tokens[rows], entering(0.7))
        wanted, known = plain.nats(given, tokens[rows], entering(0.7))
        assert num_targets == known == sum(len(ids) - 1 for ids in tokens[rows])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def test_how_summaries_enter_is_the_callers_to_say(
    model: MuseFormer, tokens: list[np.ndarray]
) -> None:
    loss, summaries = loss_of(model), predicted(model)
    found = [float(loss.nats(summaries, tokens, entering(alpha))[0]) for alpha in (0.7, 0.1)]
    assert found[0] != found[1]
    assert float(loss.nats(None, tokens, entering(0.7))[0]) not in found


def test_its_gradient_reaches_the_summaries_of_real_bars_and_no_weight_of_the_base(
    model: MuseFormer, tokens: list[np.ndarray]
) -> None:
    summaries = predicted(model).requires_grad_()
    share, _ = loss_of(model)(summaries, tokens, 1, entering(0.7))
    share.backward()
    assert summaries.grad is not None
    for row, bars in enumerate(BARS):
        assert (summaries.grad[row, :bars].abs().amax(-1) > 0).all()
        assert not summaries.grad[row, bars:].any()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_shards_that_the_targets_are_not_of_are_refused(chorale_shards: Path) -> None:
    with pytest.raises(ConfigError, match="give the shards that they were extracted from"):
        WindowTokens(chorale_shards, "0" * 64, "train")
