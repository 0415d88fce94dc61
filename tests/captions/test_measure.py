"""What is measured of pieces whose every property is known."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.captions.measure import (
    LONGEST_PROGRESSION,
    measure_window,
    most_frequent_progression,
)
from meloformer.midi.filters import bar_seconds
from meloformer.midi.grid import METRE_INDEX, NUM_INSTRUMENTS, TEMPOS_BPM
from meloformer.midi.instrument_names import FAMILIES, PROGRAMS, family, instrument
from meloformer.tokens.hid import decode, encode
from meloformer.tokens.vocabulary import NO_CHORD, chord_name, density_bin, length_bin
from meloformer.tokens.windows import cut_window
from tests.tokens.pieces import piece_of, quantised_pieces

PIANO, VIOLIN, DRUMS = 1, 41, 0
TEMPO_120 = int(np.flatnonzero(TEMPOS_BPM == 120)[0])
TEMPO_60 = int(np.flatnonzero(TEMPOS_BPM == 60)[0])


def piece(notes, *, bars=4, metre=(4, 4), tempo=TEMPO_120):
    return piece_of([METRE_INDEX[metre]] * bars, [tempo] * bars, notes)


def minor_scale(instrument_index, first_pitch, *, bars=4, velocity=66):
    """E minor's notes, its tonic longest, bar after bar."""
    steps = [(0, 0), (24, 2), (36, 3), (48, 7), (60, 5), (72, 0)]
    return [
        (bar, instrument_index, onset, first_pitch + up, 12 if up else 24, velocity)
        for bar in range(bars)
        for onset, up in steps
    ]


def test_a_waltz_in_e_minor_at_sixty_for_violin_is_measured_as_one():
    notes = minor_scale(VIOLIN, 64, bars=8)
    notes = [note for note in notes if note[2] < 72]
    music = decode(encode(piece(notes, bars=8, metre=(3, 4), tempo=TEMPO_60)))
    found = measure_window(music)
    assert (found.tempo_bpm, found.metre, found.key) == (60.0, "3/4", "E minor")
    assert (found.tempo_index, found.metre_index) == (TEMPO_60, METRE_INDEX[3, 4])
    assert (found.instruments, found.families) == ([VIOLIN], ["solo strings"])
    assert (found.has_drums, found.texture) == (False, "monophonic")
    assert (found.bars, found.length_bin, found.seconds) == (8, length_bin(8), 24.0)
    assert found.density == round(5 / 3, 2)
    assert (found.pitch_range, found.register, found.dynamics) == ([64, 71], "middle", "moderate")
    assert not found.tempo_changes and not found.metre_changes


def test_drums_alone_have_no_key_no_register_and_no_chords():
    notes = [(bar, DRUMS, onset, 36, 6, 102) for bar in range(4) for onset in (0, 24, 48, 72)]
    found = measure_window(piece(notes))
    assert found.key is None and found.key_index is None and found.register is None
    assert (found.chords, found.texture, found.families) == ([], "percussion", [])
    assert found.has_drums and found.instruments == [DRUMS]
    assert found.dynamics == "loud"


def test_main_instruments_are_those_with_the_most_notes():
    counts = {PIANO: 3, VIOLIN: 9, DRUMS: 6, 33: 1}
    notes = [(0, i, 4 * n, 60, 3, 66) for i, number in counts.items() for n in range(number)]
    found = measure_window(piece(notes, bars=1))
    assert found.main_instruments == [VIOLIN, DRUMS, PIANO]
    assert found.instruments == [DRUMS, PIANO, 33, VIOLIN]


def test_the_tempo_is_that_of_half_the_playing_time_and_its_changes_are_told():
    bar_tempo = [TEMPO_60, TEMPO_60, TEMPO_120, TEMPO_120, TEMPO_120]
    notes = minor_scale(PIANO, 60, bars=5)
    found = measure_window(piece_of([METRE_INDEX[4, 4]] * 5, bar_tempo, notes))
    # Two bars of 4 s against three of 2 s.
    assert (found.tempo_bpm, found.tempo_changes, found.seconds) == (60.0, True, 14.0)


