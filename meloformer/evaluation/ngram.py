"""An interpolated n-gram model: the baseline that a neural model has to beat on the same tokens."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from meloformer.errors import ConfigError


class InterpolatedNgram:
    """Witten-Bell interpolation of all orders down to the uniform distribution.

    Args:
        order: n; the context holds n - 1 tokens.
        vocab_size: V of the uniform distribution at the bottom.

    Source: Witten and Bell 1991; Chen and Goodman 1999, section 2.4.

    >>> model = InterpolatedNgram(2, vocab_size=4)
    >>> model.fit([[0, 1, 0, 1]])
    >>> model.probability([0], 1) > model.probability([0], 2) > 0
    True
    >>> round(sum(model.probability([0], token) for token in range(4)), 12)
    1.0
    """

    def __init__(self, order: int, vocab_size: int) -> None:
        if order < 1:
            raise ConfigError(f"n-gram order {order}: allowed are 1 and above")
        self.order = order
        self.vocab_size = vocab_size
        # Of each context: how often every token followed it.
        self._followers: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
        self._totals: dict[tuple[int, ...], int] = defaultdict(int)

    def fit(self, sequences: Iterable[Sequence[int] | np.ndarray]) -> None:
        """Count; the first token of a sequence is given, as in the neural model."""
        for sequence in sequences:
            tokens = [int(token) for token in sequence]
            for position in range(1, len(tokens)):
                for length in range(min(self.order - 1, position) + 1):
                    context = tuple(tokens[position - length : position])
                    followers = self._followers[context]
                    followers[tokens[position]] = followers.get(tokens[position], 0) + 1
                    self._totals[context] += 1

    def probability(self, context: Sequence[int], token: int) -> float:
        """P(token | context), over the last n - 1 tokens of the context."""
        result = 1.0 / self.vocab_size
        for length in range(min(self.order - 1, len(context)) + 1):
            key = tuple(context[len(context) - length :])
            total = self._totals.get(key, 0)
            if not total:
                break
            followers = self._followers[key]
            result = (followers.get(token, 0) + len(followers) * result) / (total + len(followers))
        return result

    def nats_per_token(self, sequences: Iterable[Sequence[int] | np.ndarray]) -> float:
        """Mean negative log likelihood of all tokens but each sequence's first."""
        nats, num_targets = 0.0, 0
        for sequence in sequences:
            tokens = [int(token) for token in sequence]
            for position in range(1, len(tokens)):
                context = tokens[max(0, position - self.order + 1) : position]
                nats -= math.log(self.probability(context, tokens[position]))
                num_targets += 1
        if not num_targets:
            raise ConfigError("no token to predict: the sequences hold one token each, or none")
        return nats / num_targets
