import hashlib
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.evaluation.piece_edits import EDITS, transposed
from meloformer.evaluation.tune_overlap import tune_overlap
from meloformer.midi.limits import MAX_QUARTERS
from meloformer.midi.piece import Notes, Piece, build_piece, build_track
from meloformer.midi.read import read_midi
from meloformer.midi.write import midi_bytes
from meloformer.shards.fingerprints import (
    NO_FINGERPRINT,
    NUM_HASHES,
    _lines,
    fingerprints,
    min_hashes,
    signature,
    signatures,
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
    assert len(fingerprints([with_pitches([48, 55] * 100)])[0]) == 0
    assert len(fingerprints([with_pitches([60] * 100)])[0]) == 0


def test_a_piece_without_figures_has_the_empty_signature() -> None:
    assert (signature(with_pitches([60, 62, 64])) == NO_FINGERPRINT).all()
    assert (signature(with_pitches([60] * 50)) == NO_FINGERPRINT).all()


def test_drums_speak_only_where_there_is_no_melody(pieces: list[Piece]) -> None:
    beat = with_pitches([36, 42, 38, 42, 46, 38] * 10, is_drum=True)
    assert len(fingerprints([beat])[0]) > 0
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
            hashes = min_hashes([first, second])
            estimate = (hashes[0] == hashes[1]).mean()
            true = shared / len(values)
            errors.append((estimate - true) / np.sqrt(max(true * (1 - true), 1e-4) / NUM_HASHES))
    assert abs(np.mean(errors)) < 0.3
    assert 0.7 < np.std(errors[:80]) < 1.3


@st.composite
def played_pieces(draw: st.DrawFn) -> Piece:
    """Few pitches and waits, so that figures come back; chords, drums, tracks of any length."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    ticks_per_quarter = draw(st.sampled_from([1, 96, 220, 480, 32_767]))
    tracks = []
    for _ in range(draw(st.integers(1, 4))):
        num_notes = draw(st.sampled_from([1, 4, 5, 9, 23, 24, 25, 120]))
        onset = random.integers(0, 3, num_notes).cumsum() * ticks_per_quarter // 2
        pitch = random.integers(60, 60 + draw(st.integers(1, 9)), num_notes)
        columns = onset, np.ones(num_notes, int), pitch, np.full(num_notes, 64)
        is_drum = draw(st.booleans())
        tracks.append(build_track(program=0, is_drum=is_drum, name="", columns=columns))
    no_tempo, no_metre = (np.zeros(0, int),) * 2, (np.zeros(0, int),) * 3
    return build_piece(
        ticks_per_quarter=ticks_per_quarter,
        tracks=tracks,
        tempos=no_tempo,
        time_signatures=no_metre,
    )


@given(st.lists(played_pieces(), min_size=1, max_size=6), st.randoms())
def test_pieces_taken_together_have_the_signatures_that_they_have_alone(
    several: list[Piece], random: Random
) -> None:
    order = random.sample(range(len(several)), len(several))
    together = signatures([several[index] for index in order])
    assert np.array_equal(together, [signature(several[index]) for index in order])


def test_chorales_taken_together_have_the_signatures_that_they_have_alone(
    pieces: list[Piece],
) -> None:
    assert np.array_equal(signatures(pieces), [signature(piece) for piece in pieces])


def test_no_pieces_have_no_signatures() -> None:
    assert signatures([]).shape == (0, NUM_HASHES)


def test_more_tracks_than_sixteen_bits_can_number_have_the_signatures_that_they_have_alone(
    pieces: list[Piece],
) -> None:
    short = tuple(with_pitches([60 + n, 62, 65, 61, 64]).tracks[0] for n in range(7))
    few = [replace(piece, tracks=piece.tracks + short) for piece in pieces[:2]]
    many = [replace(piece, tracks=piece.tracks + short * 5_500) for piece in pieces[:2]]
    # The same tracks again add no figure.
    assert np.array_equal(signatures(many), signatures(few))


def test_onsets_are_rounded_to_the_nearest_step_and_halves_up() -> None:
    def lines(onsets: list[int], ticks_per_quarter: int) -> list[int]:
        columns = np.array(onsets), np.ones(len(onsets), int), np.full(len(onsets), 60)
        track = build_track(
            program=0, is_drum=False, name="", columns=(*columns, np.full(len(onsets), 64))
        )
        found = _lines([track.notes], np.array([len(onsets)]), np.array([ticks_per_quarter]))
        return np.unique(found.step).tolist()

    random = np.random.default_rng(0)
    for ticks_per_quarter in (1, 47, 96, 480, 32_749, 32_767):
        longest = MAX_QUARTERS * ticks_per_quarter
        onsets = [0, longest, *random.integers(0, longest, 2_000).tolist()]
        # Around every half there may be.
        halves = [
            (2 * step + 1) * ticks_per_quarter // 48 for step in random.integers(0, 10**6, 999)
        ]
        onsets = sorted({*onsets, *halves, *(half + 1 for half in halves)})
        exact = {(48 * onset + ticks_per_quarter) // (2 * ticks_per_quarter) for onset in onsets}
        assert lines(onsets, ticks_per_quarter) == sorted(exact)


def test_signatures_are_the_same_on_every_machine() -> None:
    scale = with_pitches([60 + (n * n) % 17 for n in range(64)])
    digest = hashlib.sha256(signature(scale).astype("<u4").tobytes()).hexdigest()
    assert digest == "4791689c615fcee47e1909ef9fae4e03585c8de879eb58548ee05a9181a432a2"


def test_transposing_drums_is_no_edit(pieces: list[Piece]) -> None:
    beat = with_pitches([36, 42, 38, 42, 46, 38] * 10, is_drum=True)
    assert transposed(beat, np.random.default_rng(0)) is None
