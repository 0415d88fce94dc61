import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from meloformer.errors import MidiError
from meloformer.midi import limits, recover
from meloformer.midi.piece import Piece
from meloformer.midi.read import read_midi
from meloformer.midi.recover import is_plain, recover_midi
from tests.midi.hand_written import controller, metre, midi_file, note, pedal, program, tempo

REPOSITORY = Path(__file__).resolve().parents[2]

MELODY = [note(120 * n, 100, 60 + n % 8, channel=0) for n in range(40)]
BASS = [note(480 * n, 400, 40 + n % 5, 90, channel=1) for n in range(10)]
DRUMS = [note(240 * n, 60, 36, channel=9) for n in range(20)]
SOUND = midi_file(
    [metre(0, 3, 4), tempo(0, 600_000), tempo(960, 500_000)],
    [program(17), pedal(100, 700), controller(5, 7, 90), *MELODY],
    [program(33, channel=1), *BASS],
    DRUMS,
)
END_OF_TRACK = b"\x00\xff\x2f\x00"


def same_music(piece: Piece, other: Piece) -> bool:
    """Equal in all but what was mended."""
    return (piece.ticks_per_quarter, piece.tracks, piece.tempos, piece.time_signatures) == (
        other.ticks_per_quarter,
        other.tracks,
        other.tempos,
        other.time_signatures,
    )


def chunks(data: bytes) -> list[bytes]:
    """The header and each track of a sound file."""
    parts, position = [], 0
    while position < len(data):
        length = 8 + int.from_bytes(data[position + 4 : position + 8], "big")
        parts.append(data[position : position + length])
        position += length
    return parts


def patched(data: bytes, position: int, new: bytes) -> bytes:
    return data[:position] + new + data[position + len(new) :]


