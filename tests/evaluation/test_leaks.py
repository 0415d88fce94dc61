import numpy as np
import pytest
import torch

from meloformer.evaluation.leaks import (
    LeakCount,
    dense_score,
    look_for_neighbours,
    look_for_the_future,
)
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.windows import cut_window
from tests.layouts import tiny_config

LOOKS = (look_for_the_future, look_for_neighbours)


@pytest.fixture(scope="module")
def windows(chorale_shards) -> list[np.ndarray]:
    """Two bars from the middle of a piece, and two from the beginning of one."""
    index = ShardFolder.open(chorale_shards).split("valid")
    return [cut_window(index.read(0), 2, 4), cut_window(index.read(1), 0, 2)]


def a_model(**changes) -> MuseFormer:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=2, width=32, ffn_width=64, **changes))
    # Weights far from zero: attention that is nearly uniform would hide small leaks.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.double().eval()


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    return a_model()


def total(counts) -> LeakCount:
    return sum(counts, LeakCount())


@pytest.mark.parametrize("look", LOOKS)
def test_a_sound_mask_moves_no_logit_and_every_change_is_felt(look, model, windows) -> None:
    found = total(look(dense_score(model), windows, np.random.default_rng(0)))
    assert found.largest < 1e-12
    assert found.num_felt == found.num_changes >= 10
    assert found.num_positions > 500


@pytest.mark.parametrize("look", LOOKS)
def test_a_mask_that_shows_the_whole_row_is_found_out(look, model, windows) -> None:
    score = dense_score(model, shows_all=True)
    assert total(look(score, windows, np.random.default_rng(0))).largest > 1e-3


def test_a_model_without_summaries_is_looked_at_alike(windows) -> None:
    score = dense_score(a_model(rule="full", summaries=False))
    found = total(look_for_neighbours(score, windows, np.random.default_rng(0)))
    assert found.largest < 1e-12 and found.num_felt == found.num_changes > 0


def test_logits_that_are_no_numbers_count_as_the_largest_move(windows) -> None:
    def broken(rows):
        return [torch.full((sum(map(len, row)), 5), torch.nan) for row in rows]

    found = total(look_for_the_future(broken, windows, np.random.default_rng(0)))
    assert found.largest == float("inf")


def test_a_model_that_feels_nothing_is_told_from_one_that_leaks_nothing(windows) -> None:
    def blind(rows):
        return [torch.zeros(sum(map(len, row)), 5) for row in rows]

    for look in LOOKS:
        found = total(look(blind, windows, np.random.default_rng(0)))
        assert (found.largest, found.num_felt) == (0.0, 0) and found.num_changes > 0
