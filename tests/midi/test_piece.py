import miditoolkit
import numpy as np
import pytest

from meloformer.errors import MidiError
from meloformer.midi.piece import Piece, build_pedal
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from tests.midi.hand_written import metre, midi_file, note, pedal, program, tempo


def rich_piece() -> Piece:
    return read_midi(
        midi_file(
            [metre(0, 3, 4), metre(1440, 6, 8), tempo(0, 500_000), tempo(700, 400_000)],
            [
                program(40),
                note(0, 700, 60),
                note(240, 700, 60, 90),
                pedal(100, 900),
                pedal(1000, 1100),
            ],
            [note(1500, 10, 38, channel=9)],
        )
    )


def test_miditoolkit_and_back_is_the_same_piece():
    piece = rich_piece()
    again = Piece.from_miditoolkit(piece.to_miditoolkit())
    assert again.tracks == piece.tracks
    assert again.time_signatures == piece.time_signatures
    assert again.tempos == piece.tempos
    assert quantise(again) == quantise(piece)


def test_a_miditoolkit_object_holds_the_same_notes():
    midi = rich_piece().to_miditoolkit()
    violin, drums = midi.instruments
    assert [(n.start, n.end, n.pitch, n.velocity) for n in violin.notes] == [
        (0, 700, 60, 64),
        (240, 940, 60, 90),
    ]
    assert (violin.program, drums.is_drum, midi.ticks_per_beat) == (40, True, 480)
    assert midi.max_tick == 1510


def test_an_empty_miditoolkit_object_is_refused():
    with pytest.raises(MidiError, match="no_notes"):
        Piece.from_miditoolkit(miditoolkit.MidiFile())


def test_a_pedal_never_released_holds_nothing():
    midi = rich_piece().to_miditoolkit()
    midi.instruments[0].control_changes = [miditoolkit.ControlChange(64, 127, 5)]
    assert len(Piece.from_miditoolkit(midi).tracks[0].pedal) == 0


def test_the_last_onset_is_the_latest_of_all_tracks():
    assert rich_piece().last_onset_ticks == 1500
    assert rich_piece().num_notes == 3


def test_the_notes_of_a_piece_are_those_of_its_tracks_in_their_order():
    piece = rich_piece()
    for column in ("onset_ticks", "duration_ticks", "pitch", "velocity"):
        values = [v for track in piece.tracks for v in getattr(track.notes, column).tolist()]
        assert getattr(piece.notes, column).tolist() == values


@pytest.mark.parametrize(
    ("values", "starts", "ends"),
    [
        ([127, 0, 64, 63], [0, 20], [10, 30]),
        ([0, 127, 100, 0], [10], [30]),
        ([0, 0, 0, 127], [], []),
        ([127, 127, 0, 0], [0], [20]),
    ],
)
def test_the_pedal_is_down_from_its_first_press_to_its_release(values, starts, ends):
    pedal_down = build_pedal(np.array([0, 10, 20, 30]), np.array(values))
    assert (pedal_down.start_ticks.tolist(), pedal_down.end_ticks.tolist()) == (starts, ends)


def test_pieces_with_different_notes_differ():
    first, second = rich_piece(), rich_piece()
    assert first == second
    changed = np.array(second.tracks[0].notes.pitch)
    changed[0] += 1
    assert first.tracks[0].notes != type(first.tracks[0].notes)(
        onset_ticks=second.tracks[0].notes.onset_ticks,
        duration_ticks=second.tracks[0].notes.duration_ticks,
        pitch=changed,
        velocity=second.tracks[0].notes.velocity,
    )
