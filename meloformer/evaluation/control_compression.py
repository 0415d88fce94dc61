"""How much of music is repetition: its compression ratio by patterns that come again, moved.

A pattern and the vectors by which it is moved say all the notes that it covers; the ratio is notes
over what has to be written down. 1 means that nothing comes again.
"""

from typing import NamedTuple

import numpy as np

from meloformer.midi.quantised import QuantisedPiece

# Two numbers in one: onset and pitch of a point, or the way from one point to another.
_PITCHES = 256
# Notes of a piece that are looked at: all pairs of them are held in memory at once.
MAX_NOTES = 2000


class Moved(NamedTuple):
    """A pattern and everywhere it stands.

    Args:
        pattern: (M,) int64 points.
        vectors: (K,) int64, from the pattern to each place, its own (0) among them.
        covered: (C,) int64 points of all places.
    """

    pattern: np.ndarray
    vectors: np.ndarray
    covered: np.ndarray

    @property
    def length(self) -> int:
        """Numbers to write down: the pattern, and the ways to its other places."""
        return len(self.pattern) + len(self.vectors) - 1


def compression_ratio(music: QuantisedPiece) -> float:
    """Notes over the length of their description by SIATECCompress, 1 and above.

    Notes are points of onset and pitch, whatever plays them. text2midi states the ratio of
    COSIATEC, which looks for patterns anew after each one taken: it takes minutes where this takes
    a second, and its ratios are a little higher.

    Args:
        music: only its first MAX_NOTES notes are looked at.

    Returns:
        nan where there is no note.

    Source: Meredith 2013, COSIATEC and SIATECCompress: pattern discovery by geometric compression;
    Meredith, Lemström and Wiggins 2002 for SIATEC. Ties are broken by coverage, then by the size of
    the pattern, not by compactness.
    """
    order = np.argsort(music.start_steps, kind="stable")[:MAX_NOTES]
    points = np.unique(
        music.start_steps[order].astype(np.int64) * _PITCHES + music.pitch[order].astype(np.int64)
    )
    if not len(points):
        return float("nan")
    uncovered = np.ones(len(points), bool)
    length = 0
    for moved in repeated_patterns(points):
        places = np.searchsorted(points, moved.covered)
        num_new = int(uncovered[places].sum())
        if num_new > moved.length:
            uncovered[places] = False
            length += moved.length
    return len(points) / (length + int(uncovered.sum()))


def repeated_patterns(points: np.ndarray) -> list[Moved]:
    """Every maximal pattern that comes twice, with all its places; the best ratio first.

    Args:
        points: (N,) int64, ascending.
    """
    is_point = np.zeros(int(points[-1]) + 1, bool)
    is_point[points] = True
    seen: set[bytes] = set()
    found = []
    for pattern in _maximal_patterns(points):
        shape = (pattern - pattern[0]).tobytes()
        if len(pattern) > 1 and shape not in seen:
            seen.add(shape)
            vectors = _places(pattern, points, is_point)
            covered = np.unique(pattern[:, None] + vectors)
            found.append(Moved(pattern, vectors, covered))
    found.sort(
        key=lambda moved: (
            -len(moved.covered) / moved.length,
            -len(moved.covered),
            -len(moved.pattern),
        )
    )
    return found


def _maximal_patterns(points: np.ndarray) -> list[np.ndarray]:
    """For each vector between two points, all points that it moves onto points."""
    if len(points) < 2:
        return []
    first, second = np.triu_indices(len(points), 1)
    vectors = points[second] - points[first]
    order = np.argsort(vectors, kind="stable")
    edges = np.flatnonzero(np.diff(vectors[order])) + 1
    return np.split(points[first[order]], edges)


def _places(pattern: np.ndarray, points: np.ndarray, is_point: np.ndarray) -> np.ndarray:
    """Vectors that move all of a pattern onto points."""
    vectors = points - pattern[0]
    for point in pattern[1:]:
        moved = vectors + point
        inside = (moved >= 0) & (moved < len(is_point))
        vectors = vectors[inside]
        vectors = vectors[is_point[moved[inside]]]
    return vectors
