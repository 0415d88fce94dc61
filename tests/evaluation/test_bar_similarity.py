"""The similarity of bars against music whose likeness is known, and against plain loops."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.evaluation.bar_similarity import (
    BarPairs,
    bar_similarities,
    chance_error,
    similarity_by_distance,
    similarity_error,
    variety,
)
from meloformer.midi.grid import METRE_INDEX
from meloformer.midi.quantised import QuantisedPiece
from tests.midi.pieces import canonical_pieces

# Instrument, onset, pitch and duration: bars of four notes.
A = [(1, 24 * beat, 60 + beat, 12) for beat in range(4)]
B = [(1, 24 * beat, 80 + beat, 12) for beat in range(4)]
REST: list[tuple[int, int, int, int]] = []


def piece(*bars: list[tuple[int, int, int, int]], velocity: int = 66) -> QuantisedPiece:
    """Bars of 4/4, wherever they rest."""
    notes = [(bar, *note) for bar, of_bar in enumerate(bars) for note in sorted(of_bar)]
    bar, instrument, onset, pitch, duration = np.array(notes, np.int32).reshape(-1, 5).T
    return QuantisedPiece(
        bar_metre=np.full(len(bars), METRE_INDEX[4, 4], np.int32),
        bar_tempo=np.full(len(bars), 40, np.int32),
        bar=bar,
        instrument=instrument,
        onset_steps=onset,
        pitch=pitch,
        duration_steps=duration,
        velocity=np.full(len(notes), velocity, np.int32),
    )


def naive_pairs(music: QuantisedPiece, max_distance: int) -> tuple[list[float], list[int]]:
    bars: list[set] = [set() for _ in range(music.num_bars)]
    columns = (music.bar, music.instrument, music.onset_steps, music.pitch, music.duration_steps)
    for bar, *note in zip(*(column.tolist() for column in columns), strict=True):
        bars[bar].add(tuple(note))
    sums, counts = [0.0] * max_distance, [0] * max_distance
    for i in range(len(bars)):
        for j in range(i + 1, len(bars)):
            if j - i <= max_distance and bars[i] | bars[j]:
                sums[j - i - 1] += len(bars[i] & bars[j]) / len(bars[i] | bars[j])
                counts[j - i - 1] += 1
    return sums, counts


def random_piece(random: np.random.Generator, num_bars: int) -> QuantisedPiece:
    """Bars of few or no notes, of which many are common."""
    chosen = random.random((num_bars, len(A + B))) < random.choice([0, 0.2, 0.7], (num_bars, 1))
    return piece(*([note for note, on in zip(A + B, of, strict=True) if on] for of in chosen))


@settings(max_examples=12)
@given(canonical_pieces(), st.integers(0, 9))
def test_sums_and_counts_are_those_of_a_plain_double_loop(music, max_distance: int) -> None:
    sums, counts = similarity_by_distance(music, max_distance)
    plain_sums, plain_counts = naive_pairs(music, max_distance)
    assert counts.tolist() == plain_counts
    np.testing.assert_allclose(sums, plain_sums, atol=1e-12)


@pytest.mark.parametrize(
    "other",
    [(2, 72, 63, 12), (1, 73, 63, 12), (1, 72, 64, 12), (1, 72, 63, 24)],
    ids=["instrument", "onset", "pitch", "duration"],
)
def test_one_note_changed_leaves_three_of_five(other: tuple[int, int, int, int]) -> None:
    assert similarity_by_distance(piece(A, [*A[:3], other]), 1)[0].tolist() == [3 / 5]
    assert bar_similarities(piece(A), piece([*A[:3], other])).tolist() == [3 / 5]


def test_loudness_and_tempo_make_no_other_bar() -> None:
    loud = piece(A, B, velocity=126)
    fast = dataclasses.replace(loud, bar_tempo=loud.bar_tempo + 5)
    assert bar_similarities(piece(A, B), fast).tolist() == [1, 1]


def test_a_moved_bar_moves_its_likeness_to_another_distance() -> None:
    at = [BarPairs.of([piece(*bars)], 3).curve() for bars in ([A, A, B, B], [A, B, A, B])]
    np.testing.assert_allclose(at[0], [2 / 3, 0, 0])
    np.testing.assert_allclose(at[1], [0, 1, 0])
    # One apart 2/3, two apart 1, and nothing at three.
    error = similarity_error(*(BarPairs.of([piece(*b)], 3) for b in ([A, A, B, B], [A, B, A, B])))
    assert error.mean == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_rests_are_no_repetition_and_a_rest_beside_music_is_none_either() -> None:
    sums, counts = similarity_by_distance(piece(REST, REST, A, A, REST), 2)
    assert sums.tolist() == [1, 0] and counts.tolist() == [3, 3]
    assert np.isnan(bar_similarities(piece(REST, A), piece(REST, A))[0])


def test_distances_without_a_pair_are_left_out_of_the_error() -> None:
    short, long = BarPairs.of([piece(A, A)], 3), BarPairs.of([piece(A, B, A, B)], 3)
    assert np.isnan(short.curve()[1:]).all()
    assert similarity_error(short, long).mean == 1, "bars one apart alone: 1 and 0"
    nothing = similarity_error(BarPairs.of([piece(A), None], 3), long)
    assert nothing.n == 0 and np.isnan(nothing.mean)
    no_distance = BarPairs.of([piece(A, A)], 0)
    assert similarity_error(no_distance, no_distance).n == 0
    assert chance_error(BarPairs.of([None], 3)).n == 0


@pytest.mark.parametrize("seed", range(5))
def test_curves_pool_all_pairs_and_the_order_of_pieces_leaves_the_error(seed: int) -> None:
    random = np.random.default_rng(seed)
    pieces, others = (
        [random_piece(random, int(random.integers(1, 7))) for _ in range(num_pieces)]
        for num_pieces in (5, 4)
    )
    plain = [naive_pairs(music, 6) for music in pieces]
    sums, counts = (np.sum([one[part] for one in plain], axis=0) for part in (0, 1))
    curve = BarPairs.of(pieces, 6).curve()
    np.testing.assert_allclose(curve[counts > 0], (sums / np.maximum(counts, 1))[counts > 0])
    assert np.isnan(curve[counts == 0]).all() and (counts == 0).any()

    reference = BarPairs.of(others, 6)
    shuffled = [pieces[place] for place in random.permutation(len(pieces))]
    found, again = (
        similarity_error(BarPairs.of(music, 6), reference) for music in (pieces, shuffled)
    )
    assert again.mean == pytest.approx(found.mean) and again.n == found.n


def test_music_has_no_error_against_itself_piece_by_piece() -> None:
    pairs = BarPairs.of([piece(A, A, B), piece(A, B, A), piece(B, B, B)], 2)
    itself = similarity_error(pairs, pairs, in_pairs=True)
    assert (itself.mean, itself.low, itself.high, itself.n) == (0, 0, 0, 3)
    assert similarity_error(pairs, pairs).mean == 0 < chance_error(pairs).mean


def random_pairs(random: np.random.Generator, num_pieces: int, means: np.ndarray) -> BarPairs:
    """Pieces that are alike to many a degree."""
    counts = np.tile(np.arange(len(means), 0, -1), (num_pieces, 1))
    likeness = random.beta(4 * means, 4 * (1 - means), size=(num_pieces, len(means)))
    return BarPairs(sums=likeness * counts, counts=counts)


def test_intervals_hold_the_true_error_be_it_large_or_none() -> None:
    means, true = np.full(8, 0.3), {0.0: 0, 0.06: 0, 0.2: 0}
    for error in true:
        for trial in range(40):
            random = np.random.default_rng(trial)
            pieces, reference = (random_pairs(random, 80, mean) for mean in (means + error, means))
            found = similarity_error(pieces, reference, seed=trial, num_resamples=200)
            assert found.low <= found.mean <= found.high and found.n == 80
            true[error] += found.low <= error <= found.high
    assert min(true.values()) >= 35, true


def test_a_second_draw_errs_as_far_as_chance_says() -> None:
    means, held = np.full(8, 0.3), 0
    for trial in range(60):
        random = np.random.default_rng(trial)
        pieces, reference = (random_pairs(random, 80, means) for _ in range(2))
        chance = chance_error(reference, seed=trial, num_resamples=200)
        held += (
            chance.low <= similarity_error(pieces, reference, num_resamples=2).mean <= chance.high
        )
    assert held >= 52


def test_pieces_in_pairs_tell_smaller_errors_apart() -> None:
    random = np.random.default_rng(0)
    reference = random_pairs(random, 60, np.full(8, 0.3))
    pieces = BarPairs(sums=reference.sums * 0.9, counts=reference.counts)
    alone, paired = (similarity_error(pieces, reference, in_pairs=pair) for pair in (False, True))
    assert alone.mean == paired.mean
    assert (paired.high - paired.low) * 2 < alone.high - alone.low


def test_variety_is_0_of_equal_pieces_and_1_of_disjoint_ones_whatever_rests() -> None:
    music = piece(REST, A, B, A)
    assert variety(music, music) == 0
    assert variety(music, piece(REST, B, A, B)) == 1
    assert variety(music, piece(REST, A, B, B)) == pytest.approx(1 / 3)
    assert variety(piece(A, REST), piece(A, B)) == 0.5
    assert variety(piece(A, B, A), piece(A)) == 0, "as far as both go"
    assert np.isnan(variety(piece(REST, A), piece(REST)))


@pytest.mark.parametrize("seed", range(5))
def test_variety_is_the_same_both_ways_and_a_share(seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = random_piece(random, 12), random_piece(random, 9)
    assert 0 < variety(one, other) < 1
    assert variety(other, one) == variety(one, other)
