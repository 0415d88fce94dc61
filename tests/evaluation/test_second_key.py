"""A second opinion on keys: right where the key is known, and another than the labeller's."""

import dataclasses
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.evaluation.second_key import relative_key, second_key
from meloformer.midi.default_corpus import default_corpus_paths
from meloformer.midi.grid import METRE_INDEX
from meloformer.midi.harmony import estimate_key
from meloformer.midi.musicxml import read_musicxml
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.vocabulary import NUM_KEYS, key_name
from tests.midi.pieces import canonical_piece

# Importing it takes seconds, and only its files are read.
needs_scores = pytest.mark.skipif(find_spec("music21") is None, reason="carries the scores")

MAJOR_CADENCE = ([60, 64, 67], [60, 65, 69], [62, 67, 71], [60, 64, 67])
MINOR_CADENCE = ([60, 63, 67], [60, 65, 68], [62, 67, 71], [60, 63, 67])


def cadence(chords, tonic: int = 0, instrument: int = 1) -> QuantisedPiece:
    notes = [
        (bar, instrument, 0, pitch + tonic, 96, 66)
        for bar, pitches in enumerate(chords)
        for pitch in pitches
    ]
    return canonical_piece([METRE_INDEX[4, 4]] * len(chords), [40] * len(chords), notes)


@pytest.mark.parametrize("tonic", range(12))
def test_a_cadence_is_in_its_key(tonic: int) -> None:
    assert second_key(cadence(MAJOR_CADENCE, tonic)) == tonic
    assert second_key(cadence(MINOR_CADENCE, tonic)) == 12 + tonic


def test_drums_have_no_key_and_change_none() -> None:
    assert second_key(cadence(MAJOR_CADENCE, instrument=0)) is None
    music = cadence(MINOR_CADENCE, 4)
    of_notes = ("bar", "instrument", "onset_steps", "pitch", "duration_steps", "velocity")
    twice = {name: np.tile(getattr(music, name), 2) for name in of_notes}
    twice["instrument"][: music.num_notes] = 0
    twice["pitch"][: music.num_notes] += 1
    assert second_key(dataclasses.replace(music, **twice)) == 12 + 4


@given(
    st.lists(st.tuples(st.integers(36, 84), st.integers(1, 48)), min_size=1, max_size=12),
    st.integers(1, 11),
)
def test_a_transposed_piece_is_in_the_transposed_key(notes, semitones: int) -> None:
    rows = [(i, 1, 0, pitch, steps, 66) for i, (pitch, steps) in enumerate(notes)]
    music = canonical_piece([METRE_INDEX[4, 4]] * len(rows), [40] * len(rows), rows)
    moved = dataclasses.replace(music, pitch=music.pitch + semitones)
    mode, tonic = divmod(second_key(music), 12)
    assert second_key(moved) == 12 * mode + (tonic + semitones) % 12


def test_relatives_share_their_signature_and_are_mutual() -> None:
    assert key_name(relative_key(7)) == "E minor"
    for key in range(NUM_KEYS):
        assert relative_key(key) != key and relative_key(relative_key(key)) == key


def written_key(path: Path) -> int | None:
    """What the score states: fifths and mode of its first key signature."""
    text = path.read_bytes()
    if path.suffix == ".mxl":
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
            text = archive.read(largest)
    said = re.search(rb"<fifths>(-?\d+)</fifths>\s*<mode>(major|minor)</mode>", text)
    if said is None:
        return None
    tonic = int(said[1]) * 7 % 12
    return tonic if said[2] == b"major" else 12 + (tonic + 9) % 12


def hits(paths: list[Path]) -> dict[str, float]:
    """Shares of scores whose written key each finder names."""
    found = []
    for path in paths:
        key = written_key(path)
        if key is not None:
            music = quantise(read_musicxml(path))
            second, first = second_key(music), estimate_key(music)
            found.append((second == key, second in (key, relative_key(key)), first == key))
    names = ("second", "second or relative", "labeller")
    return dict(zip(names, np.mean(found, axis=0), strict=True))


@needs_scores
def test_written_keys_of_real_scores_are_found() -> None:
    shares = hits(default_corpus_paths()[::30])
    assert shares["second"] > 0.7 and shares["second or relative"] > 0.8
    assert shares["second"] > shares["labeller"]


@needs_scores
@pytest.mark.slow
def test_written_keys_of_the_whole_corpus_are_found() -> None:
    shares = hits(default_corpus_paths())
    assert shares["second"] > 0.78 and shares["second or relative"] > 0.86


@pytest.mark.slow
def test_music21_hears_the_same_keys_with_the_same_profiles() -> None:
    music21 = pytest.importorskip("music21", reason="another implementation of the same profiles")
    from music21.analysis.discrete import BellmanBudge

    names = {key_name(index): index for index in range(NUM_KEYS)}
    sharps = {"A#": "Bb", "D#": "Eb", "G#": "Ab", "C-": "B", "D-": "C#", "G-": "F#"}
    agree = []
    for path in default_corpus_paths()[3::40]:
        stream = music21.converter.parse(path)
        tonic, mode, _ = BellmanBudge().process(stream.flatten())[0][:3]
        name = sharps.get(tonic.name, tonic.name.replace("-", "b"))
        agree.append(names[f"{name} {mode}"] == second_key(quantise(read_musicxml(path))))
    # Repeats are written out here and not there.
    assert np.mean(agree) > 0.9
