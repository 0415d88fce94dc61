"""Music as the page reads it: bars of notes in grid steps; and the file that it hands out."""

import base64
from typing import Any

import numpy as np

from meloformer.demo.border import PageError
from meloformer.midi.grid import METRE_STEPS, METRES, TEMPOS_BPM
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.render import to_piece
from meloformer.midi.write import midi_bytes


def bar_records(music: QuantisedPiece, first: int = 0) -> list[dict[str, Any]]:
    """Every bar of a piece, or of a part of one.

    Args:
        music: empty bars included.
        first: number of its first bar in the whole.

    Returns:
        Of each bar its number, metre, tempo in quarters a minute, length in steps, and its notes:
        instrument, onset in the bar, pitch, duration, velocity.
    """
    columns = (
        music.instrument,
        music.onset_steps,
        music.pitch,
        music.duration_steps,
        music.velocity,
    )
    notes = np.stack(columns, axis=1).tolist()
    edges = np.searchsorted(music.bar, np.arange(music.num_bars + 1)).tolist()
    return [
        {
            "bar": first + bar,
            "metre": METRES[metre],
            "tempo": float(TEMPOS_BPM[tempo]),
            "steps": int(METRE_STEPS[metre]),
            "notes": notes[edges[bar] : edges[bar + 1]],
        }
        for bar, (metre, tempo) in enumerate(
            zip(music.bar_metre.tolist(), music.bar_tempo.tolist(), strict=True)
        )
    ]


def piece_record(music: QuantisedPiece, seed: int | None = None) -> dict[str, Any]:
    """A whole piece and its MIDI file; what is heard and seen is what the file holds.

    Args:
        music: the piece; empty bars behind its last note are left out, as no file holds them.
        seed: that it was written with; None for a file of the user's.

    Raises:
        PageError: it has no notes.
    """
    if not music.num_notes:
        raise PageError("no_notes", "the piece: found no notes; try another seed")
    piece = to_piece(music)
    return {
        "event": "piece",
        "bars": bar_records(quantise(piece)),
        "seed": seed,
        "midi": base64.b64encode(midi_bytes(piece)).decode(),
    }
