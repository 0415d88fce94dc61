"""One tempo for each bar, out of tempo changes that stand anywhere."""

import numpy as np

from meloformer.midi.grid import METRE_STEPS, STEPS_PER_QUARTER, ticks_to_steps
from meloformer.midi.piece import Tempos

DEFAULT_TEMPO_BPM = 120.0  # the MIDI standard's, where a file states none

_SECONDS_PER_MINUTE = 60.0


def bar_tempos(
    tempos: Tempos, bar_metre: np.ndarray, ticks_per_quarter: int
) -> tuple[np.ndarray, int]:
    """One tempo for each bar, which keeps the bar's length in seconds.

    Args:
        tempos: tempo changes.
        bar_metre: (num_bars,) metre of each bar.
        ticks_per_quarter: resolution of the tempo events.

    Returns:
        (num_bars,) float64 quarters per minute, and how many changes fell inside a bar.
    """
    if len(tempos) < 2 and not tempos.onset_ticks.any():
        only_bpm = tempos.bpm[0] if len(tempos) else DEFAULT_TEMPO_BPM
        return np.full(len(bar_metre), only_bpm), 0
    bar_start_steps = np.concatenate([[0], np.cumsum(METRE_STEPS[bar_metre])])
    line_quarters = bar_start_steps / STEPS_PER_QUARTER
    num_quarters = line_quarters[1:] - line_quarters[:-1]
    change_quarters = tempos.onset_ticks / ticks_per_quarter
    # The clock is a broken line through the changes; one more point carries it past the end.
    end = max(change_quarters[-1], line_quarters[-1]) + 1.0
    knots, bpm = np.concatenate([change_quarters, [end]]), tempos.bpm
    if change_quarters[0] > 0:
        knots = np.concatenate([[0.0], knots])
        bpm = np.concatenate([[DEFAULT_TEMPO_BPM], bpm])
    clock = np.zeros(len(knots))
    np.cumsum((knots[1:] - knots[:-1]) * _SECONDS_PER_MINUTE / bpm, out=clock[1:])
    line_seconds = np.interp(line_quarters, knots, clock)
    bar_bpm = num_quarters * _SECONDS_PER_MINUTE / (line_seconds[1:] - line_seconds[:-1])

    change_steps = ticks_to_steps(tempos.onset_ticks, ticks_per_quarter)
    line = bar_start_steps.searchsorted(change_steps, side="right") - 1
    is_inside = (bar_start_steps[line] != change_steps) & (change_quarters < line_quarters[-1])
    return bar_bpm, int(np.count_nonzero(is_inside))