def macbinary(data: bytes) -> bytes:
    name = b"song.mid"
    prefix = bytes([0, len(name)]) + name.ljust(63, b"\0") + b"Midi????"
    prefix = prefix.ljust(83, b"\0") + len(data).to_bytes(4, "big")
    return prefix.ljust(128, b"\0") + data.ljust(-(-len(data) // 128) * 128, b"\0") + b"fork" * 32


def rmid(data: bytes, before: bytes = b"") -> bytes:
    chunk = b"data" + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)
    body = b"RMID" + before + chunk + b"LIST\4\0\0\0INFO"
    return b"RIFF" + len(body).to_bytes(4, "little") + body


HEADER, *TRACKS = chunks(SOUND)
LAST = len(SOUND) - len(TRACKS[-1])  # where the last track starts

WHOLE = {
    "rmid": ("rmid", rmid(SOUND)),
    "rmid, another chunk first": ("rmid", rmid(SOUND, b"DISP\3\0\0\0abc\0")),
    "macbinary": ("macbinary", macbinary(SOUND)),
    "gzip": ("gzip", gzip.compress(SOUND)),
    "rmid in macbinary in gzip": ("gzip+macbinary+rmid", gzip.compress(macbinary(rmid(SOUND)))),
    "bytes before": ("prefix", b"Content-Type: audio/midi\r\n\r\n" + SOUND),
    "header of ten bytes": ("header", patched(HEADER, 4, b"\0\0\0\12") + b"abcd" + SOUND[14:]),
    "header length 0": ("header", patched(SOUND, 4, b"\0\0\0\0")),
    "header tag lost": ("header", patched(SOUND, 0, b"XXXX")),
    "format 3": ("header", patched(SOUND, 9, b"\3")),
    "count of one track": ("header", patched(SOUND, 10, b"\0\1")),
    "count of no track": ("header", patched(SOUND, 10, b"\0\0")),
    "count too high": ("header", patched(SOUND, 10, b"\0\11")),
    "length of a track too big": ("chunks", patched(SOUND, LAST + 4, b"\0\1\0\0")),
    "length of a track too small": ("chunks", patched(SOUND, 14 + len(TRACKS[0]) + 7, b"\7")),
    "length of a track 0": ("chunks", patched(SOUND, LAST + 4, b"\0\0\0\0")),
    "junk between tracks": ("chunks", SOUND[:LAST] + b"\0\1\2junk\xff" + SOUND[LAST:]),
    "chunk of another kind": ("", SOUND[:LAST] + b"XFIH\0\0\0\4abcd" + SOUND[LAST:]),
    "chunk of another kind first": ("", HEADER + b"XFIH\0\0\0\4abcd" + SOUND[14:]),
    "no end of track": (
        "",
        SOUND[:LAST]
        + b"MTrk"
        + (len(TRACKS[-1]) - 12).to_bytes(4, "big")
        + TRACKS[-1][8 : -len(END_OF_TRACK)],
    ),
    "another file behind": ("", SOUND + midi_file([note(0, 10, 99)])),
    "zeros behind": ("", SOUND + bytes(1000)),
}


@pytest.mark.parametrize("damage", WHOLE)
def test_all_music_of_a_wrapped_or_mislabelled_file_is_recovered(damage: str):
    mended, data = WHOLE[damage]
    piece = read_midi(data)
    assert same_music(piece, read_midi(SOUND))
    assert piece.recovered == mended


def test_an_ordinary_file_is_not_touched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("meloformer.midi.read.recover_midi", None)
    assert is_plain(SOUND)
    assert read_midi(SOUND).recovered == ""


def test_walking_a_sound_file_keeps_every_event():
    rebuilt, mended = recover_midi(SOUND)
    assert (mended, is_plain(rebuilt)) == ("", True)
    assert same_music(read_midi(rebuilt), read_midi(SOUND))


@pytest.mark.parametrize("num_bytes", [1, 3, 5, 60])
def test_a_cut_tail_keeps_the_music_before_the_cut(num_bytes: int):
    piece, whole = read_midi(SOUND[:-num_bytes]), read_midi(SOUND)
    assert piece.recovered == "cut_tail"
    assert piece.tracks[:-1] == whole.tracks[:-1]
    rows = [
        list(
            zip(*(getattr(track.notes, c).tolist() for c in ("onset_ticks", "pitch")), strict=True)
        )
        for track in (piece.tracks[-1], whole.tracks[-1])
    ]
    lost = -(-max(num_bytes - len(END_OF_TRACK), 0) // 8)  # a note takes eight bytes or more
    assert rows[0] == rows[1][: len(rows[0])]
    assert len(rows[1]) - lost <= len(rows[0])


def test_a_file_cut_anywhere_is_a_piece_or_a_refusal_with_a_reason():
    num_read = 0
    for length in range(len(SOUND)):
        try:
            num_read += read_midi(SOUND[:length]).num_notes > 0
        except MidiError as refusal:
            assert refusal.reason in ("unreadable", "no_notes", "header_lost")
    assert num_read > len(SOUND) / 2


def test_a_cut_gzip_keeps_the_music_before_the_cut():
    packed = gzip.compress(SOUND)
    piece = read_midi(packed[: len(packed) * 3 // 4])
    assert piece.recovered == "gzip+cut_tail"
    assert 0 < piece.num_notes < read_midi(SOUND).num_notes


def _track(body: bytes) -> bytes:
    body += END_OF_TRACK
    return midi_file([])[:14] + b"MTrk" + len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("inserted", "notes"),
    [
        (b"\x00\xf4", [(0, 60, 64), (20, 62, 64)]),
        (b"\x00\xfd", [(0, 60, 64), (20, 62, 64)]),
        (b"\x00\xb0\x07\xa8", [(0, 60, 64), (20, 62, 64)]),
        (b"\x00\xc0\xd0", [(0, 60, 64), (20, 62, 64)]),
        (b"\x00\x90\x40\x81\x05\x80\x40\x00", [(0, 60, 64), (10, 64, 127), (25, 62, 64)]),
        (b"\x00\x90\xbc\x40\x05\x80\xbc\x00", [(0, 60, 64), (25, 62, 64)]),
    ],
    ids=[
        "F4",
        "FD",
        "controller 168",
        "program 208",
        "velocity 129",
        "pitch 188",
    ],
)
def test_an_impossible_event_is_capped_or_left_out_and_all_others_stay(
    inserted: bytes, notes: list
):
    before, after = b"\x00\x90\x3c\x40\x0a\x80\x3c\x00", b"\x0a\x90\x3e\x40\x0a\x80\x3e\x00"
    piece = read_midi(_track(before + inserted + after))
    found = piece.tracks[0].notes
    columns = (found.onset_ticks, found.pitch, found.velocity)
    assert list(zip(*(c.tolist() for c in columns), strict=True)) == notes
    assert piece.recovered == "events"


def test_events_after_an_impossible_one_are_believed_only_where_they_make_sense_to_the_end():
    before = b"\x00\x90\x3c\x40\x0a\x80\x3c\x00"
    out_of_step = b"\x00\x90\xbc\x40\x00\x90\x40\x40\x05\x80\x40\x00" + b"\x00\xff\x01\x7f"
    piece = read_midi(_track(before + out_of_step))
    assert piece.tracks[0].notes.pitch.tolist() == [60]


def test_frames_become_quarters_of_the_first_tempo():
    in_frames = patched(SOUND, 12, bytes([256 - 25, 40]))  # 25 frames a second, 40 ticks a frame
    piece, whole = read_midi(in_frames), read_midi(SOUND)
    assert (piece.ticks_per_quarter, piece.tempos.bpm.tolist()) == (600, [100.0])
    assert piece.tracks == whole.tracks
    assert piece.recovered == "smpte"


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("unreadable", b"\x1f\x8b and then no gzip"),
        ("unreadable", b"MThd"),
        ("unreadable", HEADER),
        ("unreadable", b"RIFF\4\0\0\0RMID"),
        ("header_lost", SOUND[14:]),
        ("header_lost", patched(SOUND[8:], 0, b"\x77\x77")),
        ("no_notes", patched(HEADER, 9, b"\3") + b"MTrk"),
        ("ticks_per_quarter", patched(SOUND, 12, bytes([256 - 77, 40]))),
    ],
)
def test_what_cannot_be_recovered_is_refused_with_its_reason(reason: str, data: bytes):
    with pytest.raises(MidiError) as refusal:
        read_midi(data)
    assert refusal.value.reason == reason
    assert refusal.value.detail


def test_bytes_over_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", len(SOUND))
    assert read_midi(SOUND)
    with pytest.raises(MidiError, match="file_too_big"):
        read_midi(SOUND + b"\0")


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 1 << 20)
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(MidiError, match="file_too_big"):
            read_midi(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_damaged_file_of_too_many_events_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recover, "MAX_EVENTS", 50)
    with pytest.raises(MidiError, match="too_many_events"):
        read_midi(rmid(SOUND))
    with pytest.raises(MidiError, match="too_many_events"):
        read_midi(HEADER + b"MTrk\0\0\0\0" * 60)
    assert read_midi(SOUND)


