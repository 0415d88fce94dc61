"""QuantisedPiece -> Piece: back to ticks, exactly."""

import numpy as np

from meloformer.midi.grid import DRUMS, METRES, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.piece import Notes, Piece, Tempos, TimeSignatures, Track
from meloformer.midi.quantised import QuantisedPiece

TICKS_PER_QUARTER = 480
_TICKS_PER_STEP = TICKS_PER_QUARTER // STEPS_PER_QUARTER


def to_piece(quantised: QuantisedPiece) -> Piece:
    """The music of a quantised piece; `quantise(to_piece(q)) == q`.

    Raises:
        MidiError: the piece holds no note.
    """
    starts = quantised.bar_start_steps
    onset_ticks = (starts[quantised.bar] + quantised.onset_steps) * _TICKS_PER_STEP
    tracks = []
    for instrument in np.unique(quantised.instrument).tolist():
        mine = quantised.instrument == instrument
        tracks.append(
            Track(
                program=max(instrument - 1, 0),
                is_drum=instrument == DRUMS,
                name="",
                notes=Notes(
                    onset_ticks=onset_ticks[mine].astype(np.int32),
                    duration_ticks=quantised.duration_steps[mine] * np.int32(_TICKS_PER_STEP),
                    pitch=quantised.pitch[mine],
                    velocity=quantised.velocity[mine],
                ),
            )
        )
    bar_ticks = (starts[:-1] * _TICKS_PER_STEP).astype(np.int32)
    new_tempo = _changes(quantised.bar_tempo)
    new_metre = _changes(quantised.bar_metre)
    metres = np.array(METRES, dtype=np.int32)[quantised.bar_metre[new_metre]]
    return Piece(
        ticks_per_quarter=TICKS_PER_QUARTER,
        tracks=tuple(tracks),
        tempos=Tempos(
            onset_ticks=bar_ticks[new_tempo], bpm=TEMPOS_BPM[quantised.bar_tempo[new_tempo]]
        ),
        time_signatures=TimeSignatures(
            onset_ticks=bar_ticks[new_metre], numerator=metres[:, 0], denominator=metres[:, 1]
        ),
    )


def _changes(values: np.ndarray) -> np.ndarray:
    """Indices where a value differs from the one before, and 0."""
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
