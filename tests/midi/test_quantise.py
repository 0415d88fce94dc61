from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.midi import limits
from meloformer.midi.grid import DURATION_STEPS, METRES, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.piece import NO_PEDAL, Pedal, Piece, build_piece, build_track
from meloformer.midi.quantise import (
    _duration_index,
    quantise,
    quantise_counted,
    quantise_pieces,
)
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.midi.write import midi_bytes
from tests.midi.hand_written import (
    bend,
    controller,
    metre,
    midi_file,
    note,
    pedal,
    program,
    tempo,
)
from tests.midi.judge import check_against_raw_notes
from tests.midi.pieces import canonical_pieces


@given(canonical_pieces())
def test_a_canonical_piece_survives_its_midi_file(quantised: QuantisedPiece):
    assert quantise(read_midi(midi_bytes(to_piece(quantised)))) == quantised


@given(canonical_pieces())
def test_quantising_a_canonical_piece_loses_nothing(quantised: QuantisedPiece):
    _, counts = quantise_counted(to_piece(quantised))
    assert counts.notes == quantised.num_notes
    assert (counts.merged, counts.durations_cut, counts.tempos_averaged) == (0, 0, 0)
    assert (counts.bars.bars_cut, counts.bars.bar_lines_moved) == (0, 0)


@st.composite
def pieces_in_ticks(draw: st.DrawFn) -> Piece:
    ticks_per_quarter = draw(st.sampled_from([1, 7, 24, 37, 96, 480, 1024, 10080]))
    quarter = st.integers(0, 8 * ticks_per_quarter)
    rows = st.lists(
        st.tuples(quarter, quarter, st.sampled_from([0, 60, 127]), st.integers(1, 127)), min_size=1
    )
    tracks = []
    for _ in range(draw(st.integers(1, 4))):
        lines = sorted(draw(st.sets(quarter, max_size=6)))
        lines = lines[: len(lines) // 2 * 2]
        tracks.append(
            build_track(
                program=draw(st.sampled_from([0, 9, 40, 127])),
                is_drum=draw(st.booleans()),
                name="",
                columns=tuple(np.array(draw(rows)).T),
                pedal=Pedal(start_ticks=np.array(lines[::2]), end_ticks=np.array(lines[1::2])),
            )
        )
    metres = st.tuples(quarter, st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16, 32]))
    metre_rows = np.array(draw(st.lists(metres, max_size=4)), np.int64).reshape(-1, 3)
    tempos = st.tuples(quarter, st.integers(5, 1000))
    tempo_rows = np.array(draw(st.lists(tempos, max_size=4)), np.int64).reshape(-1, 2)
    return build_piece(
        ticks_per_quarter=ticks_per_quarter,
        tracks=tracks,
        tempos=tuple(tempo_rows.T),
        time_signatures=tuple(metre_rows.T),
    )


@given(pieces_in_ticks(), st.booleans())
def test_every_raw_note_is_found_within_half_a_step_with_its_pitch_and_program(
    piece: Piece, use_pedal: bool
):
    check_against_raw_notes(piece, pedal=use_pedal)


@given(pieces_in_ticks())
def test_quantising_twice_is_quantising_once(piece: Piece):
    once = quantise(piece)
    assert quantise(to_piece(once)) == once


@given(pieces_in_ticks())
def test_a_bar_keeps_its_length_in_seconds_within_its_tempo_bin(piece: Piece):
    quantised = quantise(piece)
    starts = [Fraction(int(s), STEPS_PER_QUARTER) for s in quantised.bar_start_steps]
    for bar in range(quantised.num_bars):
        seconds = _seconds(piece, starts[bar], starts[bar + 1])
        bpm = float((starts[bar + 1] - starts[bar]) * 60 / seconds)
        distance = np.abs(TEMPOS_BPM - bpm)
        chosen = distance[quantised.bar_tempo[bar]]
        assert chosen <= distance.min() * (1 + 1e-9) + 1e-9


def _seconds(piece: Piece, start: Fraction, end: Fraction) -> Fraction:
    """Time between two points in quarters, tempo by tempo."""
    changes = [(Fraction(0), Fraction(120))]
    for tick, bpm in zip(piece.tempos.onset_ticks.tolist(), piece.tempos.bpm, strict=True):
        changes.append((Fraction(tick, piece.ticks_per_quarter), Fraction(bpm)))
    total = Fraction(0)
    for index, (at, bpm) in enumerate(changes):
        until = changes[index + 1][0] if index + 1 < len(changes) else end
        total += max(min(end, until) - max(start, at), Fraction(0)) * 60 / bpm
    return total


