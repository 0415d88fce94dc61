"""The baseline is a probability distribution, and learns."""

import numpy as np
import pytest

from meloformer.errors import ConfigError
from meloformer.evaluation.ngram import InterpolatedNgram


def test_probabilities_of_every_context_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    model = InterpolatedNgram(4, vocab_size=9)
    model.fit(rng.integers(0, 9, (20, 30)).tolist())
    for context in ([], [1], [1, 2], [1, 2, 3], [8, 8, 8], [4, 5, 6, 7]):
        assert sum(model.probability(context, token) for token in range(9)) == pytest.approx(1)


def test_unigrams_reach_the_entropy_of_independent_tokens() -> None:
    rng = np.random.default_rng(1)
    weights = np.array([0.7, 0.2, 0.1])
    entropy = -(weights * np.log(weights)).sum()
    train, valid = rng.choice(3, (2, 20_000), p=weights)
    model = InterpolatedNgram(1, vocab_size=3)
    model.fit([train])
    assert model.nats_per_token([valid]) == pytest.approx(entropy, rel=0.02)


def test_a_longer_context_pays_where_tokens_depend_on_it() -> None:
    cycle = [0, 1, 2, 1] * 500
    short, long = InterpolatedNgram(2, vocab_size=3), InterpolatedNgram(3, vocab_size=3)
    for model in (short, long):
        model.fit([cycle])
    assert long.nats_per_token([cycle]) < 0.05 < short.nats_per_token([cycle])


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(ConfigError, match="no token to predict"):
        InterpolatedNgram(2, vocab_size=3).nats_per_token([[1]])
