"""Which word stands for a number: the edges are the same in every language."""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

# Upper edges in BPM: very slow, slow, relaxed, moderate, lively, fast; above them very fast.
PACE_EDGES_BPM = (56.0, 76.0, 100.0, 116.0, 136.0, 172.0)
# Notes per quarter: below the first sparse, from the second on dense.
DENSITY_EDGES = (2.5, 9.0)
# A short piece, and a long one.
BRIEF_EDGES_SECONDS = (25.0, 120.0)
BRIEF_EDGES_BARS = (12, 64)


def pace_bin(tempo_bpm: float) -> int:
    """0 very slow .. 6 very fast.

    >>> pace_bin(60), pace_bin(120), pace_bin(150)
    (1, 4, 5)
    """
    return bisect_right(PACE_EDGES_BPM, tempo_bpm)


def density_word_bin(density: float) -> int:
    """0 sparse, 1 between, 2 dense."""
    return bisect_right(DENSITY_EDGES, density)


def brief_bin(attributes: Mapping[str, Any]) -> int:
    """0 short, 1 between, 2 long; by seconds where they are known, else by bars."""
    seconds = attributes.get("seconds")
    if seconds is not None:
        return bisect_right(BRIEF_EDGES_SECONDS, seconds)
    return bisect_right(BRIEF_EDGES_BARS, attributes["bars"])