def outcomes_in_bounds(folder: Path) -> dict[str, str]:
    """What becomes of each file, read by a process that bounds of time and memory would kill."""
    worker = subprocess.run(
        [sys.executable, "-m", "tests.midi.bounded_reader", str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    last = worker.stdout.splitlines()[-1:]
    assert worker.returncode == 0, f"ended after {last}: {worker.stderr[-2000:]}"
    outcomes: dict[str, str] = {}
    for line in worker.stdout.splitlines():
        outcomes |= json.loads(line)
    return outcomes


@pytest.mark.slow
def test_every_torture_file_ends_as_a_piece_or_a_reason_in_bounded_time_and_memory(
    archived_midi, tmp_path: Path
):
    names = []
    for nth, (name, data) in enumerate(archived_midi(Path("torture") / "torture_midi.tar.gz")):
        names.append(f"{nth:04d}-{Path(name).name}")
        (tmp_path / names[-1]).write_bytes(data)
    outcomes = outcomes_in_bounds(tmp_path)
    assert sorted(outcomes) == sorted(names)
    # Whoever made the files named them after what they did to them.
    recovered = {"gzipped": "gzip", "riff_rmid": "rmid", "macbinary": "macbinary"}
    recovered |= {"header_len": "header", "truncated": "cut_tail", "track_len_too": "chunks"}
    for name, outcome in outcomes.items():
        for damage, mended in recovered.items():
            assert damage not in name or mended in outcome, (name, outcome)


@pytest.mark.slow
def test_the_worst_files_of_the_largest_size_end_in_bounded_time_and_memory(tmp_path: Path):
    room = limits.MAX_FILE_BYTES - 100
    notes = b"\x00\x90\x3c\x40" + b"\x10\x3c\x40\x10\x3c\x00" * (room // 6 - 8)
    worst = {
        "notes": ("too_many_notes", _track(notes)),
        "damaged_notes": ("too_many_events", _track(notes + b"\x00\xf4") + b"MTrk"),
        "track_tags": ("too_many_events", HEADER + b"MTrk" * (room // 4)),
        "empty_tracks": ("too_many_events", HEADER + b"MTrk\0\0\0\0" * (room // 8)),
        "chunks_of_other_kinds": ("unreadable", HEADER + b"XXXX\0\0\0\0" * (room // 8)),
        "tempos": ("no_notes", _track(b"\x01\xff\x51\x03\x07\xa1\x20" * (room // 7 - 8))),
        "gzip_bomb": ("file_too_big", gzip.compress(bytes(limits.MAX_FILE_BYTES + 1))),
    }
    for name, (_, data) in worst.items():
        (tmp_path / name).write_bytes(data)
    assert outcomes_in_bounds(tmp_path) == {name: reason for name, (reason, _) in worst.items()}
