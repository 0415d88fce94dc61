"""Statistics of pieces whose answers are known by hand, against plain loops, and against MusPy."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.evaluation import statistics as s
from meloformer.evaluation.statistics_table import STATISTICS, measure
from meloformer.midi.grid import DRUMS, METRE_INDEX, METRE_STEPS
from meloformer.midi.quantised import QuantisedPiece
from tests.midi.pieces import Note, canonical_piece, canonical_pieces

PIANO, BASS = 1, 33
FOUR_FOUR, THREE_FOUR = METRE_INDEX[4, 4], METRE_INDEX[3, 4]
BAR = 96


def piece(*notes: Note, metres: list[int] | None = None) -> QuantisedPiece:
    """Notes (bar, instrument, onset, pitch, duration, velocity) in 4/4 if not told otherwise."""
    num_bars = max(note[0] for note in notes) + 1
    return canonical_piece(metres or [FOUR_FOUR] * num_bars, [40] * num_bars, list(notes))


def note(bar: int, onset: int, pitch: int, duration: int = 24, instrument: int = PIANO) -> Note:
    return (bar, instrument, onset, pitch, duration, 66)


# A triad, then its root in the bass held over a bar of silence, then drums.
KNOWN = piece(
    *(note(0, 0, pitch) for pitch in (60, 64, 67)),
    note(1, 0, 36, 96, BASS),
    note(1, 48, 72),
    note(3, 0, 40, 24, DRUMS),
    note(3, 48, 40, 24, DRUMS),
)


def test_a_piece_is_measured_as_it_is_by_hand() -> None:
    # C three times, E, G.
    expected = -(0.6 * math.log2(0.6) + 2 * 0.2 * math.log2(0.2))
    assert s.pitch_class_entropy(KNOWN) == pytest.approx(expected)
    assert s.scale_consistency(KNOWN) == 1
    assert s.pitch_range(KNOWN) == 72 - 36
    # 24 steps of three pitches, then 96 of one, of which 24 have a second.
    assert s.polyphony(KNOWN) == pytest.approx((3 * 24 + 96 + 24) / (24 + 96))
    assert s.num_instruments(KNOWN) == 3
    assert s.density(KNOWN) == 7 / 16
    assert s.empty_bars(KNOWN) == 1 / 4, "bar 2 alone: nothing sounds"
    # Of three pairs one sounds together in the second of three bars that sound.
    assert s.instrument_overlap(KNOWN) == pytest.approx(1 / 9)
    # Onsets at 0; 0 and 48; none; 0 and 48: one, two and two steps of 96 differ.
    assert s.groove_consistency(KNOWN) == pytest.approx(1 - 5 / (3 * 96))


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    drums = piece(note(0, 0, 40, 24, DRUMS))
    for of in (s.pitch_class_entropy, s.scale_consistency, s.pitch_range, s.polyphony):
        assert math.isnan(of(drums))
    assert math.isnan(s.instrument_overlap(drums)) and math.isnan(s.groove_consistency(drums))
    assert s.num_instruments(drums) == 1 and s.empty_bars(drums) == 0


def test_a_note_outside_the_scale_counts_as_one() -> None:
    scale = [note(0, 12 * place, 60 + step) for place, step in enumerate((0, 2, 4, 5, 7, 9, 11))]
    assert s.scale_consistency(piece(*scale)) == 1
    # C sharp beside a whole C major: no other scale has more of them.
    assert s.scale_consistency(piece(*scale, note(0, 90, 61))) == 7 / 8


def test_held_notes_sound_in_every_bar_that_they_reach_into() -> None:
    held = piece(note(0, 0, 60, 3 * BAR), note(4, 0, 60))
    assert s.empty_bars(held) == pytest.approx(1 / 5)
    ends_on_the_line = piece(note(0, 0, 60, 2 * BAR), note(3, 0, 60))
    assert s.empty_bars(ends_on_the_line) == pytest.approx(1 / 4)


def test_neighbours_of_another_length_are_left_out_of_the_groove() -> None:
    metres = [FOUR_FOUR, FOUR_FOUR, THREE_FOUR, THREE_FOUR]
    music = piece(
        note(0, 0, 60, 12),
        note(1, 24, 60, 12),
        note(2, 0, 60, 12),
        note(3, 0, 60, 12),
        metres=metres,
    )
    assert s.groove_consistency(music) == pytest.approx(1 - 2 / (96 + 72))


def test_a_repeated_bar_costs_next_to_nothing_and_a_new_one_all_of_it() -> None:
    random = np.random.default_rng(0)

    def bars(shapes: list[int]) -> QuantisedPiece:
        drawn = {
            shape: [note(0, 6 * k, int(random.integers(30, 100)), 6) for k in range(16)]
            for shape in sorted(set(shapes))
        }
        return piece(*((b, *rest[1:]) for b, shape in enumerate(shapes) for rest in drawn[shape]))

    repeated, new = bars([0] * 16), bars(list(range(16)))
    assert s.compression(repeated) > 5 * s.compression(new) > 5
    assert len(s.note_string(repeated)) == len(s.note_string(new)) == 16 * (16 * 5 + 1)


def test_loudness_and_tempo_do_not_enter_the_note_string_but_every_note_does() -> None:
    louder = canonical_piece([FOUR_FOUR] * 4, [20] * 4, [(*n[:5], 126) for n in rows(KNOWN)])
    assert s.note_string(louder) == s.note_string(KNOWN)
    for column in range(5):
        changed = [list(row) for row in rows(KNOWN)]
        changed[-1][column] += {0: -1, 4: -12}.get(column, 1)
        moved = canonical_piece([FOUR_FOUR] * 4, [40] * 4, [tuple(r) for r in changed])
        assert s.note_string(moved) != s.note_string(KNOWN), column


def rows(music: QuantisedPiece) -> list[tuple]:
    columns = (
        *(music.bar, music.instrument, music.onset_steps),
        *(music.pitch, music.duration_steps, music.velocity),
    )
    return list(zip(*(c.tolist() for c in columns), strict=True))


def by_loops(music: QuantisedPiece) -> dict[str, float]:
    """The same numbers, step by step and bar by bar."""
    starts = [0]
    for metre in music.bar_metre.tolist():
        starts.append(starts[-1] + int(METRE_STEPS[metre]))
    notes = [
        (bar, instrument, starts[bar] + onset, pitch, starts[bar] + onset + duration)
        for bar, instrument, onset, pitch, duration, _ in rows(music)
    ]
    sounding_pitches: dict[int, set[int]] = {}
    for _, instrument, start, pitch, end in notes:
        if instrument != DRUMS:
            for step in range(start, end):
                sounding_pitches.setdefault(step, set()).add(pitch)
    counts = [len(pitches) for pitches in sounding_pitches.values()]
    playing = [
        {i for _, i, start, _, end in notes if start < last and end > first}
        for first, last in pairwise(starts)
    ]
    kinds = sorted({i for _, i, *_ in notes})
    shares = [
        sum({a, b} <= bar for a, b in combinations(kinds, 2)) / math.comb(len(kinds), 2)
        for bar in playing
        if bar and len(kinds) > 1
    ]
    return {
        "polyphony": sum(counts) / len(counts) if counts else math.nan,
        "empty_bars": sum(not bar for bar in playing) / len(playing),
        "instrument_overlap": sum(shares) / len(shares) if shares else math.nan,
        "instruments": len(kinds),
        "density": 24 * len(notes) / starts[-1],
    }


@settings(max_examples=25)
@given(canonical_pieces())
def test_any_piece_is_measured_as_loops_do(music: QuantisedPiece) -> None:
    found = measure(music)
    assert list(found) == [statistic.name for statistic in STATISTICS]
    for name, expected in by_loops(music).items():
        assert found[name] == pytest.approx(expected, nan_ok=True), name
    for statistic in STATISTICS:
        if statistic.is_share and not math.isnan(found[statistic.name]):
            assert 0 <= found[statistic.name] <= 1


@st.composite
def steady_pieces(draw: st.DrawFn) -> QuantisedPiece:
    """Pieces of one metre, the only ones whose groove MusPy defines."""
    metre = draw(st.sampled_from([FOUR_FOUR, THREE_FOUR, METRE_INDEX[6, 8]]))
    notes = [
        (
            draw(st.integers(0, 5)),
            draw(st.sampled_from([DRUMS, PIANO, BASS])),
            draw(st.integers(0, int(METRE_STEPS[metre]) - 1)),
            draw(st.integers(40, 70)),
            draw(st.sampled_from([1, 12, 24, 48, 96, 192])),
            66,
        )
        for _ in range(draw(st.integers(1, 30)))
    ]
    return canonical_piece([metre] * 6, [40] * 6, notes)


@pytest.mark.slow  # importing it takes seconds
@settings(max_examples=60)
@given(steady_pieces())
def test_muspy_finds_the_same(music: QuantisedPiece) -> None:
    muspy = pytest.importorskip("muspy", reason="wants the extra `bench`")
    tracks: dict[int, list] = {}
    starts = music.bar_start_steps
    for bar, instrument, onset, pitch, duration, velocity in rows(music):
        sound = muspy.Note(int(starts[bar]) + onset, pitch, duration, velocity)
        tracks.setdefault(instrument, []).append(sound)
    other = muspy.Music(
        resolution=24,
        tracks=[
            muspy.Track(program=max(i - 1, 0), is_drum=i == DRUMS, notes=notes)
            for i, notes in tracks.items()
        ],
    )
    bar_steps = int(METRE_STEPS[music.bar_metre[0]])
    for mine, theirs in (
        (s.pitch_class_entropy(music), muspy.pitch_class_entropy(other)),
        (s.scale_consistency(music), muspy.scale_consistency(other)),
        (s.groove_consistency(music), muspy.groove_consistency(other, bar_steps)),
        (s.polyphony(music), muspy.polyphony(other)),
    ):
        assert mine == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    if any(instrument != DRUMS for instrument in tracks):
        assert s.pitch_range(music) == muspy.pitch_range(other)
