"""How wishes are spelt on the command line."""

from collections.abc import Callable

import pytest

from meloformer.errors import GenerationError
from meloformer.generation.spelling import (
    chords_of,
    entries_of,
    instrument_index,
    key_index,
    notes_per_bar_of,
    ranges_of,
)
from meloformer.midi.general_midi import instrument_name
from meloformer.midi.grid import NUM_INSTRUMENTS
from meloformer.midi.instrument_names import instrument
from meloformer.tokens.vocabulary import NUM_CHORDS, NUM_KEYS, chord_name, key_name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Cmaj Amin Fmaj G7", "Cmaj Amin Fmaj Gdom7"),
        ("C Am F G7 Bb F#m7 Cmaj7 Bdim N", "Cmaj Amin Fmaj Gdom7 Bbmaj F#min7 Cmaj7 Bdim N"),
        ("CM7 Cm7 C7 Cm C-", "Cmaj7 Cmin7 Cdom7 Cmin Cmin"),
        ("Db D# Gb G# A# Cb B# E# Fb", "C#maj Ebmaj F#maj Abmaj Bbmaj Bmaj Cmaj Fmaj Emaj"),
        ("Eaug E+ Eo E° NC N.C.", "Eaug Eaug Edim Edim N N"),
        ("C*3 G", "Cmaj Cmaj Cmaj Gmaj"),
        ("| C | Am*2 | G |", "Cmaj Amin Amin Gmaj"),
    ],
)
def test_common_spellings_of_chords_are_read(text: str, names: str) -> None:
    expected = names.split()
    assert [chord_name(index) for index in chords_of([text])] == expected
    assert chords_of(text.split()) == chords_of([text]), "quoted or not"


def test_every_chord_is_read_by_the_name_that_the_vocabulary_gives_it() -> None:
    names = [chord_name(index) for index in range(NUM_CHORDS)]
    assert chords_of(names) == tuple(range(NUM_CHORDS))


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (chords_of, "H", "--chords H: no chord of the bar tokens; allowed: a root"),
        (chords_of, "C9", "--chords C9: no chord"),
        (chords_of, "Csus4", "--chords Csus4"),
        (chords_of, "am", "--chords am"),
        (chords_of, "C/G", "--chords C/G"),
        (chords_of, "C*0", r"--chords C\*0: no number of bars"),
        (chords_of, "C G | Am", "found C G between two bar lines; allowed: one chord a bar"),
        (chords_of, " | ", "found no chord"),
        (entries_of, "drums", "--enter drums: allowed are an instrument and the bar"),
        (entries_of, "drums:-1", "--enter drums:-1"),
        (entries_of, "200:1", "--enter 200: allowed are drums, the programs 0 to 127 and"),
        (ranges_of, "33:28", "--pitch_range 33:28: allowed are"),
        (ranges_of, "28-52", "--pitch_range 28-52"),
        (key_index, "H major", "--key 'H major': allowed are a root"),
        (key_index, "C dorian", "--key 'C dorian'"),
        (key_index, "", "--key ''"),
        (notes_per_bar_of, "few", "--notes_per_bar few: allowed are"),
        (notes_per_bar_of, "-3", "--notes_per_bar -3"),
    ],
)
def test_what_is_no_wish_is_refused_in_one_line(read: Callable, text: str, message: str) -> None:
    with pytest.raises(GenerationError, match=message) as refusal:
        read([text] if read in (chords_of, entries_of, ranges_of) else text)
    assert "\n" not in str(refusal.value)


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(GenerationError, match="33 enters twice"):
        entries_of(["33:0", "33:1"])
    with pytest.raises(GenerationError, match="33 has two"):
        ranges_of(["33:28-30", "33:28-52"])


def test_keys_are_read_as_people_write_them() -> None:
    assert [key_index(key_name(index)) for index in range(NUM_KEYS)] == list(range(NUM_KEYS))
    alike = {
        "C": "C major", "am": "A minor", "Bbm": "Bb minor", "g# MINOR": "Ab minor",
        "D♭ major": "C# major", "A# min": "Bb minor", "E 小调": "E minor", "Gmaj": "G major",
        "b minor": "B minor", "BM": "B major", "Cb major": "B major",
    }  # fmt: skip
    assert {text: key_name(key_index(text)) for text in alike} == alike


def test_instruments_are_called_by_names_in_two_languages() -> None:
    names = ["Violin", "小提琴", "string_ensemble_1", "double bass", "#P12", "鼓组", "Piano"]
    programs = [40, 40, 48, 43, 12, -1, 0]
    assert [instrument_index("--instruments", name) - 1 for name in names] == programs
    assert entries_of(["violin:2"]) == ((41, 2),)
    assert ranges_of(["Fretless Bass:30-50"]) == ((36, 30, 50),)


def test_every_instrument_has_names_of_its_own() -> None:
    for index in range(NUM_INSTRUMENTS):
        for name in (instrument_name(index), instrument(index).en, instrument(index).zh):
            assert instrument_index("--instruments", name) == index, name


def test_a_name_of_several_instruments_is_refused_with_their_numbers() -> None:
    with pytest.raises(GenerationError, match="found 9 that are called so") as refusal:
        instrument_index("--instruments", "guitar")
    assert "24 nylon-string guitar, 25 steel-string guitar" in str(refusal.value)
    with pytest.raises(GenerationError, match=r"called so; .* 33 fingered electric bass, 34"):
        instrument_index("--instruments", "贝斯")
    with pytest.raises(GenerationError, match="theremin: allowed are drums, the programs"):
        instrument_index("--instruments", "theremin")


def test_drums_have_a_name_and_programs_a_number() -> None:
    assert [instrument_index("--enter", name) for name in ("Drums", "#D", "0", "127")] == [
        0,
        0,
        1,
        128,
    ]
