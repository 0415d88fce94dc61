"""Every statistic of a piece by its name, and what the name means."""

from dataclasses import dataclass

from meloformer.evaluation import statistics, statistics_harmony
from meloformer.midi.harmony import bar_chords, estimate_key
from meloformer.midi.quantised import QuantisedPiece


@dataclass(frozen=True)
class Statistic:
    """A number of every piece.

    Args:
        name: what it is called, in files too.
        meaning: for people.
        is_share: lies between 0 and 1.
    """

    name: str
    meaning: str
    is_share: bool = False


STATISTICS = (
    Statistic("bars", "bars of the piece"),
    Statistic("pitch_class_entropy", "entropy of the pitch classes played, in bits (MusPy)"),
    Statistic("scale_consistency", "notes that lie in the best major or minor scale (MusPy)", True),
    Statistic(
        "groove_consistency", "onsets that neighbouring bars share or both lack (MusPy)", True
    ),
    Statistic("pitch_range", "semitones from the lowest note to the highest"),
    Statistic("polyphony", "pitches that sound at once, where any does (MusPy)"),
    Statistic("instruments", "instruments that play, drums as one"),
    Statistic("density", "notes per quarter"),
    Statistic("empty_bars", "bars in which no note sounds", True),
    Statistic(
        "instrument_overlap", "pairs of instruments that sound in one bar, mean over bars", True
    ),
    Statistic("compression", "bytes of the notes over those that lzma makes of them"),
    Statistic("chord_bars", "bars that a chord fits, of those with pitched notes", True),
    Statistic("chord_changes", "neighbouring bars whose chords differ", True),
    Statistic("chord_entropy", "entropy of the chords of bars, in bits"),
    Statistic("chords_in_key", "chords all of whose notes lie in the piece's key", True),
    Statistic("major", "pieces in a major key", True),
)


def measure(music: QuantisedPiece) -> dict[str, float]:
    """Every statistic of a piece, in the order of STATISTICS; nan where there is nothing to say."""
    chord_B, key = bar_chords(music), estimate_key(music)
    return {
        "bars": float(music.num_bars),
        "pitch_class_entropy": statistics.pitch_class_entropy(music),
        "scale_consistency": statistics.scale_consistency(music),
        "groove_consistency": statistics.groove_consistency(music),
        "pitch_range": statistics.pitch_range(music),
        "polyphony": statistics.polyphony(music),
        "instruments": statistics.num_instruments(music),
        "density": statistics.density(music),
        "empty_bars": statistics.empty_bars(music),
        "instrument_overlap": statistics.instrument_overlap(music),
        "compression": statistics.compression(music),
        "chord_bars": statistics_harmony.chord_bars(chord_B, statistics.sounds_pitched(music)),
        "chord_changes": statistics_harmony.chord_changes(chord_B),
        "chord_entropy": statistics_harmony.chord_entropy(chord_B),
        "chords_in_key": statistics_harmony.chords_in_key(chord_B, key),
        "major": statistics_harmony.is_major(key),
    }
