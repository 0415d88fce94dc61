import hashlib
from dataclasses import replace

import numpy as np
import pytest

from meloformer.evaluation.piece_edits import EDITS, transposed
from meloformer.evaluation.tune_overlap import tune_overlap
from meloformer.midi.piece import Notes, Piece, build_piece, build_track
from meloformer.midi.read import read_midi
from meloformer.midi.write import midi_bytes
from meloformer.shards.fingerprints import (
    NO_FINGERPRINT,
    NUM_HASHES,
    fingerprints,
    min_hashes,
    signature,
)


@pytest.fixture(scope="module")
def pieces(chorales: list[bytes]) -> list[Piece]:
    return [read_midi(data) for data in chorales]


def likeness(first: Piece, second: Piece) -> float:
    return float((signature(first) == signature(second)).mean())


def with_pitches(pitches: list[int], *, is_drum: bool = False) -> Piece:
    """Even quarters on one track."""
    onset = np.arange(len(pitches)) * 480
    columns = onset, np.full(len(pitches), 480), np.array(pitches), np.full(len(pitches), 64)
    track = build_track(program=0, is_drum=is_drum, name="", columns=columns)
    no_tempo, no_metre = (np.zeros(0, int),) * 2, (np.zeros(0, int),) * 3
    return build_piece(
        ticks_per_quarter=480, tracks=[track], tempos=no_tempo, time_signatures=no_metre
    )


@pytest.mark.parametrize("edit", ["transposed", "other tempo", "note values doubled"])
def test_key_tempo_and_note_values_leave_the_signature_as_it_is(
    pieces: list[Piece], edit: str
) -> None:
    for piece in pieces:
        copy = EDITS[edit](piece, np.random.default_rng(0))
        assert copy is not None
        assert np.array_equal(signature(copy), signature(piece))


def test_programs_velocities_and_the_order_of_tracks_leave_the_signature_as_it_is(
    pieces: list[Piece],
) -> None:
    for piece in pieces:
        tracks = tuple(
            replace(
                track,
                program=40,
                notes=replace(track.notes, velocity=track.notes.velocity // 2 + 1),
            )
            for track in reversed(piece.tracks)
        )
        assert np.array_equal(signature(replace(piece, tracks=tracks)), signature(piece))


def test_the_order_of_notes_in_a_file_leaves_the_signature_as_it_is(pieces: list[Piece]) -> None:
    def shuffled(notes: Notes) -> Notes:
        order = np.random.default_rng(1).permutation(len(notes))
        return Notes(
            onset_ticks=notes.onset_ticks[order],
            duration_ticks=notes.duration_ticks[order],
            pitch=notes.pitch[order],
            velocity=notes.velocity[order],
        )

    piece = pieces[0]
    tracks = tuple(replace(track, notes=shuffled(track.notes)) for track in piece.tracks)
    assert np.array_equal(signature(replace(piece, tracks=tracks)), signature(piece))


def test_a_written_and_read_piece_keeps_its_signature(pieces: list[Piece]) -> None:
    for piece in pieces:
        assert np.array_equal(signature(read_midi(midi_bytes(piece))), signature(piece))


@pytest.mark.parametrize("edit", ["track dropped", "5 % of notes changed"])
def test_edited_chorales_stay_above_the_threshold(pieces: list[Piece], edit: str) -> None:
    random = np.random.default_rng(0)
    copies = [(piece, EDITS[edit](piece, random)) for piece in pieces for _ in range(4)]
    found = [likeness(piece, copy) >= 0.255 for piece, copy in copies if copy is not None]
    assert np.mean(found) >= 0.95


def test_different_chorales_share_next_to_nothing(pieces: list[Piece]) -> None:
    pairs = [(a, b) for i, a in enumerate(pieces) for b in pieces[:i]]
    different = [(a, b) for a, b in pairs if tune_overlap(a, b) < 0.45]
    assert len(different) > len(pairs) / 2
    assert max(likeness(a, b) for a, b in different) < 0.15


def test_a_loop_with_changed_notes_is_still_known() -> None:
    loop = [60, 64, 67, 72, 71, 67, 65, 62] * 60
    random = np.random.default_rng(0)
    copy = EDITS["5 % of notes changed"](with_pitches(loop), random)
    assert copy is not None
    assert likeness(with_pitches(loop), copy) >= 0.25


def test_an_ostinato_that_many_pieces_hold_is_no_figure() -> None:
    assert len(fingerprints(with_pitches([48, 55] * 100))) == 0
    assert len(fingerprints(with_pitches([60] * 100))) == 0


def test_a_piece_without_figures_has_the_empty_signature() -> None:
    assert (signature(with_pitches([60, 62, 64])) == NO_FINGERPRINT).all()
    assert (signature(with_pitches([60] * 50)) == NO_FINGERPRINT).all()


def test_drums_speak_only_where_there_is_no_melody(pieces: list[Piece]) -> None:
    beat = with_pitches([36, 42, 38, 42, 46, 38] * 10, is_drum=True)
    assert len(fingerprints(beat)) > 0
    piece = pieces[0]
    both = replace(
        piece,
        ticks_per_quarter=480,
        tracks=(*piece.tracks, *beat.tracks),
    )
    assert np.array_equal(signature(both), signature(replace(both, tracks=both.tracks[:-1])))


def test_a_drum_is_a_name_and_not_a_height() -> None:
    low = with_pitches([36, 42, 38, 42, 46, 38] * 10, is_drum=True)
    high = with_pitches([37, 43, 39, 43, 47, 39] * 10, is_drum=True)
    assert likeness(low, high) < 0.1


def test_the_share_of_equal_hashes_estimates_the_share_in_common() -> None:
    random = np.random.default_rng(0)
    errors = []
    for shared in (10, 40, 100):
        for _ in range(40):
            values = random.integers(0, 2**32, 200 - shared, dtype=np.uint32)
            first, second = values[:100], values[100 - shared :]
            estimate = (min_hashes(first) == min_hashes(second)).mean()
            true = shared / len(values)
            errors.append((estimate - true) / np.sqrt(max(true * (1 - true), 1e-4) / NUM_HASHES))
    assert abs(np.mean(errors)) < 0.3
    assert 0.7 < np.std(errors[:80]) < 1.3


def test_signatures_are_the_same_on_every_machine() -> None:
    scale = with_pitches([60 + (n * n) % 17 for n in range(64)])
    digest = hashlib.sha256(signature(scale).astype("<u4").tobytes()).hexdigest()
    assert digest == "4791689c615fcee47e1909ef9fae4e03585c8de879eb58548ee05a9181a432a2"


def test_transposing_drums_is_no_edit(pieces: list[Piece]) -> None:
    beat = with_pitches([36, 42, 38, 42, 46, 38] * 10, is_drum=True)
    assert transposed(beat, np.random.default_rng(0)) is None
