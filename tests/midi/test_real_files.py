import io
from collections import Counter
from itertools import pairwise
from pathlib import Path

import miditoolkit
import pytest

from meloformer.errors import MidiError
from meloformer.midi.default_corpus import default_corpus_paths, score_to_midi
from meloformer.midi.piece import Piece
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.midi.write import midi_bytes
from tests.midi.judge import check_against_raw_notes

CORPORA = [
    "easyrpg_rtp",
    "freedoom",
    "js_fakes",
    "mma_grooves",
    "nottingham",
    "openmsx",
    "openscore_lieder",
    "openscore_quartets",
    "pop909",
]
# Slow oracles look at one file in so many.
ONE_IN = 25


def check_against_miditoolkit(data: bytes, piece: Piece) -> None:
    """Assert the same programs and notes as an independent reader's, and the ends of lone notes.

    That reader closes overlapping notes of one pitch all at the first note-off, and gives a note
    the program in force when it ends: programs are therefore compared as a set.
    """
    midi = miditoolkit.MidiFile(file=io.BytesIO(data))
    theirs, their_ends = Counter[tuple](), set()
    for instrument in midi.instruments:
        for note in instrument.notes:
            theirs[instrument.is_drum, note.start, note.pitch, note.velocity] += 1
            their_ends.add((instrument.is_drum, note.start, note.pitch, note.end))
    ours = Counter[tuple]()
    for track in piece.tracks:
        notes = track.notes
        columns = (notes.onset_ticks, notes.duration_ticks, notes.pitch, notes.velocity)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        spans = sorted((pitch, onset, onset + duration) for onset, duration, pitch, _ in rows)
        overlapping = {
            first[0] for first, second in pairwise(spans) if second[:2] < (first[0], first[2])
        }
        for onset, duration, pitch, velocity in rows:
            ours[track.is_drum, onset, pitch, velocity] += 1
            if pitch not in overlapping and duration > 1:
                assert (track.is_drum, onset, pitch, onset + duration) in their_ends
    assert ours == theirs
    assert {(t.is_drum, t.program) for t in piece.tracks if len(t.notes)} == {
        (i.is_drum, int(i.program)) for i in midi.instruments if i.notes
    }


def check_round_trip(piece: Piece) -> None:
    quantised = quantise(piece)
    assert quantise(read_midi(midi_bytes(to_piece(quantised)))) == quantised


@pytest.mark.parametrize("nth", range(0, 410, 60))
def test_default_scores_read_alike_in_two_libraries_and_survive_writing(nth: int):
    pytest.importorskip("music21", reason="carries the scores")
    data = score_to_midi(default_corpus_paths()[nth])
    piece = read_midi(data)
    check_against_miditoolkit(data, piece)
    check_round_trip(piece)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CORPORA)
def test_every_real_file_survives_writing_note_for_note(corpus: str, archived_midi):
    num_read = 0
    for name, data in archived_midi(Path("corpora") / f"{corpus}.tar.gz"):
        try:
            piece = read_midi(data)
        except MidiError as error:
            pytest.fail(f"{name}: {error}")
        check_round_trip(piece)
        num_read += 1
    assert num_read > 0


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CORPORA)
def test_raw_notes_of_real_files_are_found_on_the_grid(corpus: str, archived_midi):
    for nth, (_, data) in enumerate(archived_midi(Path("corpora") / f"{corpus}.tar.gz")):
        if nth % ONE_IN == 0:
            check_against_raw_notes(read_midi(data))


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CORPORA)
def test_real_files_read_alike_in_two_libraries(corpus: str, archived_midi):
    for nth, (_, data) in enumerate(archived_midi(Path("corpora") / f"{corpus}.tar.gz")):
        if nth % ONE_IN == 0:
            check_against_miditoolkit(data, read_midi(data))


@pytest.mark.slow
def test_every_damaged_file_ends_as_a_piece_or_a_reasoned_refusal(archived_midi):
    outcomes = Counter[str]()
    for _, data in archived_midi(Path("torture") / "torture_midi.tar.gz"):
        try:
            check_round_trip(read_midi(data))
            outcomes["read"] += 1
        except MidiError as error:
            assert error.detail
            outcomes[error.reason] += 1
    assert outcomes["read"] > 0
    assert outcomes["unreadable"] > 0
