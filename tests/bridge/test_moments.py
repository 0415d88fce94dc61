import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.bridge.moments import LEAST_STD, Moments


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 99))
def test_moments_of_parts_are_those_of_the_whole(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Far from zero, where the difference of two large sums of squares would have no digit left.
    whole = rng.normal(1e6, 1e-2, (sum(sizes), 3)) * [1.0, -1.0, 1e-3]
    found = Moments.joined(Moments.of(x) for x in np.split(whole, np.cumsum(sizes)[:-1]))
    assert found.count == len(whole)
    np.testing.assert_allclose(found.mean_D, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, np.maximum(whole.std(0), LEAST_STD), rtol=1e-6)


def test_a_dimension_that_never_changes_can_be_divided_by() -> None:
    assert Moments.of(np.full((5, 2), 7.0)).std.tolist() == [LEAST_STD, LEAST_STD]


def test_moments_come_back_from_json_with_every_bit() -> None:
    written = Moments.of(np.random.default_rng(0).normal(size=(9, 4)))
    read = Moments.from_json(json.loads(json.dumps(written.to_json())))
    assert read.count == written.count
    assert (read.mean_D == written.mean_D).all() and (read.squares_D == written.squares_D).all()


def test_vectors_without_moments_are_a_fault_of_the_caller() -> None:
    with pytest.raises(TypeError):
        Moments.joined([])
