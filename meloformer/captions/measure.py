"""What can be heard in a window: measured from its notes, never from its prefix."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meloformer.midi.filters import bar_seconds
from meloformer.midi.grid import DRUMS, METRES, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.harmony import bar_chords, estimate_key
from meloformer.midi.instrument_names import FAMILIES, family
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.vocabulary import (
    NO_CHORD,
    chord_name,
    density_bin,
    key_name,
    length_bin,
)

MOST_MAIN_INSTRUMENTS = 3
LONGEST_PROGRESSION = 4

# Mean pitch, weighted by duration, below which a window sits low, and from which it sits high.
LOW_PITCH, HIGH_PITCH = 52, 68
# Mean velocity below which it is soft, and from which it is loud.
SOFT_VELOCITY, LOUD_VELOCITY = 60, 96
# Tempo bins between the slowest and the fastest bar from which the tempo is said to change.
TEMPO_CHANGE_BINS = 3


@dataclass(frozen=True, kw_only=True)
class WindowAttributes:
    """The attributes of one window, as `captions.jsonl` holds them; None where there is none.

    Args:
        tempo_bpm: of the bar at half of the playing time, quarters per minute.
        tempo_index: the same as index into TEMPOS_BPM.
        tempo_changes: the bars' tempos lie some bins apart.
        metre: `4/4`, the one that lasts longest.
        metre_index: the same as index into METRES.
        metre_changes: a bar other than the first and the last (a pick-up, its rest) has another.
        key: `E minor`, by the finder that labels prefixes; None where only drums play.
        key_index: 0..11 major by tonic, 12..23 minor by tonic.
        bars: number of bars.
        length_bin: bin of the same.
        seconds: playing time, from the first bar line to the last.
        instruments: of the grid, ascending.
        main_instruments: those with the most notes, the most first.
        families: of General MIDI, by their English names, without drums.
        has_drums: the drum kit plays.
        density: notes per quarter.
        density_bin: bin of the same.
        register: `low`, `middle` or `high`, by the mean pitch; None where only drums play.
        pitch_mean: weighted by duration, drums left out.
        pitch_range: (lowest, highest), likewise.
        dynamics: `soft`, `moderate` or `loud`, by the mean velocity.
        velocity_mean: of all notes.
        chords: the progression that comes most often, if it comes twice.
        texture: `percussion`, `monophonic`, `thin`, `chordal`, `polyphonic` or `layered`.
        polyphony: pitched notes that sound at once, on the mean, where any does.
        labels: `genre`, `mood`, `scene`, each a list, where labels were given.
    """

    tempo_bpm: float
    tempo_index: int
    tempo_changes: bool
    metre: str
    metre_index: int
    metre_changes: bool
    key: str | None
    key_index: int | None
    bars: int
    length_bin: int
    seconds: float
    instruments: list[int]
    main_instruments: list[int]
    families: list[str]
    has_drums: bool
    density: float
    density_bin: int
    register: str | None
    pitch_mean: float | None
    pitch_range: list[int] | None
    dynamics: str
    velocity_mean: float
    chords: list[str]
    texture: str
    polyphony: float
    labels: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in `captions.jsonl`."""
        return dict(vars(self))


def measure_window(
    music: QuantisedPiece,
    chords: np.ndarray | None = None,
    labels: dict[str, list[str]] | None = None,
) -> WindowAttributes:
    """Measure the music of one window.

    Args:
        music: decoded from its tokens, with at least one note.
        chords: (num_bars,) chord of each bar as its bar token says it; None finds them anew.
        labels: what is known of the piece besides its notes.
    """
    seconds = bar_seconds(music)
    quarters = np.diff(music.bar_start_steps) / STEPS_PER_QUARTER
    tempo = _weighted_median(music.bar_tempo, seconds)
    time_of_metre = np.bincount(music.bar_metre, quarters, minlength=len(METRES))
    metre = int(time_of_metre.argmax())
    key = estimate_key(music)
    notes_of = Counter(music.instrument.tolist())
    density = music.num_notes / float(quarters.sum())
    velocity = float(music.velocity.mean())
    pitch = _pitches(music)
    if chords is None:
        chords = bar_chords(music)
    polyphony = _polyphony(music)
    families = {family(index) for index in notes_of} - {None}
    return WindowAttributes(
        tempo_bpm=float(TEMPOS_BPM[tempo]),
        tempo_index=tempo,
        tempo_changes=int(np.ptp(music.bar_tempo)) >= TEMPO_CHANGE_BINS,
        metre="{}/{}".format(*METRES[metre]),
        metre_index=metre,
        metre_changes=bool(np.any(music.bar_metre[1:-1] != metre)),
        key=None if key is None else key_name(key),
        key_index=key,
        bars=music.num_bars,
        length_bin=int(length_bin(music.num_bars)),
        seconds=round(float(seconds.sum()), 1),
        instruments=sorted(notes_of),
        main_instruments=_main_instruments(notes_of),
        families=[FAMILIES[index].en for index in sorted(f for f in families if f is not None)],
        has_drums=DRUMS in notes_of,
        density=round(density, 2),
        density_bin=int(density_bin(density)),
        register=None if pitch is None else _register(pitch[0]),
        pitch_mean=None if pitch is None else round(pitch[0], 1),
        pitch_range=None if pitch is None else [pitch[1], pitch[2]],
        dynamics=_dynamics(velocity),
        velocity_mean=round(velocity, 1),
        chords=most_frequent_progression(chords),
        texture=_texture(music, polyphony),
        polyphony=round(polyphony, 2),
        labels=labels or {},
    )


