"""Where the bar lines fall: metre events of a file -> metres of the table, bar after bar.

Files are not kind: metres change in mid-bar, a tick beside the bar line, or stand for beats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

import numpy as np

from meloformer.errors import MidiError
from meloformer.midi.grid import (
    DENOMINATORS,
    METRE_INDEX,
    METRE_STEPS,
    METRES,
    STEPS_PER_QUARTER,
    metre_steps,
    nearest_index,
)
from meloformer.midi.limits import MAX_BARS

# A metre event this near to a bar line means the bar line.
SNAP_STEPS = STEPS_PER_QUARTER // 8
# As many bars of 1/4 in a row are beats that a tracker wrote as bars.
FALSE_METRE_RUN = 4

_COMMON_METRE = METRE_INDEX[4, 4]
_FALSE_METRE = METRE_INDEX[1, 4]
_STEPS_OF_METRE: list[int] = METRE_STEPS.tolist()
_BAR_LENGTHS = np.unique(METRE_STEPS)


@dataclass(kw_only=True)
class BarCounts:
    """What was done to a file's metres to fit the table.

    Args:
        bars_cut: bars that a metre event in mid-bar made shorter.
        bar_lines_moved: of these, bars whose length no metre of the table has.
        bars_split: bars of a metre longer than the table's, each written as several.
        false_metre_bars: bars of 1/4 that became beats of 4/4.
    """

    bars_cut: int = 0
    bar_lines_moved: int = 0
    bars_split: int = 0
    false_metre_bars: int = 0


@dataclass(kw_only=True)
class _Bars:
    """Bars laid so far, as (metres of one written bar, how often it comes)."""

    runs: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    num_bars: int = 0
    end_steps: int = 0

    def add(self, pattern: tuple[int, ...], repeats: int) -> None:
        if repeats <= 0:
            return
        self.runs.append((pattern, repeats))
        self.num_bars += repeats * len(pattern)
        self.end_steps += repeats * _steps(pattern)
        if self.num_bars > MAX_BARS * FALSE_METRE_RUN:
            raise MidiError("too_long", f"over {self.num_bars - 1} bars; allowed {MAX_BARS}")


def lay_bars(
    event_steps: list[int], metres: list[tuple[int, int]], last_onset_steps: int
) -> tuple[np.ndarray, BarCounts]:
    """Metre of every bar up to the one in which the last note starts.

    Args:
        event_steps: where each metre event stands, ascending, in grid steps.
        metres: (numerator, denominator) of each event.
        last_onset_steps: latest onset of the piece.

    Returns:
        (num_bars,) int32 index into METRES, and what was changed.

    Raises:
        MidiError: a metre finer than the grid, or too many bars.

    A pick-up of one quarter, written as 1/4, and a metre change after two quarters of a bar:

    >>> bar_metre, counts = lay_bars([0, 24, 168], [(1, 4), (4, 4), (3, 4)], 200)
    >>> [METRES[m] for m in bar_metre], counts.bars_cut
    ([(1, 4), (4, 4), (2, 4), (3, 4)], 1)
    """
    counts = BarCounts()
    bars = _Bars()
    pattern: tuple[int, ...] = (_COMMON_METRE,)
    for steps, metre in zip(event_steps, metres, strict=True):
        _fill(bars, pattern, steps, counts)
        pattern = _pattern(*metre)
    num_left = (last_onset_steps - bars.end_steps) // _steps(pattern) + 1
    bars.add(pattern, num_left)
    counts.bars_split = sum(repeats for pattern, repeats in bars.runs if len(pattern) > 1)
    runs = _up_to(_runs_of_one_metre(bars.runs), last_onset_steps)
    runs, counts.false_metre_bars = _without_false_metre(runs)
    metre_of_run, num_bars = zip(*_up_to(runs, last_onset_steps), strict=True)
    if sum(num_bars) > MAX_BARS:
        raise MidiError("too_long", f"{sum(num_bars)} bars; allowed {MAX_BARS}")
    return np.repeat(np.array(metre_of_run, np.int32), num_bars), counts


def bar_of_steps(bar_metre: np.ndarray) -> np.ndarray:
    """Bar of every grid step: a look-up where a search would be made for every note.

    Returns:
        (last bar line,) int32.

    >>> bar_of_steps(np.array([METRE_INDEX[1, 32], METRE_INDEX[2, 32]])).tolist()
    [0, 0, 0, 1, 1, 1, 1, 1, 1]
    """
    return np.repeat(np.arange(len(bar_metre), dtype=np.int32), METRE_STEPS[bar_metre])


def _fill(bars: _Bars, pattern: tuple[int, ...], until_steps: int, counts: BarCounts) -> None:
    """Add bars until a metre event; cut the bar that the event stands in."""
    length = _steps(pattern)
    num_whole, rest = divmod(until_steps - bars.end_steps, length)
    if length - rest <= min(SNAP_STEPS, rest):
        num_whole, rest = num_whole + 1, 0
    bars.add(pattern, num_whole)
    if num_whole < 0 or rest <= SNAP_STEPS:
        return
    for metre in pattern:
        if rest < _STEPS_OF_METRE[metre]:
            break
        bars.add((metre,), 1)
        rest -= _STEPS_OF_METRE[metre]
    if rest > SNAP_STEPS:
        counts.bars_cut += 1
        short = _metre_of_length(rest, prefer_denominator=METRES[metre][1])
        counts.bar_lines_moved += int(_STEPS_OF_METRE[short] != rest)
        bars.add((short,), 1)


def _pattern(numerator: int, denominator: int) -> tuple[int, ...]:
    """Metres of the table that make one bar of a written metre; nearly always that one itself."""
    if denominator > DENOMINATORS[-1]:  # 4/128 is 1/32
        shared = gcd(numerator, denominator // DENOMINATORS[-1])
        numerator, denominator = numerator // shared, denominator // shared
    if denominator > DENOMINATORS[-1]:
        found = f"metre {numerator}/{denominator}"
        raise MidiError("metre_off_grid", f"{found}; allowed denominators up to {DENOMINATORS[-1]}")
    if (numerator, denominator) in METRE_INDEX:
        return (METRE_INDEX[numerator, denominator],)
    # Equal parts where they are not much shorter than need be, else the longest and a remainder.
    longest = max(n for n, d in METRES if d == denominator)
    fewest = -(-numerator // longest)
    for parts in range(fewest, 2 * fewest):
        if numerator % parts == 0:
            return (METRE_INDEX[numerator // parts, denominator],) * parts
    whole, rest = divmod(numerator, longest)
    pattern = (METRE_INDEX[longest, denominator],) * whole
    return (*pattern, METRE_INDEX[rest, denominator]) if rest else pattern


def _metre_of_length(steps: int, *, prefer_denominator: int) -> int:
    """The metre of exactly `steps`, or of the nearest length that the table has."""
    nearest = int(_BAR_LENGTHS[nearest_index(np.array([steps]), _BAR_LENGTHS)[0]])
    for denominator in (prefer_denominator, *DENOMINATORS):
        numerator = nearest * denominator // (4 * STEPS_PER_QUARTER)
        metre = (numerator, denominator)
        if metre in METRE_INDEX and metre_steps(*metre) == nearest:
            return METRE_INDEX[metre]
    raise AssertionError("every length of the table belongs to a metre of the table")


def _runs_of_one_metre(patterns: list[tuple[tuple[int, ...], int]]) -> list[tuple[int, int]]:
    """(metre, number of bars), where a run's neighbours have other metres.

    >>> _runs_of_one_metre([((5,), 2), ((5, 7), 2)])
    [(5, 3), (7, 1), (5, 1), (7, 1)]
    """
    runs: list[tuple[int, int]] = []
    for pattern, repeats in patterns:
        one_metre = len(pattern) == 1
        for metre in pattern if one_metre else pattern * repeats:
            num_bars = repeats if one_metre else 1
            if runs and runs[-1][0] == metre:
                num_bars += runs.pop()[1]
            runs.append((metre, num_bars))
    return runs


def _without_false_metre(runs: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """Read long runs of 1/4 as 4/4, with a short bar for what is left over.

    At the piece's end nothing is left over: its last bar may be longer than the music.

    Source: POP909, where two thirds of the files carry nothing but 1/4.
    """
    true_runs: list[tuple[int, int]] = []
    num_false = 0
    for index, (metre, num_bars) in enumerate(runs):
        if metre != _FALSE_METRE or num_bars < FALSE_METRE_RUN:
            true_runs.append((metre, num_bars))
            continue
        num_false += num_bars
        num_whole, rest = divmod(num_bars, 4)
        if rest and index == len(runs) - 1:
            num_whole, rest = num_whole + 1, 0
        true_runs.append((_COMMON_METRE, num_whole))
        if rest:
            true_runs.append((METRE_INDEX[rest, 4], 1))
    return true_runs, num_false


def _up_to(runs: list[tuple[int, int]], last_onset_steps: int) -> list[tuple[int, int]]:
    """Bars up to the one that holds `last_onset_steps`.

    >>> _up_to([(METRE_INDEX[4, 4], 3), (METRE_INDEX[3, 4], 1)], 96) == [(METRE_INDEX[4, 4], 2)]
    True
    """
    kept: list[tuple[int, int]] = []
    steps_left = last_onset_steps
    for metre, num_bars in runs:
        num_needed = steps_left // _STEPS_OF_METRE[metre] + 1
        kept.append((metre, min(num_bars, num_needed)))
        if num_needed <= num_bars:
            break
        steps_left -= num_bars * _STEPS_OF_METRE[metre]
    return kept


def _steps(pattern: tuple[int, ...]) -> int:
    return sum(_STEPS_OF_METRE[metre] for metre in pattern)
