import numpy as np
import pytest

from meloformer.evaluation.piece_edits import EDITS, SHARE_CHANGED
from meloformer.evaluation.tune_overlap import tune_overlap
from meloformer.midi.default_corpus import chorale_paths, score_to_midi
from meloformer.midi.piece import Piece
from meloformer.midi.read import read_midi


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    return [read_midi(score_to_midi(path)) for path in chorale_paths()[100:104]]


def notes_of(piece: Piece) -> set[tuple[int, int, int]]:
    return {
        (number, onset, pitch)
        for number, track in enumerate(piece.tracks)
        for onset, pitch in zip(
            track.notes.onset_ticks.tolist(), track.notes.pitch.tolist(), strict=True
        )
    }


@pytest.mark.parametrize("edit", list(EDITS))
def test_every_edit_changes_the_piece_and_the_same_seed_repeats_it(
    pieces: list[Piece], edit: str
) -> None:
    for piece in pieces:
        copies = [EDITS[edit](piece, np.random.default_rng(5)) for _ in range(2)]
        assert copies[0] == copies[1]
        assert copies[0] is not None
        assert copies[0] != piece


def test_changed_notes_are_the_share_that_was_promised(pieces: list[Piece]) -> None:
    for piece in pieces:
        copy = EDITS["5 % of notes changed"](piece, np.random.default_rng(0))
        assert copy is not None
        before, after = notes_of(piece), notes_of(copy)
        assert len(before - after) == pytest.approx(SHARE_CHANGED * len(before), abs=2)


def test_a_dropped_track_leaves_the_others_as_they_are(pieces: list[Piece]) -> None:
    for piece in pieces:
        copy = EDITS["track dropped"](piece, np.random.default_rng(0))
        assert copy is not None
        assert len(copy.tracks) == len(piece.tracks) - 1
        assert all(track in piece.tracks for track in copy.tracks)


def test_a_transposed_or_stretched_copy_coincides_and_another_chorale_does_not(
    pieces: list[Piece],
) -> None:
    for edit in ("transposed", "note values doubled", "note values halved"):
        copy = EDITS[edit](pieces[0], np.random.default_rng(0))
        assert copy is not None
        assert tune_overlap(pieces[0], copy) > 0.95
    assert all(tune_overlap(pieces[0], other) < 0.45 for other in pieces[1:])