def most_frequent_progression(chords: np.ndarray) -> list[str]:
    """The run of chords that comes most often, repeated chords and bars without one left out.

    Of four chords, or of three or two where none of four comes twice; of equals the first. Empty
    where no two chords come twice one after the other.

    Args:
        chords: (num_bars,) index of each bar's chord.

    >>> c, f, g = 0, 35, 49  # C, F and G major
    >>> most_frequent_progression(np.array([c, c, f, g, NO_CHORD, c, f, g, c]))
    ['Cmaj', 'Fmaj', 'Gmaj', 'Cmaj']
    """
    sounding = chords[chords != NO_CHORD]
    changes = sounding[np.flatnonzero(np.diff(sounding, prepend=-1))].tolist()
    for length in range(LONGEST_PROGRESSION, 1, -1):
        runs = zip(*(changes[start:] for start in range(length)), strict=False)
        ranked = Counter(runs).most_common(1)
        if ranked and ranked[0][1] > 1:
            return [chord_name(chord) for chord in ranked[0][0]]
    return []


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> int:
    """The smallest value that at least half of the weight does not exceed."""
    order = values.argsort(kind="stable")
    reached = weights[order].cumsum()
    return int(values[order[reached.searchsorted(reached[-1] / 2)]])


def _main_instruments(notes_of: Counter[int]) -> list[int]:
    ranked = sorted(notes_of.items(), key=lambda item: (-item[1], item[0]))
    return [index for index, _ in ranked[:MOST_MAIN_INSTRUMENTS]]


def _pitches(music: QuantisedPiece) -> tuple[float, int, int] | None:
    """Mean pitch by duration, lowest and highest, of what is no drum."""
    pitch = music.pitch[music.melodic]
    if not len(pitch):
        return None
    mean = float(np.average(pitch, weights=music.duration_steps[music.melodic]))
    return mean, int(pitch.min()), int(pitch.max())


def _register(pitch_mean: float) -> str:
    if pitch_mean < LOW_PITCH:
        return "low"
    return "high" if pitch_mean >= HIGH_PITCH else "middle"


def _dynamics(velocity_mean: float) -> str:
    if velocity_mean < SOFT_VELOCITY:
        return "soft"
    return "loud" if velocity_mean >= LOUD_VELOCITY else "moderate"


def _polyphony(music: QuantisedPiece) -> float:
    """Pitched notes at once, on the mean over the time when at least one sounds."""
    onset = music.start_steps[music.melodic].astype(np.int64)
    if not len(onset):
        return 0.0
    steps = music.duration_steps[music.melodic].astype(np.int64)
    end = onset + steps
    order = onset.argsort(kind="stable")
    # What each note adds to the time that is not silent: what lies behind all ends before it.
    latest = np.maximum.accumulate(end[order])
    before = np.concatenate([[0], latest[:-1]])
    covered = np.maximum(end[order] - np.maximum(onset[order], before), 0).sum()
    return float(steps.sum() / covered)


def _texture(music: QuantisedPiece, polyphony: float) -> str:
    if not polyphony:
        return "percussion"
    if polyphony < 1.1:
        return "monophonic"
    onset = music.start_steps[music.melodic]
    _, num_at_once = np.unique(onset, return_counts=True)
    if len(np.unique(music.instrument[music.melodic])) >= 5 and polyphony >= 3:
        return "layered"
    if np.mean(num_at_once >= 3) >= 0.5:
        return "chordal"
    return "thin" if polyphony < 2.2 else "polyphonic"
