"""Real files, damaged at random: a piece that quantises, or a refusal with a reason."""

import gzip
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meloformer.errors import MidiError
from meloformer.midi.default_corpus import default_corpus_paths, score_to_midi
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.midi.recover import is_plain, recover_midi
from tests.midi.hand_written import controller, midi_file, note, pedal, program, tempo

NUM_CHORALES = 3
# What breaks readers: lengths of 2^28 and more, events cut short, tags where none should be.
NASTY = (
    b"\x00\xff\x01\xff\xff\xff\x7f",
    b"\x00\xff\x03\x80\x80\x80\x80\x80\x00",
    b"\x00\xf0\xff\xff\xff\x7f",
    b"\x00\xf7\x00",
    b"\xff\xff\xff\x7f\x90\x3c\x40",
    b"\xff\xff\xff\x7f\x80\x3c\x40" * 16,
    b"\x00\xff\x51\x00",
    b"\x00\xff\x51\x03\x00\x00\x00",
    b"\x00\xff\x58\x04\x00\xff\x18\x08",
    b"\x00\xff\x58\x01\x04",
    b"\x00\xff\x59\x02\x7f\x7f",
    b"\x00\xff\x59\x00",
    b"\x00\xff\x2f\x00",
    b"\x00\xf4\xfd\xf9",
    b"\x00\xe0",
    b"MTrk",
    b"MTrk\x00\x00\x00\x00",
    b"MThd",
    b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x01\xe0",
)
LENGTHS = st.one_of(
    st.sampled_from([0, 1, 7, 2**28, 2**31 - 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)
)


@cache
def real_files() -> tuple[bytes, ...]:
    """Chorales, and a small file that has what they lack: drums, pedal, running programs."""
    pytest.importorskip("music21", reason="carries the scores")
    small = midi_file(
        [tempo(0, 400_000), *[program(n, tick=240 * n) for n in range(20)]],
        [note(60 * n, 50, 40 + n % 30) for n in range(60)] + [pedal(100, 900)],
        [note(120 * n, 50, 36 + n % 3, channel=9) for n in range(30)] + [controller(0, 7, 9, 9)],
    )
    return small, *(score_to_midi(path) for path in default_corpus_paths()[:NUM_CHORALES])


def _chunk_starts(data: bytes) -> list[int]:
    starts, position = [], data.find(b"MTrk")
    while position >= 0:
        starts.append(position)
        position = data.find(b"MTrk", position + 4)
    return starts or [0]


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A real file after a few accidents."""
    data = bytearray(draw(st.sampled_from(real_files())))
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, len(data)))
        accident = draw(st.integers(0, 8))
        chunk = draw(st.sampled_from(_chunk_starts(bytes(data))))
        if accident == 0:
            data[position : position + 1] = draw(st.binary(max_size=4))
        elif accident == 1:
            del data[position:]
        elif accident == 2:
            del data[position : position + draw(st.integers(1, 300))]
        elif accident == 3:
            data[position:position] = draw(st.sampled_from(NASTY))
        elif accident == 4:
            data[chunk + 4 : chunk + 8] = draw(LENGTHS).to_bytes(4, "big")
        elif accident == 5:
            data[position:position] = data[chunk : chunk + draw(st.integers(4, 2000))]
        elif accident == 6:
            place = draw(st.integers(0, 13))
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif accident == 7:
            data[chunk:chunk] = draw(st.binary(max_size=200))
        else:
            wrapped = [gzip.compress(bytes(data)), bytes(128) + data, b"RIFF\0\0\0\0RMID" + data]
            data = bytearray(draw(st.sampled_from(wrapped)))
    return bytes(data)


def check_read(data: bytes) -> None:
    """Assert a piece that quantises, or a MidiError that says why; all else is raised on."""
    try:
        quantise(read_midi(data))
    except MidiError as refusal:
        assert refusal.reason
        assert refusal.detail


def check_recovery(data: bytes) -> None:
    """Assert that recovery ends in a plain file, and that nothing is left in it to be mended."""
    try:
        rebuilt, _ = recover_midi(data)
    except MidiError as refusal:
        assert refusal.detail
        return
    assert is_plain(rebuilt)
    assert recover_midi(rebuilt) == (rebuilt, "")


COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


@settings(max_examples=120, **COMMON)
@given(damaged_files())
def test_a_damaged_file_is_a_piece_or_a_refusal_with_a_reason(data: bytes):
    check_read(data)


@settings(max_examples=60, **COMMON)
@given(damaged_files())
def test_what_recovery_writes_is_sound(data: bytes):
    check_recovery(data)


@settings(max_examples=100, **COMMON)
@given(st.binary(max_size=300), st.sampled_from([b"", midi_file([])[:22], b"\x1f\x8b\x08"]))
def test_random_bytes_are_a_piece_or_a_refusal_with_a_reason(data: bytes, start: bytes):
    check_read(start + data)
    check_recovery(start + data)


@pytest.mark.slow
@settings(max_examples=3000, **COMMON)
@given(damaged_files())
def test_thousands_of_damaged_files_are_pieces_or_refusals_with_a_reason(data: bytes):
    check_read(data)
    check_recovery(data)
