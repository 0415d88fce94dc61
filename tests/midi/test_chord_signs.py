from meloformer.midi.chord_signs import chord_sign
from meloformer.midi.general_midi import PROGRAMS, drum_name
from meloformer.midi.harmony import NUM_CHORDS
from meloformer.tokens.vocabulary import PITCH_CLASSES, chord_name

_ENDINGS = {
    "maj": "",
    "min": "m",
    "dim": "°",
    "aug": "+",
    "maj7": "maj7",
    "min7": "m7",
    "dom7": "7",
}


def test_a_sign_says_what_the_bar_token_of_the_same_chord_says() -> None:
    for chord in range(NUM_CHORDS):
        name = chord_name(chord)
        root = max((p for p in PITCH_CLASSES if name.startswith(p)), key=len)
        sign = root.replace("#", "♯").replace("b", "♭") + _ENDINGS[name.removeprefix(root)]
        assert chord_sign(chord) == sign
    assert chord_sign(NUM_CHORDS) == ""


def test_every_program_has_a_name_of_its_own_and_drums_stand_where_general_midi_has_them() -> None:
    assert len(PROGRAMS) == len(set(PROGRAMS)) == 128
    assert (PROGRAMS[40], PROGRAMS[73], PROGRAMS[127]) == ("Violin", "Flute", "Gunshot")
    drums = {key: drum_name(key) for key in (38, 42, 49, 56, 60, 75, 81)}
    assert list(drums.values()) == [
        *("snare", "closed hat", "crash", "cowbell", "high bongo", "claves", "triangle")
    ]
    assert drum_name(34) == "34" and drum_name(82) == "82"
