"""An oracle for quantising: every raw note, one at a time, in whole numbers."""

from bisect import bisect_right

from meloformer.midi.grid import DURATION_STEPS, STEPS_PER_QUARTER, VELOCITIES
from meloformer.midi.piece import Piece, Track
from meloformer.midi.quantise import quantise_counted

_DURATIONS = DURATION_STEPS.tolist()


def check_against_raw_notes(piece: Piece, *, pedal: bool = True) -> None:
    """Assert that a quantised piece holds exactly the raw notes, each within its stated error."""
    quantised, counts = quantise_counted(piece, pedal=pedal)
    # One tick is STEPS_PER_QUARTER units, one grid step as many units as a quarter has ticks.
    unit, step_units = STEPS_PER_QUARTER, piece.ticks_per_quarter
    wanted: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    num_notes = 0
    for track in piece.tracks:
        notes = track.notes
        columns = (notes.onset_ticks, notes.duration_ticks, notes.pitch, notes.velocity)
        for onset, duration, pitch, velocity in zip(*(c.tolist() for c in columns), strict=True):
            num_notes += 1
            end = _end(track, onset + duration) if pedal else onset + duration
            instrument = 0 if track.is_drum else 1 + track.program
            step = (2 * onset * unit + step_units) // (2 * step_units)
            assert 2 * abs(step * step_units - onset * unit) <= step_units
            wanted.setdefault((instrument, pitch, step), []).append(
                ((end - onset) * unit, velocity)
            )

    starts = quantised.bar_start_steps[quantised.bar].tolist()
    columns = (
        quantised.instrument,
        quantised.pitch,
        quantised.onset_steps,
        quantised.duration_steps,
        quantised.velocity,
    )
    rows = zip(starts, *(c.tolist() for c in columns), strict=True)
    found = {(i, p, start + o): (duration, v) for start, i, p, o, duration, v in rows}
    assert len(found) == quantised.num_notes
    assert found.keys() == wanted.keys()
    assert counts.notes == num_notes
    assert counts.merged == num_notes - len(found)

    onsets: dict[tuple[int, int], list[int]] = {}
    for instrument, pitch, step in sorted(wanted):
        onsets.setdefault((instrument, pitch), []).append(step)
    for (instrument, pitch, step), raw in wanted.items():
        duration, velocity = found[instrument, pitch, step]
        longest = max(length for length, _ in raw)
        following = onsets[instrument, pitch]
        position = bisect_right(following, step)
        gap = following[position] - step if position < len(following) else _DURATIONS[-1]
        nearest = min(_DURATIONS, key=lambda steps: (abs(steps * step_units - longest), steps))
        assert duration == min(nearest, _DURATIONS[bisect_right(_DURATIONS, gap) - 1])
        loudest = max(loudness for _, loudness in raw)
        assert abs(velocity - loudest) == min(abs(loudest - v) for v in VELOCITIES.tolist())


def _end(track: Track, key_up: int) -> int:
    """When a key released at `key_up` stops to sound."""
    if track.is_drum:
        return key_up
    for start, end in zip(
        track.pedal.start_ticks.tolist(), track.pedal.end_ticks.tolist(), strict=True
    ):
        if start <= key_up < end:
            return end
    return key_up
