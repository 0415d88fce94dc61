"""The musical grid: every value that a quantised piece may hold, and nothing else.

The single owner of grid, duration, velocity, tempo and metre values; tokens/ derives its blocks
from the lengths of these tables.
"""

import numpy as np

STEPS_PER_QUARTER = 24

# Exact up to a half note, then coarser by powers of two: relative error stays under 1/16.
DURATION_STEPS = np.concatenate(
    [
        np.arange(1, 49),
        np.arange(54, 97, 6),
        np.arange(108, 193, 12),
        np.arange(216, 385, 24),
        np.arange(432, 769, 48),
    ]
).astype(np.int32)

VELOCITIES = np.arange(2, 128, 4, dtype=np.int32)

# Sixteen bins an octave of tempo, so that 30, 60, 120 and 240 are exact.
TEMPOS_BPM = np.round(120.0 * 2.0 ** (np.arange(-40, 25) / 16.0), 2)

# No single bar is longer than twelve quarters; longer metres are split by `quantise`.
MAX_BAR_STEPS = 12 * STEPS_PER_QUARTER
MAX_NUMERATOR = 32
DENOMINATORS = (1, 2, 4, 8, 16, 32)


def metre_steps(numerator: int, denominator: int) -> int:
    """Length of a bar in grid steps.

    >>> metre_steps(4, 4), metre_steps(6, 8)
    (96, 72)
    """
    return numerator * 4 * STEPS_PER_QUARTER // denominator


# (numerator, denominator), ordered by denominator then numerator.
METRES: tuple[tuple[int, int], ...] = tuple(
    (numerator, denominator)
    for denominator in DENOMINATORS
    for numerator in range(1, MAX_NUMERATOR + 1)
    if metre_steps(numerator, denominator) <= MAX_BAR_STEPS
)
METRE_INDEX = {metre: index for index, metre in enumerate(METRES)}
METRE_STEPS = np.array([metre_steps(n, d) for n, d in METRES], dtype=np.int32)

# Instruments: 0 is the drum kit, 1 + program the melodic ones.
DRUMS = 0
NUM_INSTRUMENTS = 129


def ticks_to_steps(ticks: np.ndarray, ticks_per_quarter: int | np.ndarray) -> np.ndarray:
    """Nearest grid step, halves up, in exact integer arithmetic.

    Args:
        ticks: (N,) integers.
        ticks_per_quarter: of all of them, or (N,) of each.

    >>> ticks_to_steps(np.array([9, 10, 20]), 480).tolist()
    [0, 1, 1]
    """
    doubled = ticks.astype(np.int64) * (2 * STEPS_PER_QUARTER) + ticks_per_quarter
    return doubled // (2 * ticks_per_quarter)


def nearest_index(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Index of the nearest table entry; the lower one at a tie.

    Args:
        values: (N,) numbers.
        table: (M,) ascending.

    >>> nearest_index(np.array([0, 50, 51, 9999]), DURATION_STEPS).tolist()
    [0, 47, 47, 79]
    """
    right = np.clip(np.searchsorted(table, values), 1, len(table) - 1)
    left = right - 1
    take_right = (table[right] - values) < (values - table[left])
    return np.where(take_right, right, left)
