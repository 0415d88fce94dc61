"""Whether music is what was wished for, asked of its notes and bar tokens alone."""

import numpy as np

from meloformer.midi.grid import DRUMS
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import INDEX_OF, KIND_OF, Kind
from meloformer.tokens.wishes import Wishes


def broken_wishes(ids: np.ndarray, wishes: Wishes) -> list[str]:
    """Names of the fields that a finished piece does not keep."""
    music = decode(ids)
    notes = list(
        zip(music.bar.tolist(), music.instrument.tolist(), music.pitch.tolist(), strict=True)
    )
    bars = range(music.num_bars)
    players = {instrument for _, instrument, _ in notes}
    first = {i: min(bar for bar, who, _ in notes if who == i) for i in players}
    counts = [sum(bar == b for b, _, _ in notes) for bar in bars]
    chords = INDEX_OF[ids[KIND_OF[ids] == int(Kind.BAR)]].tolist()
    asked = [wishes.chords[bar % len(wishes.chords)] for bar in bars] if wishes.chords else chords
    most = wishes.most_notes
    kept = {
        "num_bars": wishes.num_bars in (None, music.num_bars),
        "instruments": wishes.instruments is None or players <= set(wishes.instruments),
        "metre": wishes.metre is None or set(music.bar_metre.tolist()) == {wishes.metre},
        "tempo": wishes.tempo is None or set(music.bar_tempo.tolist()) == {wishes.tempo},
        "chords": chords == asked,
        "playing": set(wishes.playing) <= players,
        "num_instruments": wishes.num_instruments in (None, len(players)),
        "entries": all(first.get(i) == bar for i, bar in wishes.entries),
        "least_notes": min(counts) >= wishes.least_notes,
        "most_notes": most is None or max(counts) <= most,
        "scale": wishes.scale is None
        or all(pitch % 12 in wishes.scale for _, who, pitch in notes if who != DRUMS),
        "ranges": all(
            low <= pitch <= high
            for i, low, high in wishes.ranges
            for _, who, pitch in notes
            if who == i
        ),
    }
    return [name for name, is_kept in kept.items() if not is_kept]
