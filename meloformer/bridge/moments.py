"""Mean and spread of each dimension, over more vectors than memory holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

# A dimension that never changes is normalised to zero and not to noise of its last bit.
LEAST_STD = 1e-6


@dataclass(frozen=True, eq=False)
class Moments:
    """Of N vectors; those of two halves give those of the whole.

    Args:
        count: N.
        mean_D: float64.
        squares_D: float64, sums of squared distances from the mean.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for Computing the Sample Variance".

    >>> both = Moments.of(np.array([[1.0], [3.0]])) + Moments.of(np.array([[5.0]]))
    >>> both.count, both.mean_D.tolist(), both.squares_D.tolist()
    (3, [3.0], [8.0])
    """

    count: int
    mean_D: np.ndarray
    squares_D: np.ndarray

    @classmethod
    def of(cls, vectors_ND: np.ndarray) -> "Moments":
        """Of vectors in memory, N >= 1."""
        vectors_ND = vectors_ND.astype(np.float64)
        mean_D = vectors_ND.mean(axis=0)
        return cls(len(vectors_ND), mean_D, ((vectors_ND - mean_D) ** 2).sum(axis=0))

    @classmethod
    def joined(cls, parts: Iterable["Moments"]) -> "Moments":
        """Of all parts together; the same order gives the same bits."""
        return reduce(lambda first, second: first + second, parts)

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        apart_D = other.mean_D - self.mean_D
        return Moments(
            count,
            self.mean_D + apart_D * (other.count / count),
            self.squares_D + other.squares_D + apart_D**2 * (self.count * (other.count / count)),
        )

    @property
    def std(self) -> np.ndarray:
        """(D,) float64, of the vectors themselves (not of a population they stand for)."""
        return np.maximum(np.sqrt(self.squares_D / self.count), LEAST_STD)

    def to_json(self) -> dict[str, int | list[float]]:
        """Plain data that keeps every bit."""
        return {
            "count": self.count,
            "mean": self.mean_D.tolist(),
            "squares": self.squares_D.tolist(),
        }

    @classmethod
    def from_json(cls, values: dict) -> "Moments":
        """The inverse of `to_json`."""
        return cls(values["count"], np.array(values["mean"]), np.array(values["squares"]))
