import numpy as np
import pytest

from meloformer.batches.attributes import ALL_ATTRIBUTES, NO_ATTRIBUTES, AttributeDropout
from meloformer.errors import ConfigError


def draw(dropout, count):
    random = np.random.default_rng(0)
    return np.array([dropout.keep(random) for _ in range(count)])


def test_all_and_none_leave_nothing_to_chance():
    assert draw(ALL_ATTRIBUTES, 50).all()
    assert not draw(NO_ATTRIBUTES, 50).any()


def test_shares_of_all_none_and_each_are_as_set():
    kept = draw(AttributeDropout(keep_all=0.3, drop_all=0.2, drop_each=0.25), 20_000)
    others = 0.5
    assert kept.all(axis=1).mean() == pytest.approx(0.3 + others * 0.75**6, abs=0.02)
    assert (~kept).all(axis=1).mean() == pytest.approx(0.2 + others * 0.25**6, abs=0.02)
    assert kept.mean(axis=0) == pytest.approx(np.full(6, 0.3 + others * 0.75), abs=0.02)


@pytest.mark.parametrize("wrong", [{"keep_all": 1.2}, {"drop_each": -1}, {"keep_all": 0.95}])
def test_impossible_probabilities_are_refused(wrong):
    with pytest.raises(ConfigError, match="allowed"):
        AttributeDropout(**wrong)
