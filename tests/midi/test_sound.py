"""Sound measured: how long, how loud, which pitch."""

import numpy as np
import pytest

from meloformer.midi.grid import (
    DRUMS,
    DURATION_STEPS,
    METRE_INDEX,
    STEPS_PER_QUARTER,
    TEMPOS_BPM,
    VELOCITIES,
)
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.sound import SAMPLE_RATE, note_seconds, synthesise


def piece(
    notes: list[tuple[int, int, int]], *, tempos: tuple[int, ...] = (0,), instrument: int = 1
) -> QuantisedPiece:
    """Bars of 4/4 at the given tempos; notes as (bar, onset in steps, pitch), a quarter each."""
    count = len(notes)

    def column(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int32)

    return QuantisedPiece(
        bar_metre=np.full(len(tempos), METRE_INDEX[4, 4], np.int32),
        bar_tempo=column(list(tempos)),
        bar=column([bar for bar, _, _ in notes]),
        instrument=column([instrument] * count),
        onset_steps=column([onset for _, onset, _ in notes]),
        pitch=column([pitch for *_, pitch in notes]),
        duration_steps=column([STEPS_PER_QUARTER] * count),
        velocity=column([VELOCITIES[-1]] * count),
    )


def tempo(bpm: float) -> int:
    return int(np.abs(np.asarray(TEMPOS_BPM) - bpm).argmin())


def loudness(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(sound.astype(np.float64) ** 2)))


def strongest_hertz(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(spectrum.argmax() * SAMPLE_RATE / len(sound))


def test_the_table_of_durations_holds_a_quarter() -> None:
    assert STEPS_PER_QUARTER in DURATION_STEPS


@pytest.mark.parametrize(("pitch", "hertz"), [(60, 261.63), (69, 440.0), (48, 130.81)])
def test_a_note_sounds_at_its_pitch(pitch: int, hertz: float) -> None:
    sound = synthesise(piece([(0, 0, pitch)], tempos=(tempo(60),)))
    assert strongest_hertz(sound) == pytest.approx(hertz, rel=0.01)


def test_notes_sound_when_their_bars_tempo_says_and_not_before() -> None:
    slow, fast = tempo(60), tempo(120)
    q = piece([(1, 0, 60), (1, 2 * STEPS_PER_QUARTER, 67)], tempos=(slow, fast))
    slow_bpm, fast_bpm = TEMPOS_BPM[slow], TEMPOS_BPM[fast]
    bar_seconds = 4 * 60 / slow_bpm
    onset, end = note_seconds(q)
    assert onset == pytest.approx([bar_seconds, bar_seconds + 2 * 60 / fast_bpm])
    assert end - onset == pytest.approx(60 / fast_bpm)
    sound = synthesise(q)
    assert loudness(sound[: int(bar_seconds * SAMPLE_RATE)]) == 0
    assert loudness(sound[int(bar_seconds * SAMPLE_RATE) :]) > 0.05
    assert len(sound) / SAMPLE_RATE == pytest.approx(end.max() + 0.25, abs=0.001)


def test_a_note_may_end_after_the_last_bar_line() -> None:
    index = tempo(120)
    q = piece([(0, 4 * STEPS_PER_QUARTER - 1, 60)], tempos=(index,))
    onset, end = note_seconds(q)
    assert end - onset == pytest.approx(60 / TEMPOS_BPM[index])


def test_sound_stays_within_one_and_ends_where_it_has_to() -> None:
    chord = [(0, 0, pitch) for pitch in range(40, 90, 2)]
    sound = synthesise(piece(chord, tempos=(tempo(120),)), max_seconds=0.2)
    assert sound.dtype == np.float32 and len(sound) == 0.2 * SAMPLE_RATE
    assert np.abs(sound).max() == pytest.approx(0.9, rel=1e-5)


def test_drums_are_noise_without_a_pitch_and_cymbals_are_higher_than_kicks() -> None:
    def centre_hertz(key: int) -> float:
        sound = synthesise(piece([(0, 0, key)], tempos=(tempo(60),), instrument=DRUMS))
        power = np.abs(np.fft.rfft(sound)) ** 2
        return float((power * np.arange(len(power))).sum() / power.sum() * SAMPLE_RATE / len(sound))

    assert centre_hertz(36) < 1000 < 3000 < centre_hertz(42)


def test_a_piece_without_notes_is_silent() -> None:
    assert synthesise(piece([])).tolist() == [0.0]


def test_the_same_piece_sounds_the_same_every_time() -> None:
    q = piece([(0, 0, 38), (0, 24, 42)], tempos=(tempo(90),), instrument=DRUMS)
    assert np.array_equal(synthesise(q), synthesise(q))
