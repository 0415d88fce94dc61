from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import MidiError
from meloformer.midi import limits
from meloformer.midi.piece import build_piece, build_track
from meloformer.midi.read import read_midi
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


def test_every_event_of_a_hand_written_file_is_found():
    data = midi_file(
        [metre(0, 3, 4), tempo(0, 600_000), tempo(960, 400_000)],
        [program(17, channel=2), note(10, 470, 60, 99, channel=2), pedal(0, 700, channel=2)],
        [note(480, 120, 38, 120, channel=9), bend(5, channel=9), controller(6, 7, 100, channel=9)],
        ticks_per_quarter=480,
    )
    piece = read_midi(data)
    organ, drums = piece.tracks
    assert piece.ticks_per_quarter == 480
    assert (organ.program, organ.is_drum, drums.is_drum) == (17, False, True)
    row = (organ.notes.onset_ticks, organ.notes.duration_ticks, organ.notes.pitch)
    assert [column.tolist() for column in row] == [[10], [470], [60]]
    assert organ.notes.velocity.tolist() == [99]
    assert (organ.pedal.start_ticks.tolist(), organ.pedal.end_ticks.tolist()) == ([0], [700])
    assert (drums.num_bends, drums.num_controllers) == (1, 1)
    assert organ.num_controllers == 0
    np.testing.assert_allclose(piece.tempos.bpm, [100, 150])
    assert piece.tempos.onset_ticks.tolist() == [0, 960]
    assert piece.time_signatures.numerator.tolist() == [3]


def test_path_and_bytes_read_alike(tmp_path: Path):
    data = midi_file([note(0, 10, 60)])
    path = tmp_path / "歌.mid"
    path.write_bytes(data)
    assert read_midi(path) == read_midi(data)


def test_of_several_events_at_one_tick_the_last_wins():
    events = [metre(0, 3, 4), metre(0, 6, 8), tempo(0, 500_000), tempo(0, 250_000)]
    piece = read_midi(midi_file([*events, note(0, 10, 60)]))
    assert (piece.time_signatures.numerator.tolist(), len(piece.tempos)) == ([6], 1)
    assert piece.tempos.bpm.tolist() == [240]


def test_a_note_without_duration_gets_one_tick_and_is_counted():
    # note-on and note-off at one tick, in this order
    data = midi_file([[(0, b"\x90\x3c\x40"), (0, b"\xb0\x07\x01"), (0, b"\x90\x3c\x00")]])
    track = read_midi(data).tracks[0]
    assert (track.notes.duration_ticks.tolist(), track.num_zero_length) == ([1], 1)


def test_each_track_has_its_own_pedal():
    tracks = [
        [note(0, 10, 60, channel=c), pedal(5 + c, 700 + c, channel=c), controller(800, 64, 127, c)]
        for c in range(3)
    ]
    pedals = [track.pedal for track in read_midi(midi_file(*tracks)).tracks]
    assert [p.start_ticks.tolist() for p in pedals] == [[5], [6], [7]]
    assert [p.end_ticks.tolist() for p in pedals] == [[700], [701], [702]]


def test_an_impossible_metre_after_the_last_note_refuses_nothing():
    piece = read_midi(midi_file([metre(0, 3, 4), note(0, 10, 60), metre(960, 0, 4)]))
    assert len(piece.time_signatures) == 1


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("unreadable", b""),
        ("unreadable", b"<html>no such file</html>"),
        ("no_notes", midi_file([tempo(0, 500_000)])),
        ("ticks_per_quarter", midi_file([note(0, 10, 60)], ticks_per_quarter=0)),
        ("impossible_metre", midi_file([metre(0, 0, 4), note(0, 10, 60)])),
        ("impossible_metre", midi_file([metre(0, 4, 0), note(0, 10, 60)])),
        ("impossible_tempo", midi_file([tempo(0, 0), note(0, 10, 60)])),
        ("impossible_tempo", midi_file([tempo(0, 1), note(0, 10, 60)])),
        ("impossible_tempo", midi_file([tempo(0, 2**24 - 1), note(0, 10, 60)])),
        ("too_long", midi_file([note(2**27, 10, 60)], ticks_per_quarter=96)),
    ],
)
def test_an_impossible_file_is_refused_with_its_reason(reason: str, data: bytes):
    with pytest.raises(MidiError) as refusal:
        read_midi(data)
    assert refusal.value.reason == reason


def test_a_missing_file_is_unreadable(tmp_path: Path):
    with pytest.raises(MidiError, match="unreadable"):
        read_midi(tmp_path / "none.mid")


@pytest.mark.parametrize(
    ("reason", "column", "value"),
    [
        ("negative_time", 0, -1),
        ("negative_duration", 1, -5),
        ("pitch_range", 2, 128),
        ("velocity_range", 3, 0),
    ],
)
def test_a_piece_with_a_value_out_of_range_cannot_be_built(reason: str, column: int, value: int):
    row = [0, 10, 60, 64]
    row[column] = value
    with pytest.raises(MidiError) as refusal:
        _piece_of_rows(np.array([row]))
    assert refusal.value.reason == reason


def test_more_notes_than_the_limit_are_refused():
    rows = np.tile([0, 10, 60, 64], (limits.MAX_NOTES + 1, 1))
    with pytest.raises(MidiError, match="too_many_notes"):
        _piece_of_rows(rows)


def _piece_of_rows(rows: np.ndarray):
    nothing = np.zeros(0, np.int64)
    track = build_track(program=0, is_drum=False, name="", columns=tuple(rows.T))
    return build_piece(
        ticks_per_quarter=480,
        tracks=[track],
        tempos=(nothing, nothing),
        time_signatures=(nothing, nothing, nothing),
    )
