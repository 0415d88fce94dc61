"""Means over pieces with their 95 % intervals, and who is paired with whom."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from meloformer.errors import ConfigError

NUM_RESAMPLES = 2000
LEVEL = 0.95
# Fewer pieces that differ tell nothing apart, though all of them go one way, and the bootstrap
# does not know that. Source: the sign test, two-sided: n of n by chance are 2 * 0.5 ** n.
FEWEST_APART = math.ceil(math.log2(2 / (1 - LEVEL)))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over pieces.

    Args:
        mean: nan where there is no piece.
        low: lower end of the interval.
        high: upper end.
        n: pieces that were counted.
    """

    mean: float
    low: float
    high: float
    n: int

    def touches(self, other: "Interval") -> bool:
        """Whether two intervals share a point; one of no piece touches all."""
        if not (self.n and other.n):
            return True
        return self.low <= other.high and other.low <= self.high


def interval(
    values: np.ndarray, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES, is_share: bool = True
) -> Interval:
    """Mean and percentile bootstrap over pieces.

    Args:
        values: (P,) one per piece; nan is a piece that does not count.
        seed: of the resampling.
        num_resamples: draws with replacement.
        is_share: values lie between 0 and 1. Where all of them stand at one end no resample
            differs: the interval then reaches as far as the exact binomial one.

    Source: Efron and Tibshirani 1993, section 13.3; Clopper and Pearson 1934.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Interval(mean=np.nan, low=np.nan, high=np.nan, n=0)
    draws = np.random.default_rng(seed).integers(n, size=(num_resamples, n))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values[draws].mean(axis=1), [tail, 1 - tail])
    if is_share and (values == 1).all():
        low = tail ** (1 / n)
    if is_share and (values == 0).all():
        high = 1 - tail ** (1 / n)
    return Interval(mean=float(values.mean()), low=float(low), high=float(high), n=n)


def difference(values: np.ndarray, others: np.ndarray, *, seed: int = 0) -> Interval:
    """`interval` of values less others, piece by piece: pairs in which one is nan do not count."""
    return interval(np.asarray(values) - np.asarray(others), seed=seed, is_share=False)


def num_apart(values: np.ndarray, others: np.ndarray) -> int:
    """Pieces in which two values are there and are not equal."""
    apart = np.asarray(values) - np.asarray(others)
    return int(np.count_nonzero(apart[~np.isnan(apart)]))


def derangement(num_pieces: int, seed: int) -> list[int]:
    """A seeded order of pieces in which none stands in its own place.

    Raises:
        ConfigError: fewer than two pieces.

    Source: Sattolo 1986: one cycle through all.

    >>> derangement(2, seed=5)
    [1, 0]
    """
    if num_pieces < 2:
        raise ConfigError(
            f"{num_pieces} piece to judge: another's text is needed beside its own; allowed: 2 and "
            "more unseen pieces with captions"
        )
    order = list(range(num_pieces))
    random = np.random.default_rng(seed)
    for last in range(num_pieces - 1, 0, -1):
        other = int(random.integers(last))
        order[last], order[other] = order[other], order[last]
    return order


def groups_of(num_pieces: int, size: int, seed: int) -> list[list[int]]:
    """Seeded groups of pieces, all of `size`; a single one of all where there are fewer.

    >>> [len(group) for group in groups_of(7, 3, seed=0)]
    [3, 3]
    """
    order = np.random.default_rng(seed).permutation(num_pieces).tolist()
    size = min(size, num_pieces)
    return [order[start : start + size] for start in range(0, num_pieces - size + 1, size)]


def stack(scores: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """(P,) of each name from one dict per piece."""
    return {name: np.array([of[name] for of in scores], np.float64) for name in names}
