"""Chords and keys of progressions that everybody knows."""

import math

import numpy as np
import pytest

from meloformer.evaluation import statistics_harmony as h
from meloformer.evaluation.statistics_table import measure
from meloformer.midi.harmony import NO_CHORD
from meloformer.tokens.vocabulary import CHORD_QUALITIES, NUM_CHORDS, PITCH_CLASSES, chord_name
from tests.evaluation.test_statistics import note, piece

CHORDS = {chord_name(index): index for index in range(NUM_CHORDS)}
C_MAJOR, A_MINOR = 0, 12 + 9


def chords(*names: str) -> np.ndarray:
    return np.array([CHORDS[name] for name in names], np.int32)


def test_chords_of_a_key_are_those_that_a_textbook_lists() -> None:
    assert h.chords_in_key(chords("Cmaj", "Dmin", "Emin", "Fmaj", "Gdom7", "Bdim"), C_MAJOR) == 1
    assert h.chords_in_key(chords("Cmaj", "Dmaj", "N", "Cmaj"), C_MAJOR) == pytest.approx(2 / 3)
    # The dominant of minor, and the chord on its seventh degree.
    assert h.chords_in_key(chords("Amin", "Dmin", "Emaj", "Gmaj"), A_MINOR) == 1
    assert h.chords_in_key(chords("Amaj"), A_MINOR) == 0
    assert math.isnan(h.chords_in_key(chords("N"), C_MAJOR))
    assert math.isnan(h.chords_in_key(chords("Cmaj"), None))


def test_a_transposed_chord_in_a_transposed_key_is_judged_alike() -> None:
    for quality in CHORD_QUALITIES:
        for step in range(12):
            found = {
                h.chords_in_key(
                    chords(PITCH_CLASSES[(step + shift) % 12] + quality), (C_MAJOR + shift) % 12
                )
                for shift in range(12)
            }
            assert len(found) == 1, (quality, step)


def test_changes_are_counted_between_bars_that_both_have_a_chord() -> None:
    assert h.chord_changes(chords("Cmaj", "Cmaj", "N", "Fmaj", "Gmaj")) == 1 / 2
    assert math.isnan(h.chord_changes(chords("Cmaj", "N", "Cmaj")))
    assert h.chord_entropy(chords("Cmaj", "Fmaj", "Cmaj", "Fmaj", "N")) == 1
    assert h.chord_entropy(chords("Cmaj", "Cmaj")) == 0


def test_bars_without_a_pitched_note_want_no_chord() -> None:
    sounds = np.array([True, True, False])
    assert h.chord_bars(chords("Cmaj", "N", "N"), sounds) == 1 / 2
    assert math.isnan(h.chord_bars(chords("N"), np.array([False])))
    assert CHORDS["N"] == NO_CHORD


def test_a_cadence_in_notes_is_heard_as_one() -> None:
    triads = {0: (60, 64, 67), 1: (65, 69, 72), 2: (67, 71, 74), 3: (60, 64, 67)}
    music = piece(*(note(bar, 0, p, 96) for bar, triad in triads.items() for p in triad))
    found = measure(music)
    assert found["major"] == 1 and found["chords_in_key"] == 1 and found["chord_bars"] == 1
    assert found["chord_changes"] == 1 and found["chord_entropy"] == pytest.approx(1.5)