def test_an_onset_rounded_past_the_bar_line_starts_the_next_bar():
    # 10 ticks before the line of 4/4 at 480 ticks is the halfway point of a step.
    quantised = quantise(read_midi(midi_file([note(1909, 100, 60), note(1910, 100, 62)])))
    assert quantised.bar.tolist() == [0, 1]
    assert quantised.onset_steps.tolist() == [95, 0]


def test_leading_empty_bars_stay_and_the_piece_ends_with_the_last_onset():
    quantised = quantise(read_midi(midi_file([note(1920 * 3, 1920 * 4, 60)])))
    assert (quantised.num_bars, quantised.bar.tolist()) == (4, [3])


def test_tracks_of_one_program_become_one_instrument_and_unisons_merge():
    first = [program(40), note(0, 480, 60, 50)]
    second = [program(40, channel=1), note(4, 960, 60, 30, channel=1), note(0, 480, 64, channel=1)]
    quantised, counts = quantise_counted(read_midi(midi_file(first, second)))
    assert quantised.instrument.tolist() == [41, 41]
    assert quantised.pitch.tolist() == [60, 64]
    assert (quantised.duration_steps[0], counts.merged) == (48, 1)
    assert quantised.velocity[0] == 50


def test_of_merged_notes_the_longest_duration_and_the_loudest_velocity_stay():
    notes = [(0, 480, 60, 20), (2, 960, 60, 50), (4, 240, 60, 90)]
    tracks = [[note(*row, channel=channel)] for channel, row in enumerate(notes)]
    quantised, counts = quantise_counted(read_midi(midi_file(*tracks)))
    assert (quantised.num_notes, counts.merged) == (1, 2)
    assert (quantised.duration_steps[0], quantised.velocity[0]) == (48, 90)


def test_the_widest_values_of_every_field_fit_into_a_packed_note():
    last = limits.MAX_BARS * 4 - 1
    metres = [metre(0, 4, 4), metre(1, 12, 4)]
    track = [program(127), note(0, 480 * 50, 127, 127), note(480 * last - 20, 480, 127, 1)]
    data = midi_file([*metres], track, [note(480 * last - 20, 480, 0, 127, channel=9)])
    quantised = quantise(read_midi(data))
    assert quantised.start_steps.tolist() == [0, 24 * last - 1, 24 * last - 1]
    assert quantised.instrument.tolist() == [128, 0, 128]
    assert quantised.pitch.tolist() == [127, 0, 127]
    assert quantised.duration_steps.tolist() == [768, 24, 24]
    assert quantised.velocity.tolist() == [126, 126, 2]


@pytest.mark.parametrize("ticks_per_quarter", [17, 480, 10080, 32767])
def test_a_duration_halfway_between_two_entries_is_the_shorter_one_exactly(ticks_per_quarter: int):
    ticks = np.arange(1, 50 * ticks_per_quarter, 7)
    found = DURATION_STEPS[np.minimum(_duration_index(ticks, ticks_per_quarter), 79)]
    # Distances in units of which one tick has 24 and one step has ticks_per_quarter.
    unit = ticks * STEPS_PER_QUARTER
    distance = np.abs(DURATION_STEPS[:, None].astype(np.int64) * ticks_per_quarter - unit)
    assert found.tolist() == DURATION_STEPS[distance.argmin(axis=0)].tolist()


def test_drums_are_instrument_zero_whatever_their_program():
    quantised = quantise(
        read_midi(midi_file([program(16, channel=9), note(0, 10, 38, channel=9), note(0, 10, 38)]))
    )
    assert quantised.instrument.tolist() == [0, 1]


def test_an_overlapped_note_is_cut_to_the_next_onset_of_its_pitch_and_instrument_alone():
    tracks = [
        [program(0), note(0, 1000, 60), note(480, 100, 62)],
        [program(0, channel=1), note(490, 100, 60, channel=1)],
        [program(5, channel=2), note(0, 1000, 60, channel=2)],
    ]
    quantised, counts = quantise_counted(read_midi(midi_file(*tracks)))
    piano = quantised.instrument == 1
    # 490 ticks are 24.5 steps, rounded to 25.
    assert quantised.duration_steps[piano][0] == 25
    assert quantised.duration_steps[~piano].tolist() == [48]  # 50 steps are off the table
    assert counts.durations_cut == 1


def test_a_cut_duration_is_the_longest_of_the_table_that_fits():
    quantised = quantise(read_midi(midi_file([note(0, 3000, 60)], [note(1060, 100, 60)])))
    assert quantised.duration_steps[0] == DURATION_STEPS[DURATION_STEPS <= 53].max()


def test_the_shortest_note_lasts_one_step():
    assert quantise(read_midi(midi_file([note(0, 1, 60)]))).duration_steps.tolist() == [1]


