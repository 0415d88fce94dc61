import io

import miditoolkit
import mido
import numpy as np
import pytest

from meloformer.midi.piece import Pedal, Piece, Tempos, TimeSignatures, Track, build_track
from meloformer.midi.read import read_midi
from meloformer.midi.write import midi_bytes, write_midi


def orchestra(programs: list[int], *, with_drums: bool = True) -> Piece:
    """One track per program, each with a note of its own, and drums in front."""
    tracks = [_track(0, True, 38)] if with_drums else []
    tracks += [_track(program, False, program % 128) for program in programs]
    return Piece(
        ticks_per_quarter=480,
        tracks=tuple(tracks),
        tempos=Tempos(onset_ticks=np.array([0, 960], np.int32), bpm=np.array([120.0, 90.51])),
        time_signatures=TimeSignatures(
            onset_ticks=np.array([0, 1440], np.int32),
            numerator=np.array([3, 32], np.int32),
            denominator=np.array([4, 32], np.int32),
        ),
    )


def _track(program: int, is_drum: bool, pitch: int) -> Track:
    # The second note of the pitch starts while the first still sounds.
    columns = tuple(np.array([[0, 960, pitch, 70], [480, 960, pitch, 90], [1500, 1, 127, 1]]).T)
    pedal = Pedal(start_ticks=np.array([10]), end_ticks=np.array([700]))
    return build_track(
        program=program, is_drum=is_drum, name=f"part {program}", columns=columns, pedal=pedal
    )


def drums_last(piece: Piece) -> tuple[Track, ...]:
    return tuple(sorted(piece.tracks, key=lambda track: track.is_drum))


@pytest.mark.parametrize("programs", [[0], [8, 9, 10], list(range(16)), list(range(128))])
def test_a_written_piece_reads_back_the_same(programs: list[int]):
    piece = orchestra(programs)
    again = read_midi(midi_bytes(piece))
    assert again.tracks == drums_last(piece)
    assert again.time_signatures == piece.time_signatures
    np.testing.assert_allclose(again.tempos.bpm, piece.tempos.bpm, rtol=1e-5)


@pytest.mark.parametrize("programs", [[9], list(range(16)), list(range(128))])
def test_another_reader_finds_every_program_and_the_drums(programs: list[int]):
    piece = orchestra(programs)
    midi = miditoolkit.MidiFile(file=io.BytesIO(midi_bytes(piece)))
    found = {(i.is_drum, i.program, i.notes[0].pitch) for i in midi.instruments}
    assert found == {(False, p, p) for p in programs} | {(True, 0, 38)}


def test_fifteen_melodic_tracks_and_drums_each_have_a_channel():
    midi = mido.MidiFile(file=io.BytesIO(midi_bytes(orchestra(list(range(15))))))
    channels = [
        {message.channel for message in track if message.type == "note_on"} for track in midi.tracks
    ]
    used = [channel for track in channels for channel in track]
    assert sorted(used) == list(range(16))


def test_no_melodic_note_is_on_the_drum_channel():
    midi = mido.MidiFile(file=io.BytesIO(midi_bytes(orchestra(list(range(128)), with_drums=False))))
    assert all(
        message.channel != 9
        for track in midi.tracks
        for message in track
        if message.type == "note_on"
    )


def test_a_file_on_disk_holds_the_bytes(tmp_path):
    piece = orchestra([1])
    write_midi(piece, tmp_path / "out.mid")
    assert (tmp_path / "out.mid").read_bytes() == midi_bytes(piece)
