"""Clusters of near copies: whatever pairs join, directly or through others."""

import numpy as np


class UnionFind:
    """Joins rows pair by pair; every row points to a smaller one of its cluster, or to itself.

    >>> clusters = UnionFind(5)
    >>> clusters.add(np.array([[3, 4], [1, 3]]))
    >>> clusters.labels().tolist()
    [0, 1, 2, 1, 1]
    """

    def __init__(self, num: int) -> None:
        self._parent = np.arange(num, dtype=np.int32 if num < 2**31 else np.int64)

    def add(self, pairs: np.ndarray) -> None:
        """Join the two rows of each pair.

        Args:
            pairs: (E, 2) integers, 0..num - 1.
        """
        first, second = pairs[:, 0], pairs[:, 1]
        while len(first):
            first, second = self._roots(first), self._roots(second)
            is_apart = first != second
            first, second = first[is_apart], second[is_apart]
            # Of several smaller roots the smallest wins; the next round joins the others.
            np.minimum.at(self._parent, np.maximum(first, second), np.minimum(first, second))

    def labels(self) -> np.ndarray:
        """(num,) smallest row of each row's cluster."""
        while True:
            grandparent = self._parent[self._parent]
            if np.array_equal(grandparent, self._parent):
                return grandparent
            self._parent = grandparent

    def _roots(self, rows: np.ndarray) -> np.ndarray:
        """Smallest known row of each row's cluster; shortens the way there."""
        while True:
            parent = self._parent[rows]
            grandparent = self._parent[parent]
            if np.array_equal(parent, grandparent):
                return parent
            self._parent[rows] = grandparent