def test_a_duration_beyond_the_table_is_capped_and_counted():
    quantised, counts = quantise_counted(read_midi(midi_file([note(0, 480 * 100, 60)])))
    assert quantised.duration_steps.tolist() == [DURATION_STEPS[-1]]
    assert counts.durations_capped == 1


def test_the_pedal_holds_a_note_until_it_rises_or_the_pitch_returns():
    data = midi_file(
        [
            pedal(240, 1440),
            note(0, 480, 60),  # released while the pedal is down
            note(0, 100, 62),  # released before
            note(480, 100, 64),  # held, until its pitch returns
            note(960, 100, 64),  # held
            note(960, 960, 65),  # released after the pedal
        ]
    )
    with_pedal, counts = quantise_counted(read_midi(data))
    durations = dict(
        zip(
            zip(with_pedal.pitch, with_pedal.onset_steps, strict=True),
            with_pedal.duration_steps,
            strict=True,
        )
    )
    assert durations == {(60, 0): 72, (62, 0): 5, (64, 24): 24, (64, 48): 24, (65, 48): 48}
    assert counts.pedal_lengthened == 3
    without = quantise(read_midi(data), pedal=False)
    assert without.duration_steps.tolist() == [24, 5, 5, 5, 48]


def test_the_pedal_does_not_hold_drums():
    data = midi_file([pedal(0, 4000, channel=9), note(0, 20, 38, channel=9)])
    assert quantise(read_midi(data)).duration_steps.tolist() == [1]


def test_what_the_grid_cannot_hold_is_counted():
    data = midi_file(
        [tempo(0, 500_000), tempo(960, 400_000), tempo(1920, 5_000_000)],
        [
            bend(0),
            bend(5),
            controller(0, 7, 90),
            pedal(0, 10),
            note(0, 1920, 60),
            note(1920, 5, 60),
        ],
    )
    _, counts = quantise_counted(read_midi(data))
    assert (counts.bends, counts.controllers) == (2, 1)
    assert (counts.tempos_averaged, counts.tempos_clamped) == (1, 1)


def test_a_tempo_change_in_mid_bar_is_weighted_by_time():
    # Two quarters at 120 and two at 60 take 3 seconds: 80 quarters per minute.
    data = midi_file([tempo(0, 500_000), tempo(960, 1_000_000), note(0, 10, 60)])
    bpm = TEMPOS_BPM[quantise(read_midi(data)).bar_tempo[0]]
    assert abs(bpm - 80) == np.abs(TEMPOS_BPM - 80).min()


def test_without_metre_and_tempo_a_piece_is_four_quarters_at_120():
    quantised = quantise(read_midi(midi_file([note(0, 10, 60)])))
    assert METRES[quantised.bar_metre[0]] == (4, 4)
    assert TEMPOS_BPM[quantised.bar_tempo[0]] == 120


def test_a_metre_change_in_mid_bar_keeps_every_note_on_the_time_line():
    data = midi_file([metre(0, 4, 4), metre(960, 3, 4)], [note(480 * n, 400, 60) for n in range(8)])
    quantised = quantise(read_midi(data))
    assert [METRES[m] for m in quantised.bar_metre] == [(2, 4), (3, 4), (3, 4)]
    absolute = quantised.bar_start_steps[quantised.bar] + quantised.onset_steps
    assert absolute.tolist() == [24 * n for n in range(8)]


@pytest.mark.parametrize("ticks_per_quarter", [1, 37, 96, 192, 256, 480, 960, 1024, 32767])
def test_any_resolution_gives_the_same_quarters(ticks_per_quarter: int):
    track = build_track(
        program=0,
        is_drum=False,
        name="",
        columns=tuple(
            np.array([[n * ticks_per_quarter, ticks_per_quarter, 60, 64] for n in range(9)]).T
        ),
        pedal=NO_PEDAL,
    )
    nothing = np.zeros(0, np.int64)
    piece = build_piece(
        ticks_per_quarter=ticks_per_quarter,
        tracks=[track],
        tempos=(nothing, nothing),
        time_signatures=(nothing, nothing, nothing),
    )
    quantised = quantise(piece)
    assert quantised.onset_steps.tolist() == [0, 24, 48, 72] * 2 + [0]
    assert set(quantised.duration_steps.tolist()) == {24}


@given(st.lists(pieces_in_ticks(), min_size=2, max_size=5), st.booleans())
@settings(max_examples=40)
def test_pieces_quantised_together_are_as_each_alone(pieces: list[Piece], pedal: bool):
    joined, counts = quantise_pieces(pieces, pedal=pedal)
    together = [(joined.piece(index), counts[index]) for index in range(len(joined))]
    assert together == [quantise_counted(piece, pedal=pedal) for piece in pieces]
