"""Teacher-forced scores with injected summaries, and the search for the right piece."""

import numpy as np
import pytest
import torch

from meloformer.evaluation.control_likelihood import (
    bare_bars,
    injection_of,
    likelihood_differences,
    nats_per_note,
    retrieve,
    true_summaries,
)
from meloformer.evaluation.likelihood import nats_per_token
from meloformer.model.injection import Injection
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.attributes import Attributes, read_prefix
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import KIND_OF, Kind
from tests.layouts import tiny_config


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=4)).eval()
    # Untrained streams hardly differ: make what is injected matter.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def windows(chorale_shards) -> list[np.ndarray]:
    index = ShardFolder.open(chorale_shards).split("valid")
    return [bare_bars(index.read(piece), 3 + piece) for piece in range(3)]


def test_bare_bars_decode_alone_and_say_nothing(chorale_shards) -> None:
    ids = ShardFolder.open(chorale_shards).split("valid").read(0)
    for max_bars in (1, 4, 10_000):
        bare = bare_bars(ids, max_bars)
        assert read_prefix(bare) == Attributes()
        assert decode(bare).num_bars == min(max_bars, decode(ids).num_bars)


def test_without_summaries_a_window_scores_as_it_does_elsewhere(model, windows) -> None:
    for window, found in zip(windows, nats_per_note(model, windows, None), strict=True):
        num_notes = (KIND_OF[window] == Kind.PITCH).sum()
        expected = nats_per_token(model, [window]) * (len(window) - 1) / num_notes
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_score_with_summaries_does_not_depend_on_the_windows_beside_it(model, windows) -> None:
    own = true_summaries(model, windows)
    together = nats_per_note(model, windows, own)
    for number, window in enumerate(windows):
        alone = nats_per_note(model, [window], [own[number]])
        assert alone[0] == pytest.approx(together[number], rel=1e-5)
    assert not np.allclose(together, nats_per_note(model, windows, None), rtol=1e-4)
    another = nats_per_note(model, windows, [*own[1:], own[0]])
    assert not np.allclose(together, another, rtol=1e-4)


def test_the_strategy_of_the_injection_is_the_one_asked_for(model, windows) -> None:
    own = true_summaries(model, windows)
    another = [*own[1:], own[0]]

    def scored(**how) -> np.ndarray:
        def inject(summaries_BSD: torch.Tensor, mask_BS: torch.Tensor) -> Injection:
            return Injection(summaries_BSD=summaries_BSD, mask_BS=mask_BS, **how)

        return nats_per_note(model, windows, another, inject)

    replaced, whole, half = scored(strategy="replace"), scored(alpha=1.0), scored(alpha=0.5)
    assert replaced == pytest.approx(whole, rel=1e-6)
    assert not np.allclose(replaced, half, rtol=1e-4)


def test_a_shorter_piece_is_laid_again_from_its_start_and_padding_gets_nothing() -> None:
    summaries = torch.arange(2.0)[:, None] + 1
    has_bar = torch.tensor([[True] * 5 + [False] * 3])
    injection = injection_of([summaries], has_bar)
    assert injection.summaries_BSD[0, :, 0].tolist() == [1, 2, 1, 2, 1, 0, 0, 0]
    assert torch.equal(injection.mask_BS, has_bar)


def test_texts_that_say_their_piece_find_it_and_texts_that_say_nothing_do_not() -> None:
    true = torch.randn(230, 16, generator=torch.Generator().manual_seed(0))
    perfect = retrieve(true * 7, true, group_size=100, seed=0)
    assert perfect.group_size == 100 and perfect.first.n == 200
    assert perfect.first.mean == 1 and perfect.mean_rank.mean == 1
    blind = retrieve(torch.ones_like(true), true, group_size=100, seed=0)
    assert blind.first.high < 0.05 and 40 < blind.mean_rank.mean < 61
    same = retrieve(torch.ones_like(true), torch.ones_like(true), group_size=100, seed=0)
    assert same.mean_rank.mean == 100, "what is the same for all finds none"
    few = retrieve(true[:30], true[:30], group_size=100, seed=0)
    assert few.group_size == 30 and few.first.n == 30


def test_differences_are_taken_piece_by_piece() -> None:
    none = np.array([1.0, 5.0, np.nan])
    found = likelihood_differences({"none": none, "own": none - 0.25, "another": none + 1}, seed=0)
    assert found["own"].mean == -0.25 and found["own"].high < 0 and found["own"].n == 2
    assert set(found) == {"own", "another"}
