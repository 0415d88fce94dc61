"""The compression ratio against music whose repetition is known."""

import itertools
import math

import numpy as np
import pytest

from meloformer.evaluation.control_compression import compression_ratio, repeated_patterns
from meloformer.midi.grid import METRE_INDEX
from meloformer.midi.quantised import QuantisedPiece
from tests.midi.pieces import canonical_piece


def melody(points: list[tuple[int, int]]) -> QuantisedPiece:
    """Notes at (quarter, pitch)."""
    num_bars = max(quarter for quarter, _ in points) // 4 + 1
    notes = [(quarter // 4, 1, quarter % 4 * 24, pitch, 24, 66) for quarter, pitch in points]
    return canonical_piece([METRE_INDEX[4, 4]] * num_bars, [40] * num_bars, notes)


MOTIF = [(0, 60), (1, 67), (2, 61), (3, 72)]


def test_a_motif_that_comes_four_times_is_written_once() -> None:
    music = melody([(quarter + 4 * time, pitch) for time in range(4) for quarter, pitch in MOTIF])
    assert compression_ratio(music) == pytest.approx(16 / (4 + 3))


def test_a_transposed_motif_is_the_same_motif() -> None:
    moves = [(0, 0), (4, 5), (8, 3), (12, -7)]
    music = melody([(q + dq, pitch + dp) for dq, dp in moves for q, pitch in MOTIF])
    assert compression_ratio(music) == pytest.approx(16 / (4 + 3))


def test_notes_without_a_pattern_compress_to_themselves() -> None:
    golomb = [(0, 60), (1, 71), (4, 64), (9, 90), (15, 40), (22, 83)]
    assert compression_ratio(melody(golomb)) == 1
    assert compression_ratio(melody([(0, 60)])) == 1


def test_no_note_has_no_ratio() -> None:
    music = melody(MOTIF)
    nothing = {
        name: getattr(music, name)[:0]
        for name in ("bar", "instrument", "onset_steps", "pitch", "duration_steps", "velocity")
    }
    empty = QuantisedPiece(bar_metre=music.bar_metre, bar_tempo=music.bar_tempo, **nothing)
    assert math.isnan(compression_ratio(empty))


@pytest.mark.parametrize("seed", range(5))
def test_patterns_and_their_places_are_those_of_a_plain_search(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = np.unique(random.integers(0, 8, 24) * 256 + random.integers(60, 66, 24))
    plain = set()
    all_points = set(points.tolist())
    for one, other in itertools.combinations(points.tolist(), 2):
        way = other - one
        pattern = sorted(point for point in all_points if point + way in all_points)
        if len(pattern) < 2:
            continue
        ways = [
            to - pattern[0]
            for to in sorted(all_points)
            if all(point + to - pattern[0] in all_points for point in pattern)
        ]
        plain.add((tuple(p - pattern[0] for p in pattern), tuple(pattern[0] + w for w in ways)))
    found = {
        (tuple((m.pattern - m.pattern[0]).tolist()), tuple((m.pattern[0] + m.vectors).tolist()))
        for m in repeated_patterns(points)
    }
    assert found == plain
