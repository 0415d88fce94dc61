"""Random canonical pieces, built note by note."""

import numpy as np
from hypothesis import strategies as st

from meloformer.midi.grid import (
    DURATION_STEPS,
    METRE_INDEX,
    METRE_STEPS,
    METRES,
    NUM_INSTRUMENTS,
    TEMPOS_BPM,
    VELOCITIES,
)
from meloformer.midi.quantised import QuantisedPiece

# bar, instrument, onset_steps, pitch, duration_steps, velocity
Note = tuple[int, int, int, int, int, int]


def canonical_piece(metres: list[int], tempos: list[int], notes: list[Note]) -> QuantisedPiece:
    """Sort, drop doubles, cut overlaps, end with the last note's bar; a plain loop over notes."""
    rows = [list(row) for key, row in sorted({note[:4]: note for note in notes}.items())]
    num_bars = rows[-1][0] + 1
    starts = [0]
    for metre in metres:
        starts.append(starts[-1] + int(METRE_STEPS[metre]))
    for row in rows:
        onset = starts[row[0]] + row[2]
        for other in rows:
            gap = starts[other[0]] + other[2] - onset
            if row[1] == other[1] and row[3] == other[3] and 0 < gap < row[4]:
                row[4] = max(int(steps) for steps in DURATION_STEPS if steps <= gap)
    columns = np.array(rows, np.int32).T
    return QuantisedPiece(
        bar_metre=np.array(metres[:num_bars], np.int32),
        bar_tempo=np.array(tempos[:num_bars], np.int32),
        bar=columns[0],
        instrument=columns[1],
        onset_steps=columns[2],
        pitch=columns[3],
        duration_steps=columns[4],
        velocity=columns[5],
    )


@st.composite
def canonical_pieces(draw: st.DrawFn) -> QuantisedPiece:
    """Any metres but runs of 1/4, which are read as beats; few pitches, so that notes collide."""
    metre = st.integers(0, len(METRES) - 1).filter(lambda index: index != METRE_INDEX[1, 4])
    metres = draw(st.lists(metre, min_size=1, max_size=8))
    tempos = [draw(st.integers(0, len(TEMPOS_BPM) - 1)) for _ in metres]
    notes = []
    for _ in range(draw(st.integers(1, 40))):
        bar = draw(st.integers(0, len(metres) - 1))
        notes.append(
            (
                bar,
                draw(st.sampled_from([0, 1, 10, 17, 41, NUM_INSTRUMENTS - 1])),
                draw(st.integers(0, int(METRE_STEPS[metres[bar]]) - 1)),
                draw(st.sampled_from([0, 60, 61, 127])),
                int(draw(st.sampled_from(DURATION_STEPS.tolist()))),
                int(draw(st.sampled_from(VELOCITIES.tolist()))),
            )
        )
    return canonical_piece(metres, tempos, notes)