def test_a_pick_up_is_no_change_of_metre_and_a_bar_amidst_is():
    metres = [METRE_INDEX[m] for m in ((1, 4), (4, 4), (4, 4), (3, 4))]
    notes = [(bar, PIANO, 0, 60, 12, 66) for bar in range(4)]
    found = measure_window(piece_of(metres, [TEMPO_120] * 4, notes))
    assert (found.metre, found.metre_changes) == ("4/4", False)
    swapped = [metres[1], metres[3], metres[2], metres[1]]
    assert measure_window(piece_of(swapped, [TEMPO_120] * 4, notes)).metre_changes


@pytest.mark.parametrize(
    ("at_once", "instruments", "texture"),
    [((0,), [PIANO], "monophonic"), ((0, 4, 7), [PIANO], "chordal"), ((0, 7), [PIANO], "thin")],
)
def test_texture_follows_what_sounds_at_once(at_once, instruments, texture):
    notes = [
        (bar, i, onset, 60 + up, 24, 66)
        for bar in range(4)
        for i in instruments
        for onset in (0, 24, 48, 72)
        for up in at_once
    ]
    found = measure_window(piece(notes))
    assert (found.texture, found.polyphony) == (texture, float(len(at_once)))


def test_polyphony_leaves_silence_out_and_counts_overlaps():
    # 0..24 one note, 24..48 two of them, then silence up to 72, then one for 24.
    notes = [(0, PIANO, 0, 60, 48, 66), (0, PIANO, 24, 64, 24, 66), (0, PIANO, 72, 60, 24, 66)]
    assert measure_window(piece(notes, bars=1)).polyphony == round(96 / 72, 2)


def test_register_and_dynamics_follow_pitch_and_velocity():
    for up, velocity, register, dynamics in (
        (36, 30, "low", "soft"),
        (60, 78, "middle", "moderate"),
        (76, 110, "high", "loud"),
    ):
        found = measure_window(piece(minor_scale(PIANO, up, velocity=velocity)))
        assert (found.register, found.dynamics) == (register, dynamics)


@given(st.lists(st.sampled_from([0, 7, 35, 49, NO_CHORD]), max_size=40))
def test_the_progression_is_the_longest_that_comes_twice(chords):
    names = [chord_name(chord) for chord in chords if chord != NO_CHORD]
    changes = [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
    counts = [
        Counter(tuple(changes[i : i + n]) for i in range(len(changes) - n + 1)) for n in (4, 3, 2)
    ]
    found = tuple(most_frequent_progression(np.array(chords, dtype=int)))
    repeated = [count for count in counts if count and max(count.values()) > 1]
    if not repeated:
        assert found == ()
    else:
        assert len(found) <= LONGEST_PROGRESSION
        assert repeated[0][found] == max(repeated[0].values())


@given(quantised_pieces())
def test_a_window_is_measured_from_its_own_bars_alone(music):
    ids = encode(music)
    for first, last in {(0, music.num_bars), (music.num_bars - 1, music.num_bars)}:
        window = decode(cut_window(ids, first, last))
        if not window.num_notes:
            continue
        found = measure_window(window)
        inside = (music.bar >= first) & (music.bar < last)
        assert found.bars == last - first
        assert found.instruments == sorted(set(music.instrument[inside].tolist()))
        assert found.seconds == round(float(bar_seconds(music)[first:last].sum()), 1)
        assert found.density_bin == density_bin(
            inside.sum() * 24 / np.diff(music.bar_start_steps)[first:last].sum()
        )


def test_every_instrument_of_the_grid_has_its_own_name_in_both_languages():
    names = [instrument(index) for index in range(NUM_INSTRUMENTS)]
    assert len({name.en for name in names}) == len({name.zh for name in names}) == NUM_INSTRUMENTS
    assert len(PROGRAMS) == 128 and len(FAMILIES) == 16
    assert all(name.zh.isascii() is False and name.en.isascii() for name in (*names, *FAMILIES))
    assert [family(1 + program) for program in (0, 7, 8, 127)] == [0, 0, 1, 15]
