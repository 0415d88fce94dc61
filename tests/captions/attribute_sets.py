"""Attributes that a window may have, all the values that words exist for among them."""

import itertools
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from meloformer.captions.label_words import GENRES, MOODS, SCENES
from meloformer.midi.grid import METRES, NUM_INSTRUMENTS, TEMPOS_BPM
from meloformer.tokens.vocabulary import NUM_CHORDS, NUM_KEYS, chord_name, key_name

REGISTERS = ("low", "middle", "high")
DYNAMICS = ("soft", "moderate", "loud")
TEXTURES = ("percussion", "monophonic", "thin", "chordal", "polyphonic", "layered")


def attributes_with(**given: Any) -> dict[str, Any]:
    """A window that something is known of in every respect."""
    return {
        "tempo_bpm": 120.0,
        "key": "E minor",
        "key_index": 16,
        "metre": "4/4",
        "instruments": [0, 31, 34],
        "main_instruments": [31, 0, 34],
        "has_drums": True,
        "bars": 16,
        "seconds": 32.0,
        "density": 4.0,
        "register": "middle",
        "dynamics": "loud",
        "chords": ["Emin", "Cmaj7", "Gmaj", "Ddom7"],
        "texture": "layered",
        "labels": {"genre": ["rock"], "mood": ["epic"], "scene": ["a battle scene"]},
        **given,
    }


def every_value() -> Iterator[dict[str, Any]]:
    """Windows in which every value that has words of its own comes at least once."""
    for index in range(NUM_KEYS):
        yield attributes_with(key=key_name(index), key_index=index)
    for bpm in TEMPOS_BPM.tolist():
        yield attributes_with(tempo_bpm=bpm)
    for numerator, denominator in METRES:
        yield attributes_with(metre=f"{numerator}/{denominator}")
    for index in range(NUM_INSTRUMENTS):
        yield attributes_with(instruments=[index], main_instruments=[index], has_drums=index == 0)
    for index in range(NUM_CHORDS - 1):
        yield attributes_with(chords=[chord_name(index), "Cmaj"])
    for bars, seconds in itertools.product((1, 2, 30, 160), (1.0, 44.0, 89.0, 90.0, 119.0, 700.0)):
        yield attributes_with(bars=bars, seconds=seconds)
    for density in (0.01, 1.4, 1.5, 2.5, 8.9, 9.0, 60.0):
        yield attributes_with(density=density)
    for register, dynamics in zip(REGISTERS, DYNAMICS, strict=True):
        yield attributes_with(register=register, dynamics=dynamics)
    for texture in TEXTURES:
        yield attributes_with(texture=texture)
    for kind, table in (("genre", GENRES), ("mood", MOODS), ("scene", SCENES)):
        for name in table:
            yield attributes_with(labels={kind: [name]})


def some_attributes() -> st.SearchStrategy[dict[str, Any]]:
    """Any combination of what is known and what is not."""
    full = st.sampled_from(list(every_value()))
    return st.builds(
        lambda attributes, dropped: {
            name: value for name, value in attributes.items() if name not in dropped
        },
        full,
        st.sets(
            st.sampled_from(sorted(attributes_with()))
            # A key needs its name, main instruments their list: they come and go together.
        ).map(_whole),
    )


def _whole(dropped: set[str]) -> set[str]:
    pairs = ({"key", "key_index"}, {"instruments", "main_instruments"})
    for pair in pairs:
        if dropped & pair:
            dropped = dropped | pair
    return dropped
