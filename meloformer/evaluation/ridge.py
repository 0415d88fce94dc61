"""Ridge regression of many targets at once, from sums that more rows can always be added to."""

from dataclasses import dataclass

import numpy as np

# Of the variance of a standardised feature; the probe picks one for each target.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# A feature that varies less, relative to its size, carries nothing but the last bits of its mean.
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Sums:
    """Sufficient statistics of N rows of features X (D) and targets Y (C), float64.

    >>> x, y = np.arange(6.0).reshape(3, 2), np.ones((3, 1))
    >>> both = Sums.of(x[:1], y[:1]) + Sums.of(x[1:], y[1:])
    >>> bool((both.xx == Sums.of(x, y).xx).all()), both.count
    (True, 3)
    """

    count: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    @classmethod
    def of(cls, x_ND: np.ndarray, y_NC: np.ndarray) -> "Sums":
        """Of rows in memory."""
        x_ND, y_NC = x_ND.astype(np.float64), y_NC.astype(np.float64)
        return cls(len(x_ND), x_ND.sum(0), y_NC.sum(0), x_ND.T @ x_ND, x_ND.T @ y_NC)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    def fit(self) -> "Ridge":
        """Solve for every penalty at once.

        Source: Hoerl and Kennard 1970; features standardised, the intercept free.
        """
        x_mean, y_mean = self.x / self.count, self.y / self.count
        covariance = self.xx / self.count - np.outer(x_mean, x_mean)
        variance = np.diagonal(covariance)
        is_constant = variance <= _LEAST_VARIANCE * (variance + x_mean**2)
        scale = 1 / np.sqrt(np.where(is_constant, 1.0, variance))
        scale[is_constant] = 0.0
        values, vectors = np.linalg.eigh(scale[:, None] * covariance * scale)
        shared = scale[:, None] * (self.xy / self.count - np.outer(x_mean, y_mean))
        return Ridge(
            x_mean, y_mean, scale[:, None] * vectors, np.maximum(values, 0), vectors.T @ shared
        )


@dataclass(frozen=True, eq=False)
class Ridge:
    """A solved regression: predictions for any penalty."""

    x_mean: np.ndarray
    y_mean: np.ndarray
    basis: np.ndarray
    values: np.ndarray
    shared: np.ndarray

    def predict(self, x_ND: np.ndarray, penalty: float) -> np.ndarray:
        """(N, C) predictions."""
        weights = self.basis @ (self.shared / (self.values + penalty)[:, None])
        found: np.ndarray = (x_ND - self.x_mean) @ weights + self.y_mean
        return found
