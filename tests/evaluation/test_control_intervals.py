"""Intervals that hold what they promise, and pairs in which nobody meets himself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.errors import ConfigError
from meloformer.evaluation.control_intervals import (
    Interval,
    derangement,
    difference,
    groups_of,
    interval,
)


def test_nineteen_in_twenty_intervals_hold_the_true_share() -> None:
    random = np.random.default_rng(0)
    found = [
        interval((random.random(100) < 0.3).astype(float), seed=trial, num_resamples=400)
        for trial in range(300)
    ]
    held = np.mean([one.low <= 0.3 <= one.high for one in found])
    assert 0.9 <= held <= 0.98


def test_more_pieces_narrow_the_interval_and_the_seed_repeats_it() -> None:
    few, many = (interval(np.tile([0.0, 1.0], count)) for count in (10, 160))
    assert many.n == 320 and many.mean == few.mean == 0.5
    assert (many.high - many.low) * 3 < few.high - few.low
    assert interval(np.arange(9) / 9, seed=3) == interval(np.arange(9) / 9, seed=3)


def test_pieces_that_do_not_count_change_nothing_and_none_is_said_to_be_none() -> None:
    values = np.array([1.0, 0.0, 1.0, 1.0])
    assert interval(np.append(values, [np.nan] * 5)) == interval(values)
    nothing = interval(np.full(3, np.nan))
    assert nothing.n == 0 and np.isnan(nothing.mean)
    assert nothing.touches(interval(values))


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_certain(end: float) -> None:
    few, many = interval(np.full(10, end)), interval(np.full(1000, end))
    assert 0.25 < few.high - few.low < 0.35, "Clopper-Pearson of 10 of 10: 69.2 to 100 %"
    assert 0 < many.high - many.low < 0.01
    assert few.mean == end and end in (few.low, few.high)


def test_paired_differences_see_what_separate_intervals_cannot() -> None:
    random = np.random.default_rng(1)
    others = random.normal(0, 10, 200)
    values = others + random.normal(0.5, 1, 200)
    assert interval(values, is_share=False).touches(interval(others, is_share=False))
    apart = difference(values, others)
    assert apart.low > 0 and apart.n == 200


def test_intervals_touch_where_they_share_a_point() -> None:
    low, middle, high = (
        Interval(mean=m, low=m - 0.1, high=m + 0.1, n=5) for m in (0.25, 0.4, 0.75)
    )
    assert low.touches(middle) and middle.touches(low)
    assert not low.touches(high) and not high.touches(middle)


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_in_a_derangement_everybody_comes_once_and_nobody_stays(num_pieces: int, seed: int) -> None:
    order = derangement(num_pieces, seed)
    assert sorted(order) == list(range(num_pieces))
    assert all(other != place for place, other in enumerate(order))
    assert order == derangement(num_pieces, seed)


def test_one_piece_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 and more"):
        derangement(1, 0)


@given(st.integers(1, 300), st.integers(1, 120))
def test_groups_share_no_piece_and_have_one_size(num_pieces: int, size: int) -> None:
    groups = groups_of(num_pieces, size, seed=1)
    members = [piece for group in groups for piece in group]
    assert len(set(members)) == len(members)
    assert {len(group) for group in groups} == {min(size, num_pieces)}
    assert num_pieces - len(members) < min(size, num_pieces)
